//! What the machine has: processor, memory, files, disk, the default model.

use std::fs::read_to_string;
use std::path::Path;

use worker::cpu::Isa;

use super::Finding;
use crate::args::threads;
use crate::models::source::{Place, Source, model_dir};
use crate::support::buffers::memory_limit;

const GIB: f64 = (1_u64 << 30) as f64;

/// Open files below which a server with its default of connections runs out of them.
const FEW_FILES: u64 = 8192;

/// The memory that the default model and its KV cache need.
const LEAST_MEMORY: u64 = 1 << 30;

/// The disk that a small model needs.
const LEAST_DISK: u64 = 1 << 30;

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![processor(), memory(), open_files()];
    findings.extend(space("shared memory", Path::new("/dev/shm")));
    findings.extend(models());
    findings.push(gpu());
    findings
}

fn processor() -> Finding {
    let (cores, isa) = (threads(0), Isa::best().name());
    let found = format!("{cores} cores, kernels for {isa}");
    match isa {
        "portable" => Finding::warn(
            "processor",
            found,
            "models compute several times slower without AVX2 or NEON; in a virtual machine, pass \
             the host's processor through",
        ),
        _ => Finding::ok("processor", found),
    }
}

fn memory() -> Finding {
    let what = "memory";
    let field = |name: &str| {
        let text = read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?.trim_start_matches(':');
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    };
    let (Some(total), Some(free)) = (field("MemTotal"), field("MemAvailable")) else {
        return Finding::ok(what, "not known on this system");
    };
    let limit = memory_limit().map_or(u64::MAX, |limit| limit as u64);
    let usable = free.min(limit);
    let mut found =
        format!("{:.1} GiB, {:.1} GiB available", total as f64 / GIB, free as f64 / GIB);
    if limit < total {
        found += &format!(", this process may have {:.1} GiB", limit as f64 / GIB);
    }
    match usable < LEAST_MEMORY {
        true => Finding::warn(what, found, "the default model needs 1 GiB"),
        false => Finding::ok(what, found),
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < FEW_FILES => Finding::warn(
            "open files",
            format!("{limit} at most"),
            "each connection takes one: run `ulimit -n 65536` before `stator`, or set \
             LimitNOFILE= in its unit",
        ),
        Some(limit) => Finding::ok("open files", format!("{limit} at most")),
        None => Finding::ok("open files", "no limit"),
    }
}

/// Returns what is free at a folder, or at the first one above it that is there.
fn free_bytes(folder: &Path) -> Option<u64> {
    let found = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Some(found.f_bavail * found.f_frsize)
}

fn space(what: &str, folder: &Path) -> Option<Finding> {
    let free = free_bytes(folder)?;
    let found = format!("{}, {:.1} GiB free", folder.display(), free as f64 / GIB);
    Some(Finding::ok(what, found))
}

/// Looks for the default model, and for room for others.
fn models() -> Vec<Finding> {
    let folder = match model_dir(None) {
        Ok(folder) => folder,
        Err(error) => {
            let advice = "set HOME or XDG_CACHE_HOME, or name one with --model-dir";
            return vec![Finding::fail("models", error.to_string(), advice)];
        }
    };
    let source = Source::default_model(&folder);
    let model = match &source.place {
        Place::Default(file) if file.is_file() => Finding::ok("default model", &source.name),
        _ => Finding::warn(
            "default model",
            format!("{} is not in {}", source.name, folder.display()),
            "./serve puts it there; or name a model: `stator serve OWNER/REPOSITORY:FILE.gguf`",
        ),
    };
    let free = free_bytes(&folder);
    let found = |free: u64| format!("{}, {:.1} GiB free", folder.display(), free as f64 / GIB);
    let disk = free.map(|free| match free < LEAST_DISK {
        true => Finding::warn("models", found(free), "make room, or name another --model-dir"),
        false => Finding::ok("models", found(free)),
    });
    [Some(model), disk].into_iter().flatten().collect()
}

/// Looks for a GPU: its driver's memory can be shared by clients of `cudasharedmemory`.
fn gpu() -> Finding {
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |folder| folder.count());
    let found = match gpus {
        0 => "none: models compute on the processor".to_owned(),
        1 => "1 of NVIDIA: models compute on the processor all the same".to_owned(),
        many => format!("{many} of NVIDIA: models compute on the processor all the same"),
    };
    Finding::ok("GPU", found)
}
