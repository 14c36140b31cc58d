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
        let progress = Progress::new(&self.name, count, Instant::now());
        let work = || {
            while !has_failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = results.get(index) else {
                    return;
                };
                let result = job(index);
                has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                *place.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(result);
                progress.step(Instant::now());
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
    fn new(name: &'a str, count: usize, started: Instant) -> Self {
        Self { name, count, done: AtomicUsize::new(0), started, reported: Mutex::new(started) }
    }

    /// Counts a job that is done by now; logs if the last report is some time ago.
    fn step(&self, now: Instant) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever else holds the lock is reporting.
        let Ok(mut reported) = self.reported.try_lock() else {
            return;
        };
        if now.saturating_duration_since(*reported) >= REPORT_INTERVAL && done < self.count {
            *reported = now;
            let percent = 100 * done / self.count;
            let seconds = now.saturating_duration_since(self.started).as_secs();
            tracing::info!(model = self.name, percent, seconds, "loading");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write};
    use std::sync::Arc;

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;

    /// Keeps the events of this thread as lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    /// The fields of an event, one behind the other.
    struct Fields(String);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, " {field}={value:?}").unwrap();
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut fields = Fields(event.metadata().level().to_string());
            event.record(&mut fields);
            self.0.lock().unwrap().push(fields.0);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_long_load_says_every_two_seconds_how_far_it_has_come() {
        let (lines, started) = (Lines::default(), Instant::now());
        tracing::subscriber::with_default(lines.clone(), || {
            let progress = Progress::new("m", 8, started);
            // When each job is done; the last one is no news, since the model is then loaded.
            for millis in [100, 1999, 2000, 3999, 4500, 4600, 9000, 99_000] {
                progress.step(started + Duration::from_millis(millis));
            }
        });
        let told = |percent, seconds| {
            let level = Level::INFO;
            format!("{level} message=loading model=\"m\" percent={percent} seconds={seconds}")
        };
        // 2000 is the third of eight; 3999 is too soon behind it.
        assert_eq!(*lines.0.lock().unwrap(), [told(37, 2), told(62, 4), told(87, 9)]);
    }

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
