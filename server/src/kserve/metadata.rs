//! What the server says of itself and its models.

use engine::{Error, ErrorKind, Result};
use proto::inference::*;

use super::service::Shared;
use crate::models::{Models, State, VERSION};

/// The extensions that work, by Triton's names; clients and tools look them up here.
const EXTENSIONS: [&str; 5] =
    ["model_repository", "model_configuration", "binary_tensor_data", "parameters", "statistics"];

/// Returns ServerMetadata.
pub(super) fn server(shared: &Shared) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: shared.server_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// Returns ModelReady: an unknown or loading model is not ready, a broken version is an error.
pub(super) fn model_ready(
    shared: &Shared,
    request: &ModelReadyRequest,
) -> Result<ModelReadyResponse> {
    match shared.models.get(&request.name, &request.version) {
        Ok(model) => Ok(ModelReadyResponse { ready: model.is_ready() && shared.admit().is_ok() }),
        Err(error) if error.kind() == ErrorKind::InvalidRequest => Err(error),
        Err(_) => Ok(ModelReadyResponse { ready: false }),
    }
}

/// Returns ModelMetadata.
pub(super) fn model(
    models: &Models,
    request: &ModelMetadataRequest,
) -> Result<ModelMetadataResponse> {
    let model = models.get(&request.name, &request.version)?;
    Ok(tensor::metadata::encode(&model.config, &[VERSION]))
}

/// Returns ModelConfig.
pub(super) fn config(models: &Models, request: &ModelConfigRequest) -> Result<ModelConfigResponse> {
    let model = models.get(&request.name, &request.version)?;
    Ok(ModelConfigResponse { config: Some(tensor::metadata::config(&model.config)) })
}

/// Returns ModelStatistics of one model or all; an unknown one is an invalid request, as in
/// Triton.
pub(super) fn statistics(
    models: &Models,
    request: &ModelStatisticsRequest,
) -> Result<ModelStatisticsResponse> {
    let unavailable = |_| {
        Error::invalid(format!(
            "requested model '{}' is not available",
            [&request.name, ":", &request.version].concat().trim_end_matches(':')
        ))
    };
    let model_stats = if request.name.is_empty() {
        let ready = models.list().into_iter().filter_map(|(_, state)| match state {
            State::Ready(model) => Some(model),
            State::Loading => None,
        });
        ready.map(|model| model.statistics.read(&model.name, VERSION)).collect()
    } else {
        let model = models.get(&request.name, &request.version).map_err(unavailable)?;
        vec![model.statistics.read(&model.name, VERSION)]
    };
    Ok(ModelStatisticsResponse { model_stats })
}

/// Returns RepositoryIndex.
pub(super) fn index(
    models: &Models,
    request: &RepositoryIndexRequest,
) -> Result<RepositoryIndexResponse> {
    if !request.repository_name.is_empty() {
        let text = "'repository_name' specification is not supported";
        return Err(Error::new(ErrorKind::Unimplemented, text));
    }
    let entry = |(name, state)| {
        let state = match state {
            State::Ready(model) if model.is_ready() => "READY",
            _ if request.ready => return None,
            State::Ready(_) => "UNAVAILABLE",
            State::Loading => "LOADING",
        };
        Some(repository_index_response::ModelIndex {
            name,
            version: VERSION.to_owned(),
            state: state.to_owned(),
            reason: String::new(),
        })
    };
    Ok(RepositoryIndexResponse { models: models.list().into_iter().filter_map(entry).collect() })
}
