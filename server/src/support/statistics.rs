//! The counters of one model behind ModelStatistics: cumulative, cheap to add to.
//!
//! A success adds one to `success` with its whole time, and the parts to queue and compute; a
//! failure adds only to `fail`, as in Triton. A request that is refused before it reaches the
//! engine adds to neither.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::inference::{
    InferResponseStatistics, InferStatistics, ModelStatistics, StatisticDuration,
};
use tonic::Code;

use crate::support::status;
use crate::support::status::FailureReason;

/// Responses of one request that are counted by their index. Later ones are not counted: the
/// length of an answer must not make the statistics grow without an end.
const MAX_RESPONSES: usize = 1024;

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

    fn read(&self) -> StatisticDuration {
        StatisticDuration { count: self.count.load(Relaxed), ns: self.nanoseconds.load(Relaxed) }
    }
}

/// A response of a decoupled model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Responded {
    /// It has outputs.
    Full { infer: Duration, output: Duration },
    /// It has none.
    Empty { infer: Duration },
    /// An error stands in its place.
    Failed { infer: Duration },
    /// The client left before it.
    Canceled { infer: Duration },
}

/// What the metrics read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    pub inferences: u64,
    pub executions: u64,
    pub success: StatisticDuration,
    pub queue: StatisticDuration,
    pub input: StatisticDuration,
    pub infer: StatisticDuration,
    pub output: StatisticDuration,
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
    /// By [`FailureReason`].
    failures: [AtomicU64; FailureReason::ALL.len()],
    /// By the index of the response; only of decoupled models.
    responses: Mutex<Vec<InferResponseStatistics>>,
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
    pub(crate) fn failed(&self, time: Duration, code: Code) {
        self.fail.add(time);
        self.failures[status::failure_reason(code) as usize].fetch_add(1, Relaxed);
    }

    /// Adds the response of a decoupled model with this index in its request.
    pub(crate) fn responded(&self, index: usize, response: Responded) {
        if index >= MAX_RESPONSES {
            return;
        }
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        if responses.len() <= index {
            responses.resize_with(index + 1, || {
                let none = Some(StatisticDuration::default());
                InferResponseStatistics {
                    compute_infer: none,
                    compute_output: none,
                    success: none,
                    fail: none,
                    empty_response: none,
                    cancel: none,
                }
            });
        }
        let of_index = &mut responses[index];
        match response {
            Responded::Full { infer, output } => {
                add(&mut of_index.compute_infer, infer);
                add(&mut of_index.compute_output, output);
                add(&mut of_index.success, infer + output);
            }
            Responded::Empty { infer } => {
                add(&mut of_index.compute_infer, infer);
                add(&mut of_index.empty_response, infer);
            }
            Responded::Failed { infer } => {
                add(&mut of_index.compute_infer, infer);
                add(&mut of_index.fail, infer);
            }
            Responded::Canceled { infer } => add(&mut of_index.cancel, infer),
        }
    }

    /// Returns how many requests failed, by [`FailureReason`].
    pub(crate) fn failures(&self) -> impl Iterator<Item = u64> {
        self.failures.iter().map(|count| count.load(Relaxed))
    }

    /// Returns what the metrics tell.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            inferences: self.inferences.load(Relaxed),
            executions: self.executions.load(Relaxed),
            success: self.success.read(),
            queue: self.queue.read(),
            input: self.input.read(),
            infer: self.infer.read(),
            output: self.output.read(),
        }
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
                success: Some(self.success.read()),
                fail: Some(self.fail.read()),
                queue: Some(self.queue.read()),
                compute_input: Some(self.input.read()),
                compute_infer: Some(self.infer.read()),
                compute_output: Some(self.output.read()),
                cache_hit: Some(StatisticDuration::default()),
                cache_miss: Some(StatisticDuration::default()),
            }),
            response_stats: self.responses(),
            ..ModelStatistics::default()
        }
    }

    fn responses(&self) -> std::collections::HashMap<String, InferResponseStatistics> {
        let responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        let named = responses.iter().enumerate().map(|(index, one)| (index.to_string(), *one));
        named.collect()
    }
}

fn add(sum: &mut Option<StatisticDuration>, time: Duration) {
    let sum = sum.get_or_insert_default();
    sum.count += 1;
    sum.ns += time.as_nanos() as u64;
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
        statistics.failed(ms(5), Code::Internal);
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
