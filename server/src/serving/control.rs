//! What clients change of a running server: its models, its tracing, its log. In the messages of
//! the gRPC protocol; every door writes them its own way.

use std::collections::BTreeMap;

use engine::{Error, Result};
use proto::inference::*;

use crate::models::repository::{Overrides, check_unload};
use crate::serving::catalog::own_repository;
use crate::serving::shared::Shared;
use crate::support::telemetry::LogValue;

/// Loads a model, or loads it anew; returns its name.
pub(crate) async fn load(shared: &Shared, request: RepositoryModelLoadRequest) -> Result<String> {
    let RepositoryModelLoadRequest { repository_name, model_name, parameters } = request;
    shared.admit_change()?;
    let model_name = named(repository_name, model_name)?;
    let overrides = Overrides::read(&model_name, parameters)?;
    shared.repository.load(&model_name, overrides).await?;
    Ok(model_name)
}

/// Unloads a model; returns its name.
pub(crate) async fn unload(
    shared: &Shared,
    request: RepositoryModelUnloadRequest,
) -> Result<String> {
    let RepositoryModelUnloadRequest { repository_name, model_name, parameters } = request;
    let model_name = named(repository_name, model_name)?;
    check_unload(&parameters)?;
    shared.repository.unload(&model_name).await?;
    Ok(model_name)
}

/// Returns the name of the model that a request means. KServe's own requests have it where
/// Triton's have the repository's, and nothing else.
fn named(repository: String, model: String) -> Result<String> {
    if model.is_empty() && !repository.is_empty() {
        return Ok(repository);
    }
    own_repository(&repository).map(|()| model)
}

/// Changes trace settings, of the server or of one model, and returns all of them.
///
/// Errors: a model that is not served, settings that are refused.
pub(crate) fn trace_setting(
    shared: &Shared,
    request: TraceSettingRequest,
) -> Result<TraceSettingResponse> {
    let TraceSettingRequest { settings, model_name } = request;
    if !model_name.is_empty() && shared.models.get(&model_name, "").is_err() {
        // Triton's sentence, with its space.
        return Err(Error::invalid(format!("Request for unknown model : {model_name}")));
    }
    let changes = settings.into_iter().map(|(key, setting)| (key, setting.value)).collect();
    let now: BTreeMap<_, _> = shared.traces.change(&model_name, changes)?;
    let wire = |(key, value)| (key, trace_setting_response::SettingValue { value });
    Ok(TraceSettingResponse { settings: now.into_iter().map(wire).collect() })
}

/// Changes log settings and returns all of them.
///
/// Errors: settings that are refused.
pub(crate) fn log_settings(
    shared: &Shared,
    request: LogSettingsRequest,
) -> Result<LogSettingsResponse> {
    use log_settings_request::setting_value::ParameterChoice as Asked;
    use log_settings_response::SettingValue;
    use log_settings_response::setting_value::ParameterChoice as Told;
    let read = |choice| match choice {
        Asked::BoolParam(value) => LogValue::Bool(value),
        Asked::Uint32Param(value) => LogValue::Number(value),
        Asked::StringParam(value) => LogValue::Text(value),
    };
    let changes = request.settings.into_iter();
    let changes = changes.map(|(key, value)| (key, value.parameter_choice.map(read))).collect();
    shared.logging.change(changes)?;
    let wire = |(key, value): (&str, LogValue)| {
        let choice = match value {
            LogValue::Bool(value) => Told::BoolParam(value),
            LogValue::Number(value) => Told::Uint32Param(value),
            LogValue::Text(value) => Told::StringParam(value),
        };
        (key.to_owned(), SettingValue { parameter_choice: Some(choice) })
    };
    Ok(LogSettingsResponse { settings: shared.logging.settings().into_iter().map(wire).collect() })
}
