//! The routes that change something: models, shared memory, traces, logs.

use std::collections::HashMap;

use axum::extract::{Path, Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{Error, Result};
use proto::inference as wire;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use wire::model_repository_parameter::ParameterChoice;

use super::answer::{Answer, body, empty};
use super::{ModelPath, Rest};
use crate::serving::{catalog, control};
use crate::support::preparing;
use crate::surfaces::http::receive::{json, receive};

/// Reads the JSON body of a request.
async fn read<T: DeserializeOwned + Send + 'static>(rest: &Rest, request: Request) -> Result<T> {
    let received = receive(request, &rest.intake).await?;
    preparing::run(received.body.len(), move || json(&received)).await
}

/// `POST /v2/repository/index`
pub(super) async fn index(State(rest): State<Rest>, request: Request) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        ready: Option<Value>,
    }
    let Body { ready } = read(&rest, request).await?;
    let ready = match ready {
        None => false,
        Some(Value::Bool(ready)) => ready,
        Some(_) => {
            return Err(Error::invalid("Invalid value for 'ready': expected a boolean").into());
        }
    };
    let index = catalog::index(&rest.shared, "", ready).await?;
    let line = |line: &wire::repository_index_response::ModelIndex| {
        let mut object = Map::from_iter([("name".to_owned(), json!(line.name))]);
        let known = [("version", &line.version), ("state", &line.state), ("reason", &line.reason)];
        for (key, value) in known.into_iter().filter(|(_, value)| !value.is_empty()) {
            object.insert(key.to_owned(), json!(value));
        }
        Value::Object(object)
    };
    Ok(body(&index.models.iter().map(line).collect()))
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// `POST /v2/repository/models/MODEL/load`; files come as base64.
pub(super) async fn load(State(rest): State<Rest>, path: ModelPath, request: Request) -> Answer {
    let Parameters { parameters } = read(&rest, request).await?;
    let parameters = parameters.into_iter().map(|(key, value)| {
        let choice = match (key.starts_with("file:"), value) {
            (true, Value::String(text)) => {
                let content = STANDARD.decode(text).map_err(|error| {
                    let shown: String = key.chars().take(100).collect();
                    Error::invalid(format!("load parameter '{shown}' is not base64: {error}"))
                });
                Some(ParameterChoice::BytesParam(content?.into()))
            }
            (_, value) => choice(value),
        };
        Ok((key, wire::ModelRepositoryParameter { parameter_choice: choice }))
    });
    let request = wire::RepositoryModelLoadRequest {
        repository_name: String::new(),
        model_name: path.model,
        parameters: parameters.collect::<Result<_>>()?,
    };
    control::load(&rest.shared, request).await?;
    Ok(empty())
}

/// `POST /v2/repository/models/MODEL/unload`
pub(super) async fn unload(State(rest): State<Rest>, path: ModelPath, request: Request) -> Answer {
    let Parameters { parameters } = read(&rest, request).await?;
    if parameters.get("unload_dependents").is_some_and(|value| !value.is_boolean()) {
        return Err(Error::invalid("Unable to parse 'unload_dependents': expected a bool").into());
    }
    let parameters = parameters.into_iter().map(|(key, value)| {
        (key, wire::ModelRepositoryParameter { parameter_choice: choice(value) })
    });
    let request = wire::RepositoryModelUnloadRequest {
        repository_name: String::new(),
        model_name: path.model,
        parameters: parameters.collect(),
    };
    control::unload(&rest.shared, request).await?;
    Ok(empty())
}

