//! The routes that read: health, metadata, configuration, statistics.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use proto::inference as wire;
use serde_json::{Map, Value, json};
use wire::model_metadata_response::TensorMetadata;

use super::answer::{Answer, Failure, body, json_with};
use super::{ModelPath, Rest};
use crate::models::declaration::to_json;
use crate::serving::catalog;

/// `GET /v2/health/live`
pub(super) async fn live() -> Response {
    body(&json!({ "live": true }))
}

/// `GET /v2/health/ready`
pub(super) async fn ready(State(rest): State<Rest>) -> Response {
    let ready = catalog::server_ready(&rest.shared);
    json_with(readiness(ready), &json!({ "ready": ready }))
}

/// `GET /v2/models/MODEL[/versions/VERSION]/ready`
pub(super) async fn model_ready(State(rest): State<Rest>, path: ModelPath) -> Answer {
    let ready = catalog::model_ready(&rest.shared, &path.model, &path.version)?;
    Ok(json_with(readiness(ready), &json!({ "name": path.model, "ready": ready })))
}

/// Triton answers 400 for what is not ready.
fn readiness(is_ready: bool) -> StatusCode {
    if is_ready { StatusCode::OK } else { StatusCode::BAD_REQUEST }
}

/// `GET /v2`
pub(super) async fn server(State(rest): State<Rest>) -> Response {
    let server = catalog::server(&rest.shared);
    body(&json!({
        "name": server.name,
        "version": server.version,
        "extensions": server.extensions,
    }))
}

/// `GET /v2/models/MODEL[/versions/VERSION]`
pub(super) async fn model(State(rest): State<Rest>, path: ModelPath) -> Answer {
    let model = catalog::model(&rest.shared, &path.model, &path.version)?;
    let tensor = |tensor: &TensorMetadata| json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape});
    Ok(body(&json!({
        "name": model.name,
        "versions": model.versions,
        "platform": model.platform,
        "inputs": model.inputs.iter().map(tensor).collect::<Vec<_>>(),
        "outputs": model.outputs.iter().map(tensor).collect::<Vec<_>>(),
    })))
}

/// `GET /v2/models/MODEL[/versions/VERSION]/config`
pub(super) async fn config(State(rest): State<Rest>, path: ModelPath) -> Answer {
    let config = catalog::config(&rest.shared, &path.model, &path.version)?;
    let json = to_json(&config).map_err(|error| Failure(engine::Error::internal(error)))?;
    Ok(body(&json))
}

/// `GET /v2/models/stats` and `GET /v2/models/MODEL[/versions/VERSION]/stats`
pub(super) async fn all_statistics(State(rest): State<Rest>) -> Answer {
    statistics(State(rest), ModelPath::default()).await
}

/// `GET /v2/models/MODEL[/versions/VERSION]/stats`
pub(super) async fn statistics(State(rest): State<Rest>, path: ModelPath) -> Answer {
    let found = catalog::statistics(&rest.shared, &path.model, &path.version)?;
    let models: Vec<Value> = found.model_stats.iter().map(model_statistics).collect();
    Ok(body(&json!({ "model_stats": models })))
}

fn model_statistics(model: &wire::ModelStatistics) -> Value {
    let duration = |duration: &Option<wire::StatisticDuration>| {
        let duration = duration.unwrap_or_default();
        json!({"count": duration.count, "ns": duration.ns})
    };
    let stats = model.inference_stats.unwrap_or_default();
    let parts = [
        ("success", &stats.success),
        ("fail", &stats.fail),
        ("queue", &stats.queue),
        ("compute_input", &stats.compute_input),
        ("compute_infer", &stats.compute_infer),
        ("compute_output", &stats.compute_output),
        ("cache_hit", &stats.cache_hit),
        ("cache_miss", &stats.cache_miss),
    ];
    let parts: Map<String, Value> =
        parts.into_iter().map(|(name, part)| (name.to_owned(), duration(part))).collect();
    let responses = model.response_stats.iter().map(|(index, response)| {
        let response = json!({
            "compute_infer": duration(&response.compute_infer),
            "compute_output": duration(&response.compute_output),
            "success": duration(&response.success),
            "fail": duration(&response.fail),
            "empty_response": duration(&response.empty_response),
            "cancel": duration(&response.cancel),
        });
        (index.clone(), response)
    });
    let responses: Map<String, Value> = responses.collect();
    let batches: Vec<Value> = model
        .batch_stats
        .iter()
        .map(|batch| {
            json!({
                "batch_size": batch.batch_size,
                "compute_input": duration(&batch.compute_input),
                "compute_infer": duration(&batch.compute_infer),
                "compute_output": duration(&batch.compute_output),
            })
        })
        .collect();
    json!({
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": parts,
        "response_stats": responses,
        "batch_stats": batches,
        "memory_usage": [],
    })
}
