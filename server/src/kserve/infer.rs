//! From a wire request to a call of a model's engine: look up, decode, check, start.
//!
//! Everything that can be known to be wrong is found here, before any engine sees the request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Context, Error, ErrorKind, InferRequest, OutputStream, RequestedOutput, Result};
use proto::inference::{InferParameter, ModelInferRequest};
use tensor::{Parameter, Parameters};
use tonic::metadata::MetadataMap;

use crate::models::{Model, Models};

/// A request that passed every check.
pub(crate) struct Call {
    pub model: Arc<Model>,
    pub id: String,
    pub batch: u64,
    /// The client wants an empty last response of a decoupled model.
    pub wants_empty_final: bool,
    request: InferRequest,
    context: Context,
}

/// A request that failed a check, with what is known of it.
pub(crate) struct Refusal {
    pub model: Option<Arc<Model>>,
    pub id: String,
    pub error: Error,
}

impl Call {
    /// Checks a wire request.
    pub(crate) fn prepare(
        models: &Models,
        wire: ModelInferRequest,
        deadline: Option<Instant>,
        is_unary: bool,
    ) -> std::result::Result<Self, Box<Refusal>> {
        let id = wire.id.clone();
        let refuse = |model: Option<Arc<Model>>, error: Error| {
            Box::new(Refusal { model, id: id.clone(), error })
        };
        let model = models
            .get(&wire.model_name, &wire.model_version)
            .map_err(|error| refuse(None, error))?;
        if is_unary && !model.is_foldable() {
            let error = Error::new(
                ErrorKind::Unimplemented,
                "ModelInfer RPC doesn't support models with decoupled transaction policy",
            );
            return Err(refuse(Some(model), error));
        }
        match Self::decode(&model, wire, is_unary) {
            Ok((request, options)) => {
                let context = Context::new(id.as_str())
                    .with_deadline(deadline)
                    .with_priority(options.priority);
                let batch = batch_size(&model, &request);
                let wants_empty_final = options.wants_empty_final;
                Ok(Self { model, id, batch, wants_empty_final, request, context })
            }
            Err(error) => {
                let error = with_id(&id, error);
                Err(refuse(Some(model), error))
            }
        }
    }

    fn decode(
        model: &Model,
        mut wire: ModelInferRequest,
        is_unary: bool,
    ) -> Result<(InferRequest, Options)> {
        let mut parameters = tensor::parameters::decode(std::mem::take(&mut wire.parameters))?;
        let options = Options::take(&mut parameters)?;
        for input in &wire.inputs {
            offered("input", &input.name, &input.parameters)?;
        }
        let outputs = std::mem::take(&mut wire.outputs)
            .into_iter()
            .map(|output| {
                offered("output", &output.name, &output.parameters)?;
                let parameters = tensor::parameters::decode(output.parameters)?;
                Ok(RequestedOutput { name: output.name, parameters })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut inputs = tensor::request::decode_inputs(&model.config, wire)?;
        if let Some(bridge) = &model.text {
            bridge.normalize(&mut inputs);
        }
        let names = outputs.iter().map(|output| output.name.as_str());
        model.config.validate(&inputs, names)?;
        Ok((InferRequest { inputs, outputs, parameters, is_unary }, options))
    }

    /// Starts the request at its engine.
    pub(crate) async fn start(
        model: Arc<Model>,
        request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let id = context.clone();
        model.engine.call(request, context).await.map_err(|error| match error.kind() {
            ErrorKind::InvalidRequest => with_id(id.id(), error),
            _ => error,
        })
    }

    /// Returns when the client stops waiting.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.context.deadline()
    }

    /// Returns what `start` takes.
    pub(crate) fn into_parts(self) -> (Arc<Model>, InferRequest, Context) {
        (self.model, self.request, self.context)
    }
}

/// Puts the request's id before a message about its content, as Triton does.
fn with_id(id: &str, error: Error) -> Error {
    let shown = if id.is_empty() { "<id_unknown>" } else { id };
    error.with_prefix(&format!("[request id: {shown}] "))
}

/// Refuses what a tensor's parameters ask for and this server does not offer.
fn offered(what: &str, name: &str, parameters: &HashMap<String, InferParameter>) -> Result<()> {
    let unknown = [
        ("shared_memory_region", "has no shared memory; send tensors in the request"),
        ("classification", "does not classify outputs; ask for the output itself"),
    ];
    match unknown.into_iter().find(|(key, _)| parameters.contains_key(*key)) {
        None => Ok(()),
        Some((key, why)) => Err(Error::new(
            ErrorKind::Unimplemented,
            format!("{what} '{name}': parameter '{key}': this server {why}"),
        )),
    }
}

/// The request parameters that the protocol reserves.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    priority: u64,
    wants_empty_final: bool,
}

