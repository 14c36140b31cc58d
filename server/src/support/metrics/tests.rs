//! What the page of metrics says: every count under its own name, and no name that is not told.

use std::sync::atomic::Ordering;

use prometheus_client::encoding::text::encode;

use super::*;

/// Where each metric is explained.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");

/// Every metric with its kind, in the order of the page. Who reads them has these names in
/// dashboards and alerts, so one that changes is a change for them.
const METRICS: &str = "\
requests counter
requests_in_flight gauge
request_duration_seconds histogram
time_to_first_token_seconds histogram
inter_token_seconds histogram
prompt_tokens counter
generated_tokens counter
queue_depth_requests gauge
running_sequences gauge
kv_blocks_used gauge
kv_blocks gauge
kv_blocks_cached gauge
engine_steps counter
engine_batched_sequences counter
engine_prefill_tokens counter
engine_decode_tokens counter
prefix_cache_query_tokens counter
prefix_cache_hit_tokens counter
preempted_sequences counter
draft_tokens counter
draft_accepted_tokens counter
kv_host_hit_blocks counter
kv_disk_hit_blocks counter
kv_imported_blocks counter
kv_exported_blocks counter
migrations counter
failed_canaries counter
worker_calls gauge
worker_waits gauge
open_calls gauge
tasks gauge
kv_events counter
kv_event_gaps counter
kv_resyncs counter
grpc_connections gauge
connections_waited counter
buffered_bytes gauge
buffer_refusals counter
dropped_log_lines counter
uptime_seconds gauge
disaggregated_requests counter
kv_transfer_blocks counter
kv_transfer_bytes counter
kv_transfer_seconds histogram
kv_transfer_fallbacks counter
";

fn page(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

fn labels() -> ModelLabels {
    ModelLabels { model: "m".into() }
}

/// Checks that the page has these values of the model `m`.
fn has(registry: &Registry, expected: &[(&str, u32)]) {
    let page = page(registry);
    for (name, value) in expected {
        let line = format!("stator_{name}{{model=\"m\"}} {value}");
        assert!(page.lines().any(|found| found == line), "no `{line}` in:\n{page}");
    }
}

/// Gives every metric that has labels a first series, without which the page leaves it out. All
/// fields are named, so that nobody adds one that the list of metrics does not see.
fn touch(metrics: &Metrics) {
    let Metrics {
        requests,
        in_flight,
        duration,
        first_token,
        inter_token,
        prompt_tokens,
        generated_tokens,
        queue_depth,
        running,
        kv_blocks_used,
        kv_blocks,
        kv_blocks_cached,
        totals,
        migrations,
        disaggregated,
        transfer_blocks,
        transfer_bytes,
        transfer_seconds,
        transfer_fallbacks,
        failed_canaries,
        worker_calls: _,
        worker_waits: _,
        open_calls: _,
        tasks: _,
        kv_events,
        kv_event_gaps,
        kv_resyncs,
        connections: _,
        connections_waited,
        buffered: _,
        buffer_refusals: _,
        dropped_log_lines: _,
        uptime: _,
    } = metrics;
    let (model, rpc) = (labels().model, "r");
    let rpcs = RpcLabels { rpc, model: model.clone() };
    drop(requests.get_or_create(&RequestLabels { rpc, model: model.clone(), code: "OK" }));
    drop(in_flight.get_or_create(&rpcs));
    drop(duration.get_or_create(&rpcs));
    drop(disaggregated.get_or_create(&WayLabels { model: model.clone(), way: "w" }));
    drop(connections_waited.get_or_create(&ListenerLabels { listener: "l" }));
    drop(transfer_fallbacks.get_or_create(&ReasonLabels { model, reason: "r" }));
    for histogram in [first_token, inter_token, transfer_seconds] {
        drop(histogram.get_or_create(&labels()));
    }
    for gauge in [queue_depth, running, kv_blocks_used, kv_blocks, kv_blocks_cached] {
        drop(gauge.get_or_create(&labels()));
    }
    let tokens = [prompt_tokens, generated_tokens, migrations, failed_canaries];
    let blocks = [transfer_blocks, transfer_bytes, kv_events, kv_event_gaps, kv_resyncs];
    for counter in totals.iter().chain(tokens).chain(blocks) {
        drop(counter.get_or_create(&labels()));
    }
}

#[test]
fn the_page_has_these_metrics_and_the_document_explains_each() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    touch(&metrics);
    let page = page(&registry);
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE stator_"));
    let found: String = types.map(|line| format!("{line}\n")).collect();
    assert_eq!(found, METRICS);
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    for (name, kind) in METRICS.lines().filter_map(|line| line.split_once(' ')) {
        let ending = if kind == "counter" { "_total" } else { "" };
        let told = format!("`stator_{name}{ending}`");
        assert!(document.contains(&told), "docs/observability.md: no {told}");
    }
}

