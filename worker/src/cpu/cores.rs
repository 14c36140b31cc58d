//! The cores that compute threads keep to, if they are asked to.

use std::cell::Cell;
use std::io;

/// Cores of the machine, one for each thread.
#[derive(Clone, Debug)]
pub(crate) struct Cores(Vec<usize>);

thread_local! {
    /// Whether this thread has been told its core.
    static IS_TOLD: Cell<bool> = const { Cell::new(false) };
}

impl Cores {
    /// Returns the first cores that the calling thread may run on.
    ///
    /// Errors: there are fewer, or the system does not say.
    pub(crate) fn first(count: usize) -> io::Result<Self> {
        let mut cores = system::allowed()?;
        if cores.len() < count {
            let text = format!("{count} threads cannot keep to {} cores", cores.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        cores.truncate(count);
        Ok(Self(cores))
    }

    /// Makes the calling thread run on the core of a thread of this number and on no other; that it
    /// was told one before stays as it is.
    pub(crate) fn keep_to(&self, thread: usize) {
        if IS_TOLD.replace(true) {
            return;
        }
        let core = self.0[thread];
        if let Err(error) = system::keep_to(core) {
            // It computes all the same.
            tracing::warn!(core, %error, "a compute thread cannot keep to its core");
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }

    pub(super) fn keep_to(core: usize) -> io::Result<()> {
        let mut set = CpuSet::new();
        set.set(core);
        Ok(sched_setaffinity(None, &set)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub(super) fn allowed() -> io::Result<Vec<usize>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn keep_to(_: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #[cfg(target_os = "linux")]
    use super::*;

    /// Returns the cores that the calling thread may run on and that are there, as the kernel has
    /// them.
    #[cfg(target_os = "linux")]
    pub(crate) fn kernel() -> Vec<usize> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
        let online = list(&online);
        list(line.unwrap()).into_iter().filter(|core| online.contains(core)).collect()
    }

    /// Reads numbers as the kernel lists them, such as `0-3,8`.
    #[cfg(target_os = "linux")]
    fn list(text: &str) -> Vec<usize> {
        let number = |text: &str| text.parse::<usize>().unwrap();
        let range = |part: &str| match part.split_once('-') {
            Some((first, last)) => number(first)..=number(last),
            None => number(part)..=number(part),
        };
        text.trim().split(',').flat_map(range).collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_keeps_to_the_first_core_that_it_is_told() {
        let own = kernel();
        let cores = Cores::first(own.len()).unwrap();
        assert_eq!(cores.0, own);
        for (thread, &core) in own.iter().enumerate() {
            let cores = cores.clone();
            let kept = std::thread::spawn(move || {
                cores.keep_to(thread);
                cores.keep_to(0);
                kernel()
            });
            assert_eq!(kept.join().unwrap(), [core]);
        }
        assert_eq!(kernel(), own, "nobody else is told anything");
        let error = Cores::first(own.len() + 1).unwrap_err();
        let expected = format!("{} threads cannot keep to {} cores", own.len() + 1, own.len());
        assert_eq!(error.to_string(), expected);
    }
}
