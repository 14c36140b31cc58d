//! Reading and packing weights on several threads, and saying how far that has come.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Error;

/// How often a load that takes long says how far it has come.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// How a model's weights are read.
#[derive(Clone, Debug)]
pub struct Loading {
    /// Threads that read and pack, at least 1.
    pub threads: usize,
    /// What the reports call the model.
    pub name: String,
}

impl Loading {
    /// Does `count` jobs, given their numbers, and returns their results in order. Threads take
    /// the next job as they become free, so what is large should come first.
    ///
    /// Errors: the first error of any job; the others are then not begun.
    pub(super) fn each<T: Send>(
        &self,
        count: usize,
        job: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let next = AtomicUsize::new(0);
        let has_failed = AtomicBool::new(false);
        let results: Vec<Mutex<Option<Result<T, Error>>>> =
            (0..count).map(|_| Mutex::new(None)).collect();
        let progress = Progress::new(&self.name, count);
        let work = || {
            while !has_failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = results.get(index) else {
                    return;
                };
                let result = job(index);
                has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                *place.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(result);
                progress.step();
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(count) {
                // Where the system has no more threads, those that there are do the work.
                let _ = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, work);
            }
            work();
        });
        let results = results
            .into_iter()
            .map(|place| place.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let (done, failed): (Vec<_>, Vec<_>) = results.flatten().partition(Result::is_ok);
        match failed.into_iter().next() {
            Some(failed) => failed.map(|_| Vec::new()),
            None => done.into_iter().collect(),
        }
    }
}

/// How many jobs are done.
struct Progress<'a> {
    name: &'a str,
    count: usize,
    done: AtomicUsize,
    started: Instant,
    reported: Mutex<Instant>,
}

impl<'a> Progress<'a> {
    fn new(name: &'a str, count: usize) -> Self {
        let started = Instant::now();
        Self { name, count, done: AtomicUsize::new(0), started, reported: Mutex::new(started) }
    }

    /// Counts a job; logs if the last report is some time ago.
    fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever else holds the lock is reporting.
        let Ok(mut reported) = self.reported.try_lock() else {
            return;
        };
        if reported.elapsed() >= REPORT_INTERVAL && done < self.count {
            *reported = Instant::now();
            let (percent, seconds) = (100 * done / self.count, self.started.elapsed().as_secs());
            tracing::info!(model = self.name, percent, seconds, "loading");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_for_any_number_of_threads() {
        for threads in [1, 2, 5, 100] {
            let loading = Loading { threads, name: String::new() };
            let squares = loading.each(37, |index| Ok(index * index)).unwrap();
            assert_eq!(squares, (0..37).map(|index| index * index).collect::<Vec<_>>());
            assert!(loading.each(0, Ok).unwrap().is_empty());
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        for threads in [1, 3] {
            let begun = AtomicUsize::new(0);
            let loading = Loading { threads, name: String::new() };
            let error = loading.each(1000, |index| {
                begun.fetch_add(1, Ordering::Relaxed);
                if index >= 10 { Err(Error::Model(format!("{index}"))) } else { Ok(()) }
            });
            assert!(error.is_err());
            assert!(begun.into_inner() <= 10 + threads);
        }
    }
}
