//! The compute threads: named, counted, and parked when there is nothing to do.
//!
//! A job runs on every thread at once and `run` returns when all are done, so a job may borrow.
//! Threads spin for some microseconds between jobs, since a forward pass has hundreds, and then
//! park: on a shared machine spinning takes the core from whoever has work.
#![expect(unsafe_code, reason = "a job on the caller's stack is lent to the threads")]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Turns of a waiting loop before a thread parks or yields: some 20 microseconds.
const SPINS: u32 = 1500;

/// A job with its lifetime forgotten; see [`Pool::run`].
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: the job behind the pointer is `Sync`, and `Pool::run` keeps it alive while it is lent.
unsafe impl Send for Job {}

/// Compute threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: there is one at a time.
    turn: Mutex<()>,
}

struct Shared {
    job: Mutex<Option<Job>>,
    wake: Condvar,
    /// Counts the jobs; a change is the signal to look at `job`.
    epoch: AtomicUsize,
    running: AtomicUsize,
    has_panicked: AtomicBool,
    is_ending: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`run`](Pool::run) is the other one.
    ///
    /// Errors: the system gives no thread.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            wake: Condvar::new(),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || shared.work(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Returns how many threads a job runs on.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs a job once on each thread, with the thread's index, and returns when all are done.
    ///
    /// Panics: as the job does, on whichever thread.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _turn = lock(&self.turn);
        // SAFETY: only the lifetime is forgotten. The job is used by the threads while `running`
        // is above 0, and this function does not return, nor unwind, before that is over.
        let lent: Job = Job(unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job)
        });
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        {
            // Under the lock, so that no thread that just looked goes to sleep afterwards.
            let mut job = lock(&self.shared.job);
            *job = Some(lent);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        wait_until(|| self.shared.running.load(Ordering::Acquire) == 0);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!self.shared.has_panicked.swap(false, Ordering::Relaxed), "a compute job panicked");
    }

    /// Gives the items to whichever thread is free, with a state of that thread.
    pub fn each<T, S>(
        &self,
        items: impl Iterator<Item = T> + Send,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, T) + Sync,
    ) where
        T: Send,
    {
        let mut items = items;
        if self.workers.is_empty() || items.size_hint().1 == Some(1) {
            let mut state = state();
            return items.for_each(|item| work(&mut state, item));
        }
        let items = Mutex::new(&mut items);
        self.run(&|_| {
            let mut state = state();
            loop {
                let item = lock(&items).next();
                match item {
                    Some(item) => work(&mut state, item),
                    None => return,
                }
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        {
            let _job = lock(&self.shared.job);
            self.shared.epoch.fetch_add(1, Ordering::Release);
        }
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A thread ends by itself; its panics were told by `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let job = self.next(&mut seen);
            if self.is_ending.load(Ordering::Relaxed) {
                return;
            }
            if let Some(Job(job)) = job {
                // SAFETY: `run` lent the job and waits until `running` is 0.
                let job = unsafe { &*job };
                if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
                    self.has_panicked.store(true, Ordering::Relaxed);
                }
                self.running.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Waits for a job after the `seen` ones.
    fn next(&self, seen: &mut usize) -> Option<Job> {
        for _ in 0..SPINS {
            if self.epoch.load(Ordering::Acquire) != *seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut job = lock(&self.job);
        while self.epoch.load(Ordering::Acquire) == *seen {
            job = self.wake.wait(job).unwrap_or_else(PoisonError::into_inner);
        }
        *seen = self.epoch.load(Ordering::Acquire);
        *job
    }
}

/// Spins for a while, then yields the core between looks.
fn wait_until(is_over: impl Fn() -> bool) {
    let mut turns = 0;
    while !is_over() {
        turns += 1;
        match turns > SPINS {
            true => std::thread::yield_now(),
            false => std::hint::spin_loop(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::start(threads).unwrap();
            for count in [0, 1, 7, 1000] {
                let mut hits = vec![0u32; count];
                pool.each(hits.iter_mut(), || (), |(), hit| *hit += 1);
                assert!(hits.iter().all(|&hit| hit == 1), "{threads} threads, {count} items");
            }
        }
    }

    #[test]
    fn a_job_runs_on_all_threads_also_after_a_pause() {
        let pool = Pool::start(3).unwrap();
        for _ in 0..20 {
            let seen = Mutex::new(vec![0; 3]);
            pool.run(&|index| lock(&seen)[index] += 1);
            assert_eq!(*lock(&seen), [1, 1, 1]);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::start(2).unwrap();
        for guilty in [0, 1] {
            let job = |index: usize| assert_ne!(index, guilty);
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&job))).is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }
}
