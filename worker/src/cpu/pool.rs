//! The compute threads: named, counted, and parked when there is nothing to do.
//!
//! A job is shared: the caller begins it, the threads join as they come, and whoever is free takes
//! the next part. The caller waits for those who joined, and for nobody else, so on a busy machine
//! a thread that gets no core costs nothing. `share` returns when all is done, so a job may borrow.
//!
//! A forward pass has some 150 jobs, so threads spin for a while between them, then yield, and
//! then park: on a shared machine spinning takes the core from whoever has work.
#![expect(unsafe_code, reason = "a job on the caller's stack is lent to the threads")]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::cores::Cores;
use crate::turns::PassScheduler;

/// Turns of a waiting loop before a thread yields: some 50 microseconds.
const SPINS: u32 = 4000;

/// Times that a thread yields before it parks.
const YIELDS: u32 = 50;

/// A job: called with the index of the thread.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Set in the state while threads may join; the bits below count those that have.
const OPEN: u64 = 1 << 31;

/// Compute threads; those of a clone are the same ones.
#[derive(Clone)]
pub struct Pool(Arc<Threads>);

struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Where each thread stays; none: where the system has it.
    cores: Option<Cores>,
    /// Held while a job runs: there is one at a time.
    turn: Mutex<()>,
    /// Those of the models that have the threads in common.
    turns: PassScheduler,
}

struct Shared {
    /// Points to the caller's `Job`; valid for those who are counted in `state`.
    job: AtomicPtr<()>,
    /// The number of the job, `OPEN`, and how many threads work on it.
    state: AtomicU64,
    /// What is left of each thread's part: the first item and the end.
    parts: Box<[Part]>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    has_panicked: AtomicBool,
    is_ending: AtomicBool,
}