impl Options {
    /// Takes the reserved parameters out of a request's.
    fn take(parameters: &mut Parameters) -> Result<Self> {
        let mut options = Self::default();
        if let Some(value) = parameters.remove("triton_enable_empty_final_response") {
            options.wants_empty_final = boolean("triton_enable_empty_final_response", &value)?;
        }
        if let Some(value) = parameters.remove("priority") {
            options.priority = unsigned("priority", &value)?;
        }
        // The queue timeout binds only models with a queue policy that allows it, and no model
        // has one; sequences bind only sequence models. Both are checked, then dropped.
        if let Some(value) = parameters.remove("timeout") {
            unsigned("timeout", &value)?;
        }
        if let Some(value) = parameters.remove("sequence_id")
            && !matches!(value, Parameter::String(_))
        {
            unsigned("sequence_id", &value)?;
        }
        for key in ["sequence_start", "sequence_end"] {
            if let Some(value) = parameters.remove(key) {
                boolean(key, &value)?;
            }
        }
        match parameters.keys().find(|key| key.starts_with("triton_")) {
            None => Ok(options),
            Some(key) => Err(Error::invalid(format!(
                "parameter keys starting with 'triton_' are reserved for Triton usage \
                 and should not be specified, got '{key}'"
            ))),
        }
    }
}

fn boolean(key: &str, value: &Parameter) -> Result<bool> {
    match value {
        Parameter::Bool(value) => Ok(*value),
        _ => Err(Error::invalid(format!(
            "invalid value type for '{key}' parameter, expected bool_param."
        ))),
    }
}

fn unsigned(key: &str, value: &Parameter) -> Result<u64> {
    let number = match value {
        Parameter::Uint64(value) => Some(*value),
        Parameter::Int64(value) => u64::try_from(*value).ok(),
        _ => None,
    };
    number.ok_or_else(|| {
        Error::invalid(format!(
            "invalid value type for '{key}' parameter, \
             expected int64_param or uint64_param, not negative."
        ))
    })
}

/// Returns the number of batch elements, which is what `inference_count` counts.
fn batch_size(model: &Model, request: &InferRequest) -> u64 {
    let is_batched = model.config.max_batch_size > 0 || model.text.is_some();
    let first = request.inputs.iter().find(|i| model.text.is_none() || i.name == "text_input");
    let rows = first.and_then(|input| input.shape.first()).copied();
    match rows {
        Some(rows) if is_batched => rows.max(1) as u64,
        _ => 1,
    }
}

/// Returns the moment at which the client stops waiting, from the `grpc-timeout` header.
///
/// Errors: a header that does not follow the gRPC protocol.
pub(crate) fn deadline(metadata: &MetadataMap) -> Result<Option<Instant>> {
    let Some(value) = metadata.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    match parse_timeout(text) {
        Some(timeout) => Ok(Instant::now().checked_add(timeout)),
        None => Err(Error::invalid(format!("grpc-timeout: `{text}` is not a gRPC timeout"))),
    }
}

/// Reads "at most 8 digits and a unit", as the gRPC protocol over HTTP/2 writes a timeout.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let value: u64 = digits.parse().ok().filter(|_| is_number)?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let table = [
            ("100m", Some(Duration::from_millis(100))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2H", Some(Duration::from_secs(7200))),
            ("", None),
            ("m", None),
            ("5", None),
            ("-1m", None),
            ("123456789m", None),
            ("1é", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn reserved_parameters_are_taken_and_checked() {
        let mut parameters = Parameters::from([
            ("priority".to_owned(), Parameter::Uint64(3)),
            ("timeout".to_owned(), Parameter::Int64(1000)),
            ("sequence_id".to_owned(), Parameter::String("s".into())),
            ("triton_enable_empty_final_response".to_owned(), Parameter::Bool(true)),
            ("mine".to_owned(), Parameter::Double(0.5)),
        ]);
        let options = Options::take(&mut parameters).unwrap();
        assert_eq!((options.priority, options.wants_empty_final), (3, true));
        assert_eq!(parameters.keys().collect::<Vec<_>>(), ["mine"]);

        let table = [
            ("priority", Parameter::String("high".into()), "invalid value type for 'priority'"),
            ("timeout", Parameter::Int64(-1), "invalid value type for 'timeout'"),
            ("sequence_start", Parameter::Int64(1), "invalid value type for 'sequence_start'"),
            ("triton_mine", Parameter::Bool(true), "starting with 'triton_' are reserved"),
        ];
        for (key, value, expected) in table {
            let mut parameters = Parameters::from([(key.to_owned(), value)]);
            let error = Options::take(&mut parameters).unwrap_err();
            assert!(error.message().contains(expected), "{key}: {error}");
        }
    }
}
