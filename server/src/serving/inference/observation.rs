//! Counts one request from arrival to end, whichever way it ends.
//!
//! Dropped before its end, it counts as CANCELLED: the client went away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Context, Error, ErrorKind};
use openai_bridge::TextOutput;
use proto::Payload;
use tensor::Tensor;
use tonic::Code;

use super::Call;
use crate::models::registry::Model;
use crate::serving::shared::Shared;
use crate::support::buffers::Held;
use crate::support::metrics::{Metrics, RequestLabels, RpcLabels};
use crate::support::statistics::{Responded, Timing};
use crate::support::status;
use crate::support::trace::{Steps, Trace, Traces};

/// One request under observation.
pub(crate) struct Observation {
    metrics: Arc<Metrics>,
    traces: Arc<Traces>,
    trace: Option<Box<Trace>>,
    rpc: &'static str,
    model: Option<Arc<Model>>,
    started: Instant,
    batch: u64,
    deadline: Option<Instant>,
    input: Duration,
    output: Duration,
    queue: Duration,
    /// Responses so far, and when the last one was sent.
    responses: usize,
    responded: Instant,
    /// Tokens of the prompts and of the texts, where the request is for texts.
    tokens: (u32, u32),
    /// The client's name for the request and its span.
    origin: (String, Option<String>),
    /// The memory for what the request was decoded to, and for an answer that is being collected.
    held: Held,
    is_over: bool,
}

impl Observation {
    /// Begins to observe a request of an RPC, which holds nothing yet.
    ///
    /// `is_lone` says that its connection has no other one.
    pub(crate) fn begin(shared: &Shared, rpc: &'static str, is_lone: bool) -> Self {
        shared.busy_poll.note();
        let started = Instant::now();
        Self {
            metrics: shared.metrics.clone(),
            traces: shared.traces.clone(),
            trace: None,
            rpc,
            model: None,
            started,
            batch: 1,
            deadline: None,
            input: Duration::ZERO,
            output: Duration::ZERO,
            queue: Duration::ZERO,
            responses: 0,
            responded: started,
            tokens: (0, 0),
            origin: Default::default(),
            held: shared.buffers.hold_for(is_lone),
            is_over: false,
        }
    }

    /// Says what was accepted, once its inputs are decoded and checked.
    pub(crate) fn accepted(&mut self, call: &mut Call) {
        self.holds(call.held.take());
        self.deadline = call.context().deadline();
        self.begin_work(call.model.clone(), call.batch, call.context());
        if let Some(trace) = &mut self.trace {
            trace.show("TENSOR_QUEUE_INPUT", call.inputs());
        }
    }

    /// Holds memory for as long as the request goes on.
    pub(crate) fn holds(&mut self, held: Option<Held>) {
        if let Some(held) = held {
            self.held.absorb(held);
        }
    }

    /// Holds for the large pieces of an answer, as long as anybody has one of them.
    ///
    /// Errors: there is not as much.
    pub(crate) fn answer(&self, payload: Payload) -> engine::Result<Payload> {
        self.held.answer(payload)
    }

    /// Holds more, for an answer that is being collected.
    ///
    /// Errors: there is not as much.
    pub(crate) fn collects(&mut self, bytes: usize) -> engine::Result<()> {
        self.held.grow(bytes)
    }

    /// Holds so much for a part of the answer, until that is written.
    ///
    /// Errors: there is not as much.
    pub(crate) fn holds_beside(&self, bytes: usize) -> engine::Result<Held> {
        let mut held = self.held.beside();
        held.grow(bytes)?;
        Ok(held)
    }

    /// Says what was accepted: so many batch elements for a model, under the client's id and
    /// span.
    pub(crate) fn begin_work(&mut self, model: Arc<Model>, batch: u64, context: &Context) {
        let (id, parent) = (context.id(), context.trace_parent());
        self.responded = Instant::now();
        self.input = self.responded - self.started;
        self.batch = batch;
        if tracing::enabled!(tracing::Level::DEBUG) {
            self.origin = (id.to_owned(), parent.map(str::to_owned));
        }
        let trace = self.traces.begin(&model.name, &model.version, id, parent);
        self.trace = trace.map(|mut trace| {
            trace.started -= self.input;
            Box::new(trace)
        });
        self.metrics.in_flight.get_or_create(&self.rpc_labels(&model)).inc();
        self.model = Some(model);
    }

