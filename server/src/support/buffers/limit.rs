//! How much the buffers may hold where nobody says it: less where the process may have less.

use std::fs::read_to_string;
use std::path::Path;

/// The default where nothing limits the process.
const USUAL_BYTES: usize = 4096 << 20;

/// What part of the process's memory it may be.
const SHARE: usize = 4;

/// It is never less.
const LEAST_BYTES: usize = 16 << 20;

/// Returns the default of `--max-buffered-mib` in bytes.
pub(crate) fn default_bytes() -> usize {
    default_of(memory_limit())
}

/// Returns how much memory this process may have, if its address space or a control group is
/// limited.
pub(crate) fn memory_limit() -> Option<usize> {
    let address_space = read_to_string("/proc/self/limits").ok().and_then(|text| soft_limit(&text));
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_limits(&groups, Path::new("/sys/fs/cgroup"));
    address_space.into_iter().chain(groups).min()
}

fn default_of(limit: Option<usize>) -> usize {
    limit.map_or(USUAL_BYTES, |limit| limit / SHARE).clamp(LEAST_BYTES, USUAL_BYTES)
}

/// Reads the limit of the address space out of `/proc/self/limits`.
fn soft_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Reads the memory limits of the process's control groups and those around them. Within a
/// container the path may be that of the host, so that the root of what is mounted counts as well.
fn group_limits(groups: &str, root: &Path) -> Vec<usize> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            some if some.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let within = root.join(path.trim_start_matches('/'));
        for folder in within.ancestors().take_while(|folder| folder.starts_with(&root)) {
            let limit = read_to_string(folder.join(file)).ok();
            limits.extend(limit.and_then(|text| text.trim().parse::<usize>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_quarter_of_the_limit() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax address space  8589934592  unlimited  bytes\n";
        assert_eq!(soft_limit(limits), Some(8 << 30));
        assert_eq!(soft_limit("Max address space  unlimited  unlimited  bytes\n"), None);
        assert_eq!(default_of(None), 4096 << 20);
        assert_eq!(default_of(Some(1 << 50)), 4096 << 20);
        assert_eq!(default_of(Some(2 << 30)), 512 << 20);
        assert_eq!(default_of(Some(1 << 20)), 16 << 20);
    }

    #[test]
    fn limits_of_the_groups_around_count() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pod");
        std::fs::create_dir_all(pod.join("box")).unwrap();
        std::fs::write(pod.join("memory.max"), "2147483648\n").unwrap();
        std::fs::write(pod.join("box/memory.max"), "max\n").unwrap();
        assert_eq!(group_limits("0::/pod/box\n", root.path()), [2 << 30]);
        assert!(group_limits("0::/elsewhere\n", root.path()).is_empty());
        std::fs::create_dir(root.path().join("memory")).unwrap();
        std::fs::write(root.path().join("memory/memory.limit_in_bytes"), "4096\n").unwrap();
        assert_eq!(group_limits("5:cpu,memory:/a\n3:pids:/pod\n", root.path()), [4096]);
    }
}