/// Reads a repository parameter; none for what it cannot be, which is refused with its name.
fn choice(value: Value) -> Option<ParameterChoice> {
    match value {
        Value::Bool(value) => Some(ParameterChoice::BoolParam(value)),
        Value::String(value) => Some(ParameterChoice::StringParam(value)),
        Value::Number(number) => number.as_i64().map(ParameterChoice::Int64Param),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The name of a region in a route; none means all.
#[derive(Default, Deserialize)]
pub(super) struct RegionPath {
    #[serde(default)]
    region: String,
}

/// `GET /v2/systemsharedmemory[/region/REGION]/status`
pub(super) async fn system_status(
    State(rest): State<Rest>,
    Path(path): Path<RegionPath>,
) -> Answer {
    let regions = rest.shared.regions.system_status(&path.region)?;
    let shown = regions.iter().map(|region| {
        json!({
            "name": region.name,
            "key": region.key,
            "offset": region.offset,
            "byte_size": region.byte_size,
        })
    });
    Ok(body(&shown.collect()))
}

/// `POST /v2/systemsharedmemory/region/REGION/register`
pub(super) async fn system_register(
    State(rest): State<Rest>,
    Path(path): Path<RegionPath>,
    request: Request,
) -> Answer {
    #[derive(Deserialize)]
    struct Body {
        key: Option<String>,
        #[serde(default)]
        offset: u64,
        byte_size: Option<u64>,
    }
    let Body { key, offset, byte_size } = read(&rest, request).await?;
    let (key, byte_size) = (needed("key", key)?, needed("byte_size", byte_size)?);
    let name = path.region;
    let request = wire::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size };
    rest.shared.regions.register_system(&request)?;
    Ok(empty())
}

/// Returns a field that a register request has to have.
fn needed<T>(name: &str, value: Option<T>) -> engine::Result<T> {
    let text = || Error::invalid(format!("Shared memory register request has no '{name}' field"));
    value.ok_or_else(text)
}

/// `POST /v2/systemsharedmemory[/region/REGION]/unregister`
pub(super) async fn system_unregister(
    State(rest): State<Rest>,
    Path(path): Path<RegionPath>,
) -> Answer {
    rest.shared.regions.unregister_system(&path.region)?;
    Ok(empty())
}

/// `GET /v2/cudasharedmemory[/region/REGION]/status`
pub(super) async fn cuda_status(State(rest): State<Rest>, Path(path): Path<RegionPath>) -> Answer {
    let regions = rest.shared.regions.cuda_status(&path.region)?;
    let shown = regions.iter().map(|region| {
        json!({
            "name": region.name,
            "device_id": region.device_id,
            "byte_size": region.byte_size,
        })
    });
    Ok(body(&shown.collect()))
}

/// `POST /v2/cudasharedmemory/region/REGION/register`; the handle comes as base64.
pub(super) async fn cuda_register(
    State(rest): State<Rest>,
    Path(path): Path<RegionPath>,
    request: Request,
) -> Answer {
    #[derive(Deserialize)]
    struct Handle {
        b64: String,
    }
    #[derive(Deserialize)]
    struct Body {
        raw_handle: Option<Handle>,
        #[serde(default)]
        device_id: i64,
        byte_size: Option<u64>,
    }
    let Body { raw_handle, device_id, byte_size } = read(&rest, request).await?;
    let raw_handle = needed("raw_handle", raw_handle)?;
    let byte_size = needed("byte_size", byte_size)?;
    let raw_handle = STANDARD.decode(raw_handle.b64).map_err(|error| {
        Error::invalid(format!(
            "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t: {error}"
        ))
    })?;
    let request = wire::CudaSharedMemoryRegisterRequest {
        name: path.region,
        raw_handle: raw_handle.into(),
        device_id,
        byte_size,
    };
    rest.shared.regions.register_cuda(&request)?;
    Ok(empty())
}

/// `POST /v2/cudasharedmemory[/region/REGION]/unregister`
pub(super) async fn cuda_unregister(
    State(rest): State<Rest>,
    Path(path): Path<RegionPath>,
) -> Answer {
    rest.shared.regions.unregister_cuda(&path.region)?;
    Ok(empty())
}

/// `GET` and `POST /v2/trace/setting`
pub(super) async fn server_trace(State(rest): State<Rest>, request: Request) -> Answer {
    trace(&rest, String::new(), request).await
}

/// `GET` and `POST /v2/models/MODEL/trace/setting`
pub(super) async fn model_trace(
    State(rest): State<Rest>,
    path: ModelPath,
    request: Request,
) -> Answer {
    trace(&rest, path.model, request).await
}

async fn trace(rest: &Rest, model_name: String, request: Request) -> Answer {
    let given: Map<String, Value> = read(rest, request).await?;
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let mut settings = HashMap::new();
    for (key, value) in given {
        let wrong = || {
            let shown: String = key.chars().take(100).collect();
            Error::invalid(format!("trace setting '{shown}': expected a string, a list or null"))
        };
        let value = match value {
            // null takes a setting back to its default.
            Value::Null => Vec::new(),
            Value::Array(all) => {
                all.into_iter().map(text).collect::<Option<_>>().ok_or_else(wrong)?
            }
            one => vec![text(one).ok_or_else(wrong)?],
        };
        settings.insert(key, wire::trace_setting_request::SettingValue { value });
    }
    let request = wire::TraceSettingRequest { settings, model_name };
    let now = control::trace_setting(&rest.shared, request)?;
    let shown = |(key, setting): (String, wire::trace_setting_response::SettingValue)| {
        // The levels are a list; every other setting has one value.
        let value = match (key.as_str(), setting.value.first()) {
            ("trace_level", _) | (_, None) => json!(setting.value),
            (_, Some(value)) => json!(value),
        };
        (key, value)
    };
    Ok(body(&now.settings.into_iter().map(shown).collect()))
}

/// `GET` and `POST /v2/logging`
pub(super) async fn logging(State(rest): State<Rest>, request: Request) -> Answer {
    use wire::log_settings_request::setting_value::ParameterChoice as Asked;
    use wire::log_settings_response::setting_value::ParameterChoice as Told;
    let given: Map<String, Value> = read(&rest, request).await?;
    let settings = given.into_iter().map(|(key, value)| {
        let choice = match value {
            Value::Bool(value) => Some(Asked::BoolParam(value)),
            Value::String(value) => Some(Asked::StringParam(value)),
            Value::Number(number) => {
                number.as_u64().and_then(|n| u32::try_from(n).ok()).map(Asked::Uint32Param)
            }
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        (key, wire::log_settings_request::SettingValue { parameter_choice: choice })
    });
    let request = wire::LogSettingsRequest { settings: settings.collect() };
    let now = control::log_settings(&rest.shared, request)?;
    let shown = now.settings.into_iter().map(|(key, setting)| {
        let value = match setting.parameter_choice {
            Some(Told::BoolParam(value)) => json!(value),
            Some(Told::Uint32Param(value)) => json!(value),
            Some(Told::StringParam(value)) => json!(value),
            None => Value::Null,
        };
        (key, value)
    });
    Ok(body(&shown.collect()))
}