/// Items that are left, in a cache line of their own.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Part(AtomicU64);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// Starts `threads - 1` threads; whoever calls [`share`](Pool::share) is the other one.
    ///
    /// Errors: the system gives no thread.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        Self::start_on(threads.max(1), None)
    }

    /// Starts threads that keep to a core each, the first ones that the process may run on; a thread
    /// that calls [`share`](Pool::share) does so once it has called [`keep`](Pool::keep).
    ///
    /// Errors: there are fewer cores, or the system gives no thread.
    pub fn start_pinned(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        Self::start_on(threads, Some(Cores::first(threads)?))
    }

    fn start_on(threads: usize, cores: Option<Cores>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(std::ptr::null_mut()),
            state: AtomicU64::new(0),
            parts: (0..threads).map(|_| Part::default()).collect(),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            has_panicked: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        });
        let (workers, turn, turns) = (Vec::new(), Mutex::new(()), PassScheduler::default());
        let mut pool = Threads { shared, workers, cores, turn, turns };
        for index in 1..threads {
            let (shared, cores) = (pool.shared.clone(), pool.cores.clone());
            let work = move || {
                if let Some(cores) = cores {
                    cores.keep_to(index);
                }
                shared.work(index);
            };
            let worker =
                std::thread::Builder::new().name(format!("compute-{index}")).spawn(work)?;
            pool.workers.push(worker);
        }
        Ok(Self(Arc::new(pool)))
    }

    /// Makes the calling thread, which is to share jobs, keep to its core, if these threads do.
    pub fn keep(&self) {
        if let Some(cores) = &self.0.cores {
            cores.keep_to(0);
        }
    }

    /// Returns the turns of the models that have the threads in common, which each of them keeps.
    pub fn turns(&self) -> &PassScheduler {
        &self.0.turns
    }

    /// Returns how many threads share a job.
    pub fn threads(&self) -> usize {
        self.0.workers.len() + 1
    }

    /// Shares `count` items among the threads and returns when all are done: `work` is called with
    /// the index of the thread and items, once or more often on each.
    ///
    /// Each thread has its even part of the items, takes `grain` of them at a time, and then helps
    /// the others. Which thread gets which items is not the same twice.
    ///
    /// Panics: as the work does, on whichever thread.
    pub fn share(&self, count: usize, grain: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        self.share_out(count, grain, |thread, items| items.for_each(|items| work(thread, items)));
    }

    /// Does what [`share`](Self::share) does for work that has something to prepare: it is called
    /// once on each thread that comes, with what gives it items as long as there are any.
    pub fn share_out(&self, count: usize, grain: usize, work: impl Fn(usize, Items<'_>) + Sync) {
        let grain = grain.max(1);
        if self.0.workers.is_empty() || count <= grain {
            return match count {
                0 => {}
                _ => work(0, Items(Left::All(Some(0..count)))),
            };
        }
        let threads = self.threads();
        self.share_parts(count, grain, |thread| count * (thread + 1) / threads, work);
    }

    /// Shares items of which each thread's part ends where `end` says.
    fn share_parts(
        &self,
        count: usize,
        grain: usize,
        end: impl Fn(usize) -> usize,
        work: impl Fn(usize, Items<'_>) + Sync,
    ) {
        assert!(u32::try_from(count).is_ok(), "a job has fewer than 2^32 items");
        let _turn = lock(&self.0.turn);
        let mut start = 0;
        for (thread, part) in self.0.shared.parts.iter().enumerate() {
            let is_last = thread + 1 == self.threads();
            let end = if is_last { count } else { end(thread).clamp(start, count) };
            part.0.store(pack(start, end), Ordering::Relaxed);
            start = end;
        }
        self.lend(&|thread| {
            work(thread, Items(Left::Shared { parts: &self.0.shared.parts, thread, grain }));
        });
    }

    /// Calls `work` once with each of the items: each thread has its even part of them, in order, and
    /// then helps the others. So jobs whose items are parts of the same rows find most of what they
    /// read in the thread's own cache.
    ///
    /// Panics: as the work does, on whichever thread.
    pub fn each_by_part<T: Send>(
        &self,
        items: impl Iterator<Item = T>,
        work: impl Fn(usize, T) + Sync,
    ) {
        let items: Vec<T> = items.collect();
        let (count, threads) = (items.len(), self.threads());
        self.each_of_parts(items, |thread| count * (thread + 1) / threads, work);
    }

    /// Does what [`each_by_part`](Self::each_by_part) does; `end` says where a thread's part ends, at
    /// the earliest where it begins, and the last thread's has what is left.
    pub fn each_of_parts<T: Send>(
        &self,
        items: Vec<T>,
        end: impl Fn(usize) -> usize,
        work: impl Fn(usize, T) + Sync,
    ) {
        if self.0.workers.is_empty() || items.len() < 2 {
            return items.into_iter().for_each(|item| work(0, item));
        }
        let items: Vec<Mutex<Option<T>>> =
            items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.share_parts(items.len(), 1, end, |thread, range| {
            for item in range.flat_map(|range| &items[range]) {
                if let Some(item) = lock(item).take() {
                    work(thread, item);
                }
            }
        });
    }

    /// Gives the items, one by one and in order, to whichever thread is free, with its index.
    ///
    /// Panics: as the work does, on whichever thread.
    pub fn each<T: Send>(
        &self,
        items: impl Iterator<Item = T> + Send,
        work: impl Fn(usize, T) + Sync,
    ) {
        let mut items = items;
        if self.0.workers.is_empty() || items.size_hint().1.is_some_and(|most| most < 2) {
            return items.for_each(|item| work(0, item));
        }
        let _turn = lock(&self.0.turn);
        let items = Mutex::new(&mut items);
        self.lend(&|thread| {
            loop {
                let item = lock(&items).next();
                match item {
                    Some(item) => work(thread, item),
                    None => return,
                }
            }
        });
    }

    /// Runs a job on this thread and on those that come while it runs; needs the turn.
    fn lend(&self, job: Job<'_>) {
        let shared = &*self.0.shared;
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            // Under the lock, so that no thread that just looked goes to sleep afterwards.
            drop(lock(&shared.sleep));
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut turns = 0;
        while shared.state.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            turns += 1;
            match turns > SPINS {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
        let has_panicked = shared.has_panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!has_panicked, "a compute job panicked");
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A thread ends by itself; its panics were told by `lend`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(state) = self.next(seen) {
            seen = state >> 32;
            if self.join(state) {
                // SAFETY: this thread is counted in `state`, and `lend` keeps the job alive, and
                // does not return nor unwind, until nobody is.
                let job = unsafe { *self.job.load(Ordering::Relaxed).cast::<Job<'_>>() };
                if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
                    self.has_panicked.store(true, Ordering::Relaxed);
                }
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Counts this thread in, if the job of that state is still open.
    fn join(&self, state: u64) -> bool {
        let mut now = state;
        while now >> 32 == state >> 32 && now & OPEN != 0 {
            match self.state.compare_exchange_weak(
                now,
                now + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(other) => now = other,
            }
        }
        false
    }

    /// Waits for a job other than the one `seen`; none: there will be no more.
    fn next(&self, seen: u64) -> Option<u64> {
        let look = || {
            let state = self.state.load(Ordering::SeqCst);
            let is_ending = self.is_ending.load(Ordering::SeqCst);
            (state >> 32 != seen || is_ending).then_some((!is_ending).then_some(state))
        };
        for turn in 0..SPINS + YIELDS {
            if let Some(found) = look() {
                return found;
            }
            match turn < SPINS {
                true => std::hint::spin_loop(),
                false => std::thread::yield_now(),
            }
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            match look() {
                Some(found) => break found,
                None => guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
            }
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

/// The items of a job that a thread works on.
#[derive(Debug)]
pub struct Items<'a>(Left<'a>);

/// What is left of them.
#[derive(Debug)]
enum Left<'a> {
    /// All of them, at once.
    All(Option<Range<usize>>),
    /// Some at a time, as long as no other thread has taken them.
    Shared {
        /// What is left of each thread's part.
        parts: &'a [Part],
        /// The thread.
        thread: usize,
        /// How many at a time.
        grain: usize,
    },
}

impl Iterator for Items<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        match &mut self.0 {
            Left::All(items) => items.take(),
            Left::Shared { parts, thread, grain } => claim(parts, *thread, *grain),
        }
    }
}

/// Takes items: from the front of the thread's own part, or else from the end of another's.
fn claim(parts: &[Part], thread: usize, grain: usize) -> Option<Range<usize>> {
    let count = parts.len();
    (0..count).find_map(|offset| {
        let part = &parts[(thread + offset) % count].0;
        let mut left = part.load(Ordering::Relaxed);
        loop {
            let (start, end) = ((left >> 32) as usize, left as u32 as usize);
            if start >= end {
                return None;
            }
            let size = grain.min(end - start);
            let (taken, kept) = match offset {
                0 => (start..start + size, pack(start + size, end)),
                _ => (end - size..end, pack(start, end - size)),
            };
            let order = Ordering::Relaxed;
            match part.compare_exchange_weak(left, kept, order, order) {
                Ok(_) => return Some(taken),
                Err(other) => left = other,
            }
        }
    })
}

fn pack(start: usize, end: usize) -> u64 {
    (start as u64) << 32 | end as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
