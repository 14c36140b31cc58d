//! What the server says of itself and its models, in the messages of the gRPC protocol; every
//! door writes them its own way.

use engine::{Error, ErrorKind, Result};
use proto::inference::*;

use crate::serving::shared::Shared;

/// The extensions that work, by Triton's names; clients and tools look them up here.
const EXTENSIONS: [&str; 13] = [
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
];

/// Returns ServerMetadata.
pub(crate) fn server(shared: &Shared) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: shared.server_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).to_vec(),
    }
}

/// Returns whether the server takes requests and every model is ready.
pub(crate) fn server_ready(shared: &Shared) -> bool {
    shared.models.are_ready() && !shared.is_ending()
}

/// Returns ModelReady: an unknown or loading model is not ready, a broken version is an error.
pub(crate) fn model_ready(shared: &Shared, name: &str, version: &str) -> Result<bool> {
    match shared.models.get(name, version) {
        Ok(model) => Ok(model.is_ready() && !shared.is_ending()),
        Err(error) if error.kind() == ErrorKind::InvalidRequest => Err(error),
        Err(_) => Ok(false),
    }
}

/// Returns ModelMetadata.
pub(crate) fn model(shared: &Shared, name: &str, version: &str) -> Result<ModelMetadataResponse> {
    let model = shared.models.get(name, version)?;
    let all = shared.models.matching(name, version)?;
    let versions: Vec<&str> = all.iter().map(|model| &*model.version).collect();
    Ok(tensor::metadata::encode(&model.config, &versions))
}

/// Returns ModelConfig.
pub(crate) fn config(shared: &Shared, name: &str, version: &str) -> Result<ModelConfig> {
    Ok(shared.models.get(name, version)?.declared.clone())
}

/// Returns ModelStatistics of one model or all, of one version or all; an unknown one is an
/// invalid request, as in Triton.
pub(crate) fn statistics(
    shared: &Shared,
    name: &str,
    version: &str,
) -> Result<ModelStatisticsResponse> {
    let unavailable = |_| match shared.models.get(name, "") {
        Ok(_) => Error::invalid(format!(
            "requested model version is not available for model '{name}', got '{version}'"
        )),
        Err(_) => Error::invalid(format!("requested model '{name}' is not available")),
    };
    let models = match name {
        "" => shared.models.ready(),
        name => shared.models.matching(name, version).map_err(unavailable)?,
    };
    let read = |model: &std::sync::Arc<crate::models::registry::Model>| {
        model.statistics.read(&model.name, &model.version)
    };
    Ok(ModelStatisticsResponse { model_stats: models.iter().map(read).collect() })
}

/// Returns RepositoryIndex.
pub(crate) async fn index(
    shared: &Shared,
    repository: &str,
    ready_only: bool,
) -> Result<RepositoryIndexResponse> {
    own_repository(repository)?;
    let repository = shared.repository.clone();
    let lines = tokio::task::spawn_blocking(move || repository.index(ready_only)).await;
    let lines = lines.map_err(|error| Error::internal("no index").with_source(error))?;
    let models = lines.into_iter().map(|line| repository_index_response::ModelIndex {
        name: line.name,
        version: line.version,
        state: line.state.to_owned(),
        reason: line.reason,
    });
    Ok(RepositoryIndexResponse { models: models.collect() })
}

/// Refuses the name of a repository: there is one, without a name.
pub(crate) fn own_repository(name: &str) -> Result<()> {
    match name {
        "" => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Unimplemented,
            "'repository_name' specification is not supported",
        )),
    }
}
