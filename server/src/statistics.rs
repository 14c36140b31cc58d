//! The counters of one model behind ModelStatistics: cumulative, cheap to add to.
//!
//! A success adds one to `success` with its whole time, and the parts to queue and compute; a
//! failure adds only to `fail`, as in Triton.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::inference::{InferStatistics, ModelStatistics, StatisticDuration};

/// A count and the nanoseconds spent.
#[derive(Debug, Default)]
struct Span {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Span {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    fn read(&self) -> Option<StatisticDuration> {
        Some(StatisticDuration {
            count: self.count.load(Relaxed),
            ns: self.nanoseconds.load(Relaxed),
        })
    }
}

/// Where the time of one successful request went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    /// From arrival to the last response.
    pub total: Duration,
    /// Decoding and checking the inputs.
    pub input: Duration,
    /// Waiting for a place in the engine's batch.
    pub queue: Duration,
    /// Encoding the responses.
    pub output: Duration,
}

/// The counters of one model.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    last_inference_ms: AtomicU64,
    inferences: AtomicU64,
    executions: AtomicU64,
    success: Span,
    fail: Span,
    queue: Span,
    input: Span,
    infer: Span,
    output: Span,
}

impl Statistics {
    /// Adds a request that got its whole answer; `batch` is its number of batch elements.
    pub(crate) fn succeeded(&self, timing: Timing, batch: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_inference_ms.store(now.as_millis() as u64, Relaxed);
        self.inferences.fetch_add(batch, Relaxed);
        self.executions.fetch_add(1, Relaxed);
        self.success.add(timing.total);
        self.queue.add(timing.queue);
        self.input.add(timing.input);
        self.output.add(timing.output);
        let infer = timing.total.saturating_sub(timing.input + timing.queue + timing.output);
        self.infer.add(infer);
    }

    /// Adds a request that failed or was cancelled after `time`.
    pub(crate) fn failed(&self, time: Duration) {
        self.fail.add(time);
    }

    /// Returns the counters as the wire has them.
    pub(crate) fn read(&self, name: &str, version: &str) -> ModelStatistics {
        ModelStatistics {
            name: name.to_owned(),
            version: version.to_owned(),
            last_inference: self.last_inference_ms.load(Relaxed),
            inference_count: self.inferences.load(Relaxed),
            execution_count: self.executions.load(Relaxed),
            inference_stats: Some(InferStatistics {
                success: self.success.read(),
                fail: self.fail.read(),
                queue: self.queue.read(),
                compute_input: self.input.read(),
                compute_infer: self.infer.read(),
                compute_output: self.output.read(),
                cache_hit: Some(StatisticDuration::default()),
                cache_miss: Some(StatisticDuration::default()),
            }),
            ..ModelStatistics::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_adds_only_to_fail_and_a_batch_counts_its_elements() {
        let statistics = Statistics::default();
        let ms = Duration::from_millis;
        let timing = Timing { total: ms(10), input: ms(1), queue: ms(2), output: ms(3) };
        statistics.succeeded(timing, 4);
        statistics.failed(ms(5));
        let read = statistics.read("m", "1");
        assert_eq!((read.inference_count, read.execution_count), (4, 1));
        let stats = read.inference_stats.unwrap();
        let pair = |d: Option<StatisticDuration>| d.map(|d| (d.count, d.ns / 1_000_000)).unwrap();
        assert_eq!(pair(stats.success), (1, 10));
        assert_eq!(pair(stats.fail), (1, 5));
        assert_eq!(pair(stats.queue), (1, 2));
        assert_eq!(pair(stats.compute_infer), (1, 4));
    }
}
