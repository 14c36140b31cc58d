//! From a wire request to a call of a model's engine: look up, decode, check, start.
//!
//! Everything that can be known to be wrong is found here, before any engine sees the request.

use std::sync::Arc;
use std::time::Instant;

use engine::{Context, Error, ErrorKind, InferRequest, OutputStream, RequestedOutput, Result};
use proto::Envelope;
use proto::inference::model_config::SchedulingChoice;
use proto::inference::model_infer_request::InferInputTensor;
use tensor::request::WireInputs;
use tensor::{Parameters, Payload, Tensor, parameters};

use super::heavy;
use super::options::Options;
use super::outputs::Outputs;
use crate::models::registry::Model;
use crate::security::Grant;
use crate::serving::shared::Shared;
use crate::support::buffers::Held;
use crate::support::shared_memory::{Place, Region, Regions};

/// A request as a door decoded it.
pub(crate) struct Asked {
    pub envelope: Envelope,
    /// The memory that it takes besides its raw inputs, if that is much.
    pub held: Option<Held>,
    /// What the caller may do.
    pub grant: Grant,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// Parameters that the client sent as headers; the request's own come first.
    pub forwarded: Parameters,
    /// The `traceparent` header, the caller's span.
    pub parent: Option<Arc<str>>,
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
    /// What the client wants done with the outputs.
    pub outputs: Outputs,
    /// The memory of the request.
    pub held: Option<Held>,
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
    /// Checks a request; what is large does so while other threads take over this one's tasks.
    pub(crate) fn prepare(
        shared: &Shared,
        asked: Asked,
    ) -> std::result::Result<Self, Box<Refusal>> {
        let bytes = asked.held.as_ref().map_or(0, Held::bytes);
        heavy(bytes, || Self::check(shared, asked))
    }

    fn check(shared: &Shared, mut asked: Asked) -> std::result::Result<Self, Box<Refusal>> {
        let (deadline, parent) = (asked.deadline, asked.parent.clone());
        let held = asked.held.take();
        let wire = &asked.envelope.message;
        let id = wire.id.clone();
        let refuse = |model: Option<Arc<Model>>, error: Error| {
            Box::new(Refusal { model, id: id.clone(), error })
        };
        let grant = asked.grant.clone();
        grant.allows_model(&wire.model_name).map_err(|error| refuse(None, error))?;
        let model = shared
            .models
            .get(&wire.model_name, &wire.model_version)
            .map_err(|error| refuse(None, error))?;
        if asked.is_unary && !model.is_foldable() {
            let error = Error::new(
                ErrorKind::Unimplemented,
                "ModelInfer RPC doesn't support models with decoupled transaction policy",
            );
            return Err(refuse(Some(model), error));
        }
        match decode(&model, asked, &shared.regions) {
            Ok(Decoded { request, options, outputs }) => {
                let context = Context::new(id.as_str())
                    .with_deadline(deadline)
                    .with_priority(options.priority)
                    .with_trace_parent(parent)
                    .with_meter(grant.meter());
                let batch = batch_size(&model, &request);
                let wants_empty_final = options.wants_empty_final;
                Ok(Self { model, id, batch, wants_empty_final, outputs, held, request, context })
            }
            Err(error) => {
                let error = with_id(&id, error);
                Err(refuse(Some(model), error))
            }
        }
    }

    /// Starts the request at its engine.
    pub(crate) async fn start(
        model: Arc<Model>,
        request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let id = context.clone();
        // Sequences are checked on the way to the engine; other errors are a model's own words.
        let scheduling = model.declared.scheduling_choice.as_ref();
        let is_checked = matches!(scheduling, Some(SchedulingChoice::SequenceBatching(_)));
        model.engine.call(request, context).await.map_err(|error| match error.kind() {
            ErrorKind::InvalidRequest if is_checked => with_id(id.id(), error),
            _ => error,
        })
    }

    /// Returns the checked inputs.
    pub(crate) fn inputs(&self) -> &[Tensor] {
        &self.request.inputs
    }

    /// Returns what travels with the request.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Returns what `start` takes.
    pub(crate) fn into_parts(self) -> (Arc<Model>, InferRequest, Context) {
        (self.model, self.request, self.context)
    }
}

/// A request taken apart.
struct Decoded {
    request: InferRequest,
    options: Options,
    outputs: Outputs,
}

fn decode(model: &Model, asked: Asked, regions: &Regions) -> Result<Decoded> {
    let Asked { envelope, forwarded, is_unary, .. } = asked;
    let Envelope { message: mut wire, payloads } = envelope;
    let mut parameters = parameters::decode(std::mem::take(&mut wire.parameters))?;
    let options = Options::take(&mut parameters)?;
    for (key, value) in forwarded {
        parameters.entry(key).or_insert(value);
    }
    let requested = std::mem::take(&mut wire.outputs)
        .into_iter()
        .map(|output| {
            let parameters = parameters::decode(output.parameters)?;
            Ok(RequestedOutput { name: output.name, parameters })
        })
        .collect::<Result<Vec<_>>>()?;
    let (lent, held) = lent(&model.name, &wire.inputs, regions)?;
    let outputs = Outputs::read(&model.config, &requested, regions, held)?;
    let wire = WireInputs { inputs: wire.inputs, payloads, lent };
    let mut inputs = tensor::request::decode_inputs(&model.config, wire)?;
    if let Some(text) = &model.text {
        text.texts.bridge.normalize(&mut inputs);
    }
    let names = requested.iter().map(|output| output.name.as_str());
    model.config.validate(&inputs, names)?;
    let sequence = options.sequence.clone();
    let request = InferRequest { inputs, outputs: requested, parameters, sequence, is_unary };
    Ok(Decoded { request, options, outputs })
}

/// The data of inputs by input, and the regions that hold it; both empty when none is in one.
type ShmInputs = (Vec<Option<Payload>>, Vec<Arc<Region>>);

/// Returns the data of the inputs that lie in shared memory.
fn lent(model: &str, inputs: &[InferInputTensor], regions: &Regions) -> Result<ShmInputs> {
    let mut held = Vec::new();
    if inputs.iter().all(|input| input.parameters.is_empty()) {
        return Ok((Vec::new(), held));
    }
    let mut load = |input: &InferInputTensor| {
        let parameters = parameters::decode(input.parameters.clone())?;
        let place = Place::read("input", &input.name, &parameters)?;
        if place.is_some() && input.contents.is_some() {
            return Err(Error::invalid(format!(
                "unexpected 'content' provided when using shared memory for input tensor '{}' for \
                 model '{model}'",
                input.name
            )));
        }
        let Some(place) = place else { return Ok(None) };
        let region = regions.find(&place)?;
        let payload = region.load(&place)?;
        held.push(region);
        Ok(Some(payload))
    };
    let payloads = inputs.iter().map(&mut load).collect::<Result<_>>()?;
    Ok((payloads, held))
}

/// Puts the request's id before a message about its content, as Triton does.
fn with_id(id: &str, error: Error) -> Error {
    let shown = if id.is_empty() { "<id_unknown>" } else { id };
    error.with_prefix(&format!("[request id: {shown}] "))
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
