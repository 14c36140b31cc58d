//! Triton's own metrics, which dashboards and autoscalers read: its names, labels and units.
//!
//! Triton's counters have no `_total`, which OpenMetrics asks of a counter, so their type is told
//! as `unknown`: Prometheus stores the same samples.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use crate::models::registry::Model;
use crate::support::status::FailureReason;

/// A metric of a version of a model: name, help, value.
type OfModel = (&'static str, &'static str, fn(&Model) -> u64);

const OF_MODELS: [OfModel; 13] = [
    ("nv_inference_request_success", "Successful inference requests", |m| {
        m.statistics.totals().success.count
    }),
    ("nv_inference_count", "Inferences performed, batch elements counted", |m| {
        m.statistics.totals().inferences
    }),
    ("nv_inference_exec_count", "Model executions performed", |m| m.statistics.totals().executions),
    ("nv_inference_request_duration_us", "Cumulative request duration in microseconds", |m| {
        m.statistics.totals().success.ns / 1000
    }),
    ("nv_inference_queue_duration_us", "Cumulative queue duration in microseconds", |m| {
        m.statistics.totals().queue.ns / 1000
    }),
    ("nv_inference_compute_input_duration_us", "Cumulative input duration in microseconds", |m| {
        m.statistics.totals().input.ns / 1000
    }),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute duration in microseconds",
        |m| m.statistics.totals().infer.ns / 1000,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative output duration in microseconds",
        |m| m.statistics.totals().output.ns / 1000,
    ),
    ("nv_cache_num_hits_per_model", "Response cache hits; there is no such cache", |_| 0),
    ("nv_cache_num_misses_per_model", "Response cache misses; there is no such cache", |_| 0),
    ("nv_cache_hit_duration_per_model", "Microseconds of response cache hits", |_| 0),
    ("nv_cache_miss_duration_per_model", "Microseconds of response cache misses", |_| 0),
    ("nv_inference_pending_request_count", "Requests that wait to be executed", |m| {
        m.load.as_ref().map_or(0, |load| load().waiting_requests.into())
    }),
];

/// The last of [`OF_MODELS`] is a gauge.
const GAUGE: &str = "nv_inference_pending_request_count";

/// The processor's time as it was read last: busy and all.
#[derive(Debug, Default)]
pub(crate) struct Processor(Mutex<(u64, u64)>);

impl Processor {
    /// Returns the share of its time that the machine worked since the last call.
    fn utilization(&self) -> Option<f64> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields = text.lines().next()?.split_whitespace().skip(1);
        // User, nice, system, idle, waiting for devices, interrupts, soft ones, stolen. What
        // follows is part of the first two.
        let times: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
        let all: u64 = times.iter().sum();
        let busy = all.saturating_sub(*times.get(3)? + *times.get(4)?);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (was_busy, was_all) = std::mem::replace(&mut *last, (busy, all));
        let passed = all.saturating_sub(was_all).max(1);
        Some((busy.saturating_sub(was_busy) as f64 / passed as f64).min(1.0))
    }
}

/// Returns the machine's memory in bytes: all, and what is in use.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let read = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let all = read("MemTotal:")?;
    Some((all, all.saturating_sub(read("MemAvailable:")?)))
}

/// Adds Triton's metrics to a page in the OpenMetrics text format, in front of its end mark.
pub(crate) fn add(page: &mut String, models: &[Arc<Model>], processor: &Processor) {
    let end = "# EOF\n";
    page.truncate(page.strip_suffix(end).map_or(page.len(), str::len));
    let labels: Vec<(String, String)> = models.iter().map(|model| labels(model)).collect();
    let head = |page: &mut String, name: &str, help: &str, kind: &str| {
        let _ = write!(page, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
    };
    for (name, help, value) in OF_MODELS {
        head(page, name, help, if name == GAUGE { "gauge" } else { "unknown" });
        for (model, (label, version)) in models.iter().zip(&labels) {
            let _ = writeln!(page, "{name}{{{label},{version}}} {}", value(model));
        }
    }
    let failure = "nv_inference_request_failure";
    head(page, failure, "Failed inference requests by reason", "unknown");
    for (model, (label, version)) in models.iter().zip(&labels) {
        for (reason, count) in FailureReason::ALL.iter().zip(model.statistics.failures()) {
            let reason = reason.name();
            let _ = writeln!(page, "{failure}{{{label},reason=\"{reason}\",{version}}} {count}");
        }
    }
    if let Some(share) = processor.utilization() {
        head(page, "nv_cpu_utilization", "Processor utilization from 0 to 1", "gauge");
        let _ = writeln!(page, "nv_cpu_utilization {share}");
    }
    if let Some((all, used)) = memory() {
        head(page, "nv_cpu_memory_total_bytes", "The machine's memory", "gauge");
        let _ = writeln!(page, "nv_cpu_memory_total_bytes {all}");
        head(page, "nv_cpu_memory_used_bytes", "The machine's memory in use", "gauge");
        let _ = writeln!(page, "nv_cpu_memory_used_bytes {used}");
    }
    page.push_str(end);
}

/// Returns the labels of a model: its name, and its version, which come in the order of their names.
fn labels(model: &Model) -> (String, String) {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    (
        format!("model=\"{}\"", escaped(&model.name)),
        format!("version=\"{}\"", escaped(&model.version)),
    )
}
