//! Load metrics in a response's header, for gateways that ask for them (ORCA).

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::models::registry::Models;

/// The header by which a client asks, with `text` or `json`.
const WANTED: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");

/// The header with the answer.
const METRICS: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// Adds the load of the text models to a response's headers, if the request's ask for it: the
/// share of the KV cache in use, and the tokens that it can hold.
pub(crate) fn add(asked: &HeaderMap, models: &Models, headers: &mut HeaderMap) {
    let Some(format) = asked.get(WANTED).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let (mut used, mut total, mut tokens) = (0u64, 0u64, 0u64);
    // An adapter's engine is its base's.
    let ready = models.ready();
    let own = ready.iter().filter(|model| model.parent.is_none());
    for load in own.filter_map(|model| model.load.as_ref()) {
        let load = load();
        used += u64::from(load.used_blocks);
        total += u64::from(load.total_blocks);
        tokens += u64::from(load.total_blocks) * u64::from(load.block_tokens);
    }
    let utilization = if total == 0 { 0.0 } else { used as f64 / total as f64 };
    let text = match format.to_ascii_lowercase().as_str() {
        "text" => format!(
            "TEXT named_metrics.kv_cache_utilization={utilization:.6}, \
             named_metrics.max_token_capacity={tokens}"
        ),
        "json" => format!(
            "JSON {{\"named_metrics\": {{\"kv_cache_utilization\": {utilization:.6}, \
             \"max_token_capacity\": {tokens}}}}}"
        ),
        _ => return,
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(METRICS, value);
    }
}
