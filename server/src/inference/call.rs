//! From a wire request to a call of a model's engine: look up, decode, check, start.
//!
//! Everything that can be known to be wrong is found here, before any engine sees the request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use engine::{Context, Error, ErrorKind, InferRequest, OutputStream, RequestedOutput, Result};
use proto::Envelope;
use proto::inference::InferParameter;
use tensor::request::WireInputs;
use tensor::{Parameter, Parameters};

use crate::models::{Model, Models};

/// A request as a door decoded it.
pub(crate) struct Asked {
    pub envelope: Envelope,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// The client takes exactly one response.
    pub is_unary: bool,
}

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
    /// Checks a request.
    pub(crate) fn prepare(
        models: &Models,
        asked: Asked,
    ) -> std::result::Result<Self, Box<Refusal>> {
        let Asked { envelope, deadline, is_unary } = asked;
        let wire = &envelope.message;
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
        match Self::decode(&model, envelope, is_unary) {
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
        envelope: Envelope,
        is_unary: bool,
    ) -> Result<(InferRequest, Options)> {
        let Envelope { message: mut wire, payloads } = envelope;
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
        let mut inputs = tensor::request::decode_inputs(
            &model.config,
            WireInputs { inputs: wire.inputs, payloads, lent: Vec::new() },
        )?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