#[test]
fn every_count_of_a_scheduler_has_its_own_name() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let done = WorkerTotals {
        steps: 1,
        batched_sequences: 2,
        prefill_tokens: 3,
        decode_tokens: 4,
        prefix_query_tokens: 5,
        prefix_hit_tokens: 6,
        preemptions: 7,
        drafted_tokens: 8,
        accepted_tokens: 9,
        host_hit_blocks: 10,
        disk_hit_blocks: 11,
        imported_blocks: 12,
        exported_blocks: 13,
    };
    metrics.totals(&labels(), move || done).add_up();
    let expected = [
        ("engine_steps_total", 1),
        ("engine_batched_sequences_total", 2),
        ("engine_prefill_tokens_total", 3),
        ("engine_decode_tokens_total", 4),
        ("prefix_cache_query_tokens_total", 5),
        ("prefix_cache_hit_tokens_total", 6),
        ("preempted_sequences_total", 7),
        ("draft_tokens_total", 8),
        ("draft_accepted_tokens_total", 9),
        ("kv_host_hit_blocks_total", 10),
        ("kv_disk_hit_blocks_total", 11),
        ("kv_imported_blocks_total", 12),
        ("kv_exported_blocks_total", 13),
    ];
    assert_eq!(expected.len(), TOTALS.len());
    has(&registry, &expected);
}

#[test]
fn every_part_of_a_load_has_its_own_name() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let load = WorkerLoad {
        waiting_requests: 1,
        running_sequences: 2,
        used_blocks: 3,
        cached_blocks: 4,
        total_blocks: 5,
        block_tokens: 6,
    };
    metrics.set_load(&labels(), Some(&load));
    let expected = [
        ("queue_depth_requests", 1),
        ("running_sequences", 2),
        ("kv_blocks_used", 3),
        ("kv_blocks_cached", 4),
        ("kv_blocks", 5),
    ];
    has(&registry, &expected);
    metrics.set_load(&labels(), None);
    assert!(!page(&registry).contains("model=\"m\""), "a model without engines has no load");
}

#[test]
fn versions_of_a_model_count_together_and_never_back() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let labels = ModelLabels { model: "m".into() };
    let steps = || {
        let text = page(&registry);
        let line = text.lines().find(|line| line.starts_with("stator_engine_steps_total{"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let done = Arc::new(AtomicU64::new(100));
    let read = done.clone();
    let of = |steps| WorkerTotals { steps, ..WorkerTotals::default() };
    let one = metrics.totals(&labels, move || of(read.load(Ordering::Relaxed)));
    let two = metrics.totals(&labels, move || of(7));
    for _ in 0..2 {
        one.add_up();
        two.add_up();
        assert_eq!(steps(), 107);
    }
    done.store(130, Ordering::Relaxed);
    one.add_up();
    // A version that is loaded anew begins again, and what was done stays done.
    metrics.totals(&labels, move || of(3)).add_up();
    assert_eq!(steps(), 140);
    // What it does between the last scrape and its end counts too.
    done.store(150, Ordering::Relaxed);
    drop((one, two));
    assert_eq!(steps(), 160);
}