    /// Says which model a request that failed its checks was for.
    pub(crate) fn refused(&mut self, model: Option<Arc<Model>>, error: &Error) {
        let label = model.as_ref().map_or_else(|| "".into(), |model| model.name.clone());
        self.count(label, status::code_of(error));
        self.is_over = true;
    }

    /// Shows a response's tensors to the trace, if there is one.
    pub(crate) fn show(&mut self, tensors: &[Tensor]) {
        if let Some(trace) = &mut self.trace {
            trace.show("TENSOR_BACKEND_OUTPUT", tensors);
        }
    }

    /// Counts a response, and the time spent on encoding it since it `started`.
    pub(crate) fn encoded(&mut self, started: Instant, is_empty: bool) {
        let now = Instant::now();
        let output = now - started;
        self.output += output;
        let Some(model) = self.model.as_ref().filter(|model| model.config.decoupled) else {
            return;
        };
        let infer = (now - self.responded).saturating_sub(output);
        let response = match is_empty {
            true => Responded::Empty { infer },
            false => Responded::Full { infer, output },
        };
        model.statistics.responded(self.responses, response);
        self.responses += 1;
        self.responded = now;
    }

    /// Notes what a text cost so far.
    pub(crate) fn told(&mut self, output: &TextOutput) {
        self.queued(output.queue_time);
        self.tokens.0 = output.prompt_tokens.iter().sum();
        self.tokens.1 += output.deltas.iter().map(|delta| delta.tokens).sum::<u32>();
    }

    /// Notes the time in the engine's queue.
    pub(crate) fn queued(&mut self, time: Duration) {
        self.queue = self.queue.max(time);
    }

    /// Ends the observation of an accepted request.
    pub(crate) fn end(&mut self, result: Result<(), &Error>) {
        self.finish(result.map_or_else(status::code_of, |()| Code::Ok));
    }

    fn finish(&mut self, code: Code) {
        self.is_over = true;
        drop(self.held.split(usize::MAX));
        let total = self.started.elapsed();
        let Some(model) = self.model.take() else {
            return self.count("".into(), code);
        };
        if let Some(trace) = self.trace.take() {
            let (input, queue, output) = (self.input, self.queue, self.output);
            let operation = operation(self.rpc);
            let (tokens, is_ok) = (self.tokens, code == Code::Ok);
            let steps = Steps { input, queue, output, total, operation, tokens, is_ok };
            self.traces.end(*trace, steps);
        }
        tracing::debug!(
            request_id = self.origin.0,
            traceparent = self.origin.1,
            rpc = self.rpc,
            model = &*model.name,
            code = status::code_name(code),
            milliseconds = total.as_secs_f64() * 1e3,
            prompt_tokens = self.tokens.0,
            completion_tokens = self.tokens.1,
            "request over"
        );
        let labels = self.rpc_labels(&model);
        self.metrics.in_flight.get_or_create(&labels).dec();
        self.metrics.duration.get_or_create(&labels).observe(total.as_secs_f64());
        if code == Code::Ok {
            let timing =
                Timing { total, input: self.input, queue: self.queue, output: self.output };
            model.statistics.succeeded(timing, self.batch);
        } else {
            model.statistics.failed(total, code);
            if model.config.decoupled {
                let infer = self.responded.elapsed();
                let response = if status::is_cancelled(code) {
                    Responded::Canceled { infer }
                } else {
                    Responded::Failed { infer }
                };
                model.statistics.responded(self.responses, response);
            }
        }
        self.count(model.name.clone(), code);
    }

    fn count(&self, model: Arc<str>, code: Code) {
        let labels = RequestLabels { rpc: self.rpc, model, code: status::code_name(code) };
        self.metrics.requests.get_or_create(&labels).inc();
    }

    fn rpc_labels(&self, model: &Model) -> RpcLabels {
        RpcLabels { rpc: self.rpc, model: model.name.clone() }
    }
}

/// Returns the operation of an RPC in the words of OpenTelemetry's GenAI conventions, where it has
/// one there.
fn operation(rpc: &str) -> &'static str {
    match rpc {
        "OpenAiChat" | "OpenAiResponse" | "AnthropicMessage" => "chat",
        "OpenAiCompletion" => "text_completion",
        "OpenAiEmbeddings" => "embeddings",
        _ => "infer",
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if !self.is_over {
            // Nobody waits any more: the client left, or its time was over.
            let is_late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
            let kind = if is_late { ErrorKind::DeadlineExceeded } else { ErrorKind::Cancelled };
            self.finish(status::code(kind));
        }
    }
}
