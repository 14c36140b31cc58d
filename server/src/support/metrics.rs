//! The server's Prometheus metrics: declared here, served by `admin/metrics.rs`.
//!
//! Units are seconds, bytes and counts; names end in their unit. Label values are bounded: a
//! model that is not served has no label of its own, so clients cannot make series.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use engine::{WorkerLoad, WorkerTotals};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of a finished request.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub rpc: &'static str,
    pub model: Arc<str>,
    pub code: &'static str,
}

/// Labels of a request under way.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RpcLabels {
    pub rpc: &'static str,
    pub model: Arc<str>,
}

/// Labels of a model.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ModelLabels {
    pub model: Arc<str>,
}

/// Labels of something that has several ways to go.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct WayLabels {
    pub model: Arc<str>,
    pub way: &'static str,
}

/// Labels of a listener.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ListenerLabels {
    pub listener: &'static str,
}

/// Labels of something that was not done, with the reason.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ReasonLabels {
    pub model: Arc<str>,
    pub reason: &'static str,
}

/// Upper bounds of a latency histogram, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency(&'static [f64]);

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// From the tens of microseconds of a small tensor to the minutes of a long text.
const DURATION: Latency = Latency(&[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
]);

/// From a mock engine's microseconds to a slow model's seconds.
const TOKEN: Latency = Latency(&[
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
]);

/// A counter: its name, what it counts, and where the count is.
type Total = (&'static str, &'static str, fn(&WorkerTotals) -> u64);

/// What a scheduler has done, as its counters are called.
const TOTALS: [Total; 13] = [
    ("engine_steps", "Forward passes", |t| t.steps),
    ("engine_batched_sequences", "Sequences of all forward passes", |t| t.batched_sequences),
    ("engine_prefill_tokens", "Tokens of prompts computed", |t| t.prefill_tokens),
    ("engine_decode_tokens", "Tokens computed one at a time", |t| t.decode_tokens),
    ("prefix_cache_query_tokens", "Tokens of prompts looked up", |t| t.prefix_query_tokens),
    ("prefix_cache_hit_tokens", "Tokens of prompts found", |t| t.prefix_hit_tokens),
    ("preempted_sequences", "Sequences that lost their blocks", |t| t.preemptions),
    ("draft_tokens", "Tokens guessed ahead", |t| t.drafted_tokens),
    ("draft_accepted_tokens", "Guessed tokens that were right", |t| t.accepted_tokens),
    ("kv_host_hit_blocks", "Blocks back from host memory", |t| t.host_hit_blocks),
    ("kv_disk_hit_blocks", "Blocks back from disk", |t| t.disk_hit_blocks),
    ("kv_imported_blocks", "Blocks of other workers in use here", |t| t.imported_blocks),
    ("kv_exported_blocks", "Blocks copied for other workers", |t| t.exported_blocks),
];

/// Reads what a scheduler has done, and knows how much of it was counted. What was done since then
/// is counted when nobody serves by it any more.
pub(crate) struct Totals {
    read: Box<dyn Fn() -> WorkerTotals + Send + Sync>,
    counted: Mutex<WorkerTotals>,
    counters: Vec<Counter>,
}

impl Totals {
    /// Adds what the scheduler has done since it was asked last: so versions of one model, and the
    /// same one loaded anew, count together and no counter ever falls.
    pub(crate) fn add_up(&self) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.read)();
        for ((_, _, value), counter) in TOTALS.iter().zip(&self.counters) {
            counter.inc_by(value(&now).saturating_sub(value(&counted)));
        }
        *counted = now;
    }
}

