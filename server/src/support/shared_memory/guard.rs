//! Keeps the process alive when a client cuts a shared memory object that is mapped.
//!
//! Touching a page that is gone raises SIGBUS, which ends a process. In a guarded range a handler
//! puts a page of zeros there instead and marks the range, which is of no use from then on.

#![expect(unsafe_code, reason = "signal handlers are the C library's")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// The guarded ranges: a start of 0 is a free place.
static RANGES: [Range; super::MAX_REGIONS] = [const { Range::free() }; super::MAX_REGIONS];

/// What handled SIGBUS before, for faults that are not ours.
static PREVIOUS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
    was_cut: AtomicBool,
}

impl Range {
    const fn free() -> Self {
        let (start, end) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { start, end, was_cut: AtomicBool::new(false) }
    }

    fn holds(&self, address: usize) -> bool {
        (self.start.load(SeqCst)..self.end.load(SeqCst)).contains(&address)
    }
}

/// A guarded range of mapped memory, until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    place: Option<usize>,
}

impl Guard {
    /// Guards a mapping, which has to live as long as the guard.
    pub(super) fn over(start: usize, length: usize) -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let place = RANGES
            .iter()
            .position(|range| range.start.compare_exchange(0, start, SeqCst, SeqCst).is_ok());
        // More mappings than places can only be while forgotten regions are still in use; such a
        // mapping is as fragile as any other.
        if let Some(place) = place {
            RANGES[place].was_cut.store(false, SeqCst);
            RANGES[place].end.store(start + length, SeqCst);
        }
        Self { place }
    }

    /// Returns whether a page was found gone: the mapping shows zeros there ever after.
    pub(super) fn was_cut(&self) -> bool {
        self.place.is_some_and(|place| RANGES[place].was_cut.load(SeqCst))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            RANGES[place].end.store(0, SeqCst);
            RANGES[place].start.store(0, SeqCst);
        }
    }
}

fn install() {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if let Ok(page @ 1..) = usize::try_from(page) {
        PAGE_BYTES.store(page, SeqCst);
    }
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both structures are plain data for which zeros are a value; the handler only does
    // what a handler may: it reads atomics and makes system calls.
    let before = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, before.as_mut_ptr());
        before.assume_init()
    };
    PREVIOUS.store(before.sa_sigaction, SeqCst);
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives a handler of SIGBUS a valid description with an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let page = PAGE_BYTES.load(SeqCst);
    if let Some(range) = RANGES.iter().find(|range| range.holds(address)) {
        range.was_cut.store(true, SeqCst);
        let at = (address & !(page - 1)) as *mut c_void;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page is part of a guarded mapping, whose memory nobody else may unmap; it
        // is replaced by zeros, which any reader of shared memory has to expect.
        let mapped = unsafe { libc::mmap(at, page, protection, flags, -1, 0) };
        if mapped == at {
            return;
        }
    }
    let previous = PREVIOUS.load(SeqCst);
    if previous == libc::SIG_DFL || previous == libc::SIG_IGN {
        // SAFETY: taking the default back lets the fault, which comes again, end the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the runtime installs its handlers with SA_SIGINFO, and so with this signature.
    let previous = unsafe {
        std::mem::transmute::<usize, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)>(
            previous,
        )
    };
    previous(signal, info, context);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::ptr;

    use memmap2::MmapOptions;

    use super::*;

    #[test]
    fn a_page_that_is_gone_reads_as_zeros() {
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let memory = MmapOptions::new().len(8192).map_raw(&file).unwrap();
        let guard = Guard::over(memory.as_ptr() as usize, memory.len());
        file.set_len(0).unwrap();
        // SAFETY: the byte lies in the mapping.
        let byte = unsafe { ptr::read_volatile(memory.as_ptr().add(5000)) };
        assert_eq!(byte, 0);
        assert!(guard.was_cut());
    }
}