impl Drop for Totals {
    fn drop(&mut self) {
        self.add_up();
    }
}

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Totals").field("counted", &self.counted).finish_non_exhaustive()
    }
}

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub requests: Family<RequestLabels, Counter>,
    pub in_flight: Family<RpcLabels, Gauge>,
    pub duration: Family<RpcLabels, Histogram, Latency>,
    pub first_token: Family<ModelLabels, Histogram, Latency>,
    pub inter_token: Family<ModelLabels, Histogram, Latency>,
    pub prompt_tokens: Family<ModelLabels, Counter>,
    pub generated_tokens: Family<ModelLabels, Counter>,
    pub queue_depth: Family<ModelLabels, Gauge>,
    pub running: Family<ModelLabels, Gauge>,
    pub kv_blocks_used: Family<ModelLabels, Gauge>,
    pub kv_blocks: Family<ModelLabels, Gauge>,
    pub kv_blocks_cached: Family<ModelLabels, Gauge>,
    totals: [Family<ModelLabels, Counter>; TOTALS.len()],
    /// Texts that went on at another worker.
    pub migrations: Family<ModelLabels, Counter>,
    /// Texts of a model that has prefill workers, by who computes them.
    pub disaggregated: Family<WayLabels, Counter>,
    /// KV blocks that came from other workers, and prompts of which some did not come.
    pub transfer_blocks: Family<ModelLabels, Counter>,
    pub transfer_bytes: Family<ModelLabels, Counter>,
    pub transfer_seconds: Family<ModelLabels, Histogram, Latency>,
    pub transfer_fallbacks: Family<ReasonLabels, Counter>,
    /// A frontend's own requests that a worker failed.
    pub failed_canaries: Family<ModelLabels, Counter>,
    /// Requests of a frontend that a worker has, and those that wait for one.
    pub worker_calls: Gauge,
    pub worker_waits: Gauge,
    /// Calls of frontends that a worker works on.
    pub open_calls: Gauge,
    pub tasks: Gauge,
    /// What a frontend hears of workers' KV caches.
    pub kv_events: Family<ModelLabels, Counter>,
    pub kv_event_gaps: Family<ModelLabels, Counter>,
    pub kv_resyncs: Family<ModelLabels, Counter>,
    pub connections: Gauge,
    pub connections_waited: Family<ListenerLabels, Counter>,
    /// What requests of clients hold, and how many were refused because of that.
    pub buffered: Gauge,
    pub buffer_refusals: Counter,
    pub dropped_log_lines: Counter,
    pub uptime: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Returns what counts the connections that wait for a place of a listener.
    pub(crate) fn waited(&self, listener: &'static str) -> Counter {
        self.connections_waited.get_or_create_owned(&ListenerLabels { listener })
    }

    /// Makes the metrics and registers them under `stator_`.
    #[cfg(test)]
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self::named(registry, "stator")
    }

    /// Registers the metrics under names with this prefix.
    pub(crate) fn named(registry: &mut Registry, prefix: &str) -> Self {
        let metrics = Self {
            requests: Family::default(),
            in_flight: Family::default(),
            duration: Family::new_with_constructor(DURATION),
            first_token: Family::new_with_constructor(TOKEN),
            inter_token: Family::new_with_constructor(TOKEN),
            prompt_tokens: Family::default(),
            generated_tokens: Family::default(),
            queue_depth: Family::default(),
            running: Family::default(),
            kv_blocks_used: Family::default(),
            kv_blocks: Family::default(),
            kv_blocks_cached: Family::default(),
            totals: Default::default(),
            migrations: Family::default(),
            disaggregated: Family::default(),
            transfer_blocks: Family::default(),
            transfer_bytes: Family::default(),
            transfer_seconds: Family::new_with_constructor(TOKEN),
            transfer_fallbacks: Family::default(),
            failed_canaries: Family::default(),
            worker_calls: Gauge::default(),
            worker_waits: Gauge::default(),
            open_calls: Gauge::default(),
            tasks: Gauge::default(),
            kv_events: Family::default(),
            kv_event_gaps: Family::default(),
            kv_resyncs: Family::default(),
            connections: Gauge::default(),
            connections_waited: Family::default(),
            buffered: Gauge::default(),
            buffer_refusals: Counter::default(),
            dropped_log_lines: Counter::default(),
            uptime: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix(prefix);
        metrics.register(registry);
        metrics.register_handoffs(registry);
        metrics
    }

    /// Makes the reader of a model's scheduler that has counted nothing yet.
    pub(crate) fn totals(
        &self,
        labels: &ModelLabels,
        read: impl Fn() -> WorkerTotals + Send + Sync + 'static,
    ) -> Totals {
        let counters = self.totals.iter().map(|family| family.get_or_create(labels).clone());
        Totals { read: Box::new(read), counted: Mutex::default(), counters: counters.collect() }
    }

    /// Tells how busy the engines of a model are; none: it has none any more.
    pub(crate) fn set_load(&self, labels: &ModelLabels, load: Option<&WorkerLoad>) {
        let gauges = [
            &self.queue_depth,
            &self.running,
            &self.kv_blocks_used,
            &self.kv_blocks_cached,
            &self.kv_blocks,
        ];
        let Some(load) = load else {
            gauges.iter().for_each(|gauge| {
                gauge.remove(labels);
            });
            return;
        };
        let values = [
            load.waiting_requests,
            load.running_sequences,
            load.used_blocks,
            load.cached_blocks,
            load.total_blocks,
        ];
        for (gauge, value) in gauges.iter().zip(values) {
            gauge.get_or_create(labels).set(i64::from(value));
        }
    }

    fn register_handoffs(&self, r: &mut Registry) {
        let ways = "Texts of a model that has prefill workers, by who computes them";
        r.register("disaggregated_requests", ways, self.disaggregated.clone());
        let blocks = "KV blocks that came from other workers";
        r.register("kv_transfer_blocks", blocks, self.transfer_blocks.clone());
        let bytes = "Bytes of KV blocks that came from other workers";
        r.register("kv_transfer_bytes", bytes, self.transfer_bytes.clone());
        let seconds = "Seconds in which the KV blocks of a prompt came";
        r.register("kv_transfer_seconds", seconds, self.transfer_seconds.clone());
        let fallbacks = "Prompts of which KV blocks did not come, so that they are computed here";
        r.register("kv_transfer_fallbacks", fallbacks, self.transfer_fallbacks.clone());
    }

    fn register(&self, r: &mut Registry) {
        let requests = "Finished requests by RPC, model and gRPC code; CANCELLED is the client's";
        r.register("requests", requests, self.requests.clone());
        r.register("requests_in_flight", "Requests under way", self.in_flight.clone());
        let duration = "Seconds from a request's arrival to its last response";
        r.register("request_duration_seconds", duration, self.duration.clone());
        let first = "Seconds from a text request's start to its first token";
        r.register("time_to_first_token_seconds", first, self.first_token.clone());
        let inter = "Seconds between a continuation's tokens; coalesced tokens share their time";
        r.register("inter_token_seconds", inter, self.inter_token.clone());
        r.register("prompt_tokens", "Tokens of accepted prompts", self.prompt_tokens.clone());
        r.register("generated_tokens", "Tokens generated", self.generated_tokens.clone());
        let queue = "Text requests accepted and not yet scheduled";
        r.register("queue_depth_requests", queue, self.queue_depth.clone());
        r.register("running_sequences", "Sequences in the batch", self.running.clone());
        r.register("kv_blocks_used", "KV cache blocks in use", self.kv_blocks_used.clone());
        r.register("kv_blocks", "KV cache blocks there are", self.kv_blocks.clone());
        let cached = "KV cache blocks that are kept to be found again";
        r.register("kv_blocks_cached", cached, self.kv_blocks_cached.clone());
        for ((name, help, _), family) in TOTALS.iter().zip(&self.totals) {
            r.register(*name, *help, family.clone());
        }
        let migrations = "Texts that went on at another worker";
        r.register("migrations", migrations, self.migrations.clone());
        let canaries = "A frontend's own requests that a worker failed or did not answer";
        r.register("failed_canaries", canaries, self.failed_canaries.clone());
        let calls = "Requests of this frontend that a worker has";
        r.register("worker_calls", calls, self.worker_calls.clone());
        let waits = "Requests of this frontend that wait for a worker to come";
        r.register("worker_waits", waits, self.worker_waits.clone());
        r.register("open_calls", "Frontends' calls under way here", self.open_calls.clone());
        r.register("tasks", "Background tasks, connections among them", self.tasks.clone());
        let events = "Events of workers' KV caches that were heard in order";
        r.register("kv_events", events, self.kv_events.clone());
        let gaps = "Times when events of a worker's KV cache were found to be missing";
        r.register("kv_event_gaps", gaps, self.kv_event_gaps.clone());
        let resyncs = "Times when a worker told all that its KV cache holds";
        r.register("kv_resyncs", resyncs, self.kv_resyncs.clone());
        r.register("grpc_connections", "Open gRPC connections", self.connections.clone());
        let waited = "Connections that came when all places of a listener were taken";
        r.register("connections_waited", waited, self.connections_waited.clone());
        let buffered = "Memory that requests of clients hold";
        r.register("buffered_bytes", buffered, self.buffered.clone());
        let refusals = "Requests refused because others held all memory for buffers";
        r.register("buffer_refusals", refusals, self.buffer_refusals.clone());
        let dropped = "Lines of the log that nobody took in time";
        r.register("dropped_log_lines", dropped, self.dropped_log_lines.clone());
        r.register("uptime_seconds", "Seconds since the start", self.uptime.clone());
    }
}

#[cfg(test)]
mod tests;
