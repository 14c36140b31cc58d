//! ModelStreamInfer: many requests in flight on one stream.
//!
//! Two lanes, as in Triton: responses of decoupled models go out as they are ready, those of
//! other models in the order of their requests. A bad request is answered in-band with its id and
//! the stream lives on. At most a configured number of requests is in flight; the next ones wait
//! in the connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Instant;

use engine::{Error, ErrorKind, InferOutput, InferRequest, OutputStream};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, SelectAll, StreamFuture};
use futures_util::{Stream, StreamExt};
use proto::inference::{ModelInferResponse, ModelStreamInferResponse};
use proto::{Envelope, Reply};
use tensor::Parameters;
use tonic::Status;

use crate::models::registry::Model;
use crate::security::Grant;
use crate::serving::inference::{Asked, Call, Observation, Outputs, Refusal};
use crate::serving::shared::Shared;
use crate::support::buffers::Held;
use crate::support::status;
use crate::surfaces::listener::Call as Opened;

type Item = Reply<ModelStreamInferResponse>;

/// The requests of a stream.
pub(crate) type Inbound = Pin<Box<dyn Stream<Item = Result<Inferred, Status>> + Send>>;

/// A request, and the memory that it takes besides its raw inputs, if that is much.
pub(crate) type Inferred = (Envelope, Option<Held>);

/// One stream of requests and responses.
pub(crate) struct Session {
    inbound: Inbound,
    is_inbound_open: bool,
    /// The call, which is idle while no request is in flight.
    call: Option<Opened>,
    shared: Arc<Shared>,
    options: StreamOptions,
    draining: BoxFuture<'static, ()>,
    expiry: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Boxed, because the lanes move their streams for every item.
    as_ready: SelectAll<Box<Flight>>,
    in_order: FuturesOrdered<StreamFuture<Box<Flight>>>,
    refusals: VecDeque<Item>,
    is_ordered_turn: bool,
    is_over: bool,
}

/// What the client said when it opened the stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamOptions {
    /// What the caller may do; every request counts.
    pub grant: Grant,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// The caller's span.
    pub parent: Option<Arc<str>>,
    /// Parameters that came as headers.
    pub forwarded: Parameters,
    /// The first execution error ends the stream with its status (`triton_grpc_error`).
    pub has_true_errors: bool,
}

impl Session {
    /// Begins to serve a stream.
    pub(crate) fn new(
        (inbound, call): (Inbound, Option<Opened>),
        shared: Arc<Shared>,
        options: StreamOptions,
    ) -> Self {
        Self {
            inbound,
            is_inbound_open: true,
            call,
            draining: Box::pin(shared.admitting.cancelled()),
            shared,
            expiry: options.deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into()))),
            options,
            as_ready: SelectAll::new(),
            in_order: FuturesOrdered::new(),
            refusals: VecDeque::new(),
            is_ordered_turn: false,
            is_over: false,
        }
    }

    fn in_flight(&self) -> usize {
        self.as_ready.len() + self.in_order.len() + self.refusals.len()
    }

    /// Returns whether as many requests are in flight as may be.
    fn is_full(&self) -> bool {
        self.in_flight() >= self.shared.max_stream_requests
    }

    /// Takes requests from the client while there is room for them.
    fn accept(&mut self, cx: &mut Poller<'_>) -> Result<(), Status> {
        while self.is_inbound_open && !self.is_full() {
            match self.inbound.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => self.is_inbound_open = false,
                Poll::Ready(Some(Err(status))) => return Err(status),
                Poll::Ready(Some(Ok(request))) => self.begin(request),
            }
        }
        Ok(())
    }

    fn begin(&mut self, (envelope, held): Inferred) {
        let is_lone = self.call.as_ref().is_some_and(Opened::is_lone);
        let mut observation = Observation::begin(&self.shared, "ModelStreamInfer", is_lone);
        let name = envelope.message.model_name.clone();
        let admitted = self.shared.admit().and_then(|()| self.options.grant.admit());
        let admitted = admitted.map_err(|error| {
            let id = envelope.message.id.clone();
            Box::new(Refusal { model: None, id, error })
        });
        let StreamOptions { grant, deadline, forwarded, parent, .. } = self.options.clone();
        let asked = Asked { envelope, held, grant, deadline, forwarded, parent, is_unary: false };
        let call = admitted.and_then(|()| Call::prepare(&self.shared, asked));
        match call {
            Ok(mut call) => {
                observation.accepted(&mut call);
                let is_decoupled = call.model.config.decoupled;
                let flight = Flight::start(call, observation);
                match is_decoupled {
                    true => self.as_ready.push(flight),
                    false => self.in_order.push_back(flight.into_future()),
                }
            }
            Err(refusal) => {
                observation.refused(refusal.model.clone(), &refusal.error);
                let is_ordered = refusal.model.is_some_and(|model| !model.config.decoupled);
                let reply = failure(&name, &refusal.id, &refusal.error);
                match is_ordered {
                    true => self.in_order.push_back(Flight::refused(reply).into_future()),
                    false => self.refusals.push_back(reply),
                }
            }
        }
    }

    /// Returns the next event of the requests in flight; none when there are no requests.
    fn poll_flights(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Event>> {
        if let Some(reply) = self.refusals.pop_front() {
            return Poll::Ready(Some(Event::Reply(reply)));
        }
        // The lanes take turns, so that a model that always has an answer ready starves nobody.
        self.is_ordered_turn = !self.is_ordered_turn;
        for is_ordered in [self.is_ordered_turn, !self.is_ordered_turn] {
            let event = match is_ordered {
                true => self.poll_in_order(cx),
                false => self.as_ready.poll_next_unpin(cx),
            };
            if let Poll::Ready(Some(event)) = event {
                return Poll::Ready(Some(event));
            }
        }
        match self.as_ready.is_empty() && self.in_order.is_empty() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    fn poll_in_order(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Event>> {
        loop {
            match ready!(self.in_order.poll_next_unpin(cx)) {
                Some((Some(event), _)) => return Poll::Ready(Some(event)),
                // A request that ended without a word: the next one has its turn.
                Some((None, _)) => {}
                None => return Poll::Ready(None),
            }
        }
    }

    fn step(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<Item, Status>>> {
        if let Some(expiry) = &mut self.expiry
            && expiry.as_mut().poll(cx).is_ready()
        {
            let error = Error::new(ErrorKind::DeadlineExceeded, "Deadline Exceeded");
            return Poll::Ready(Some(Err(status::grpc(&error))));
        }
        loop {
            if let Err(status) = self.accept(cx) {
                return Poll::Ready(Some(Err(status)));
            }
            let was_full = self.is_full();
            let polled = self.poll_flights(cx);
            let has_room_again = was_full && !self.is_full() && self.is_inbound_open;
            if !matches!(polled, Poll::Ready(Some(_))) && has_room_again {
                // Requests that ended made room, and nobody has asked for the next ones yet.
                continue;
            }
            match polled {
                Poll::Ready(Some(Event::Reply(reply))) => return Poll::Ready(Some(Ok(reply))),
                Poll::Ready(Some(Event::Failed { name, id, error })) => {
                    // The stream's own deadline is every request's; whoever sees it first, it ends
                    // the stream.
                    let is_late = error.kind() == ErrorKind::DeadlineExceeded;
                    let item = match self.options.has_true_errors || is_late {
                        true => Err(status::grpc(&error)),
                        false => Ok(failure(&name, &id, &error)),
                    };
                    return Poll::Ready(Some(item));
                }
                Poll::Ready(None) if !self.is_inbound_open => return Poll::Ready(None),
                Poll::Ready(None) => {
                    ready!(self.draining.as_mut().poll(cx));
                    let error = self.shared.admit().err();
                    return Poll::Ready(error.map(|error| Err(status::grpc(&error))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Stream for Session {
    type Item = Result<Item, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let item = self.step(cx);
        if let Some(call) = &self.call {
            call.set_idle(self.in_flight() == 0);
        }
        if matches!(item, Poll::Ready(None | Some(Err(_)))) {
            self.is_over = true;
            self.as_ready.clear();
            self.in_order = FuturesOrdered::new();
        }
        item
    }
}

/// What a request in flight gives.
enum Event {
    /// A response.
    Reply(Item),
    /// The engine failed it, and nothing follows.
    Failed { name: Arc<str>, id: String, error: Error },
}

/// One request in flight: starting, running, or over.
struct Flight {
    state: State,
    active: Option<Active>,
}

enum State {
    Refused(Item),
    Starting(BoxFuture<'static, engine::Result<OutputStream<InferRequest>>>),
    Running(OutputStream<InferRequest>),
    Over,
}

/// What is known of a request that an engine works on.
struct Active {
    model: Arc<Model>,
    outputs: Outputs,
    id: String,
    is_decoupled: bool,
    wants_empty_final: bool,
    observation: Observation,
}

impl Flight {
    fn start(mut call: Call, observation: Observation) -> Box<Self> {
        let active = Active {
            model: call.model.clone(),
            outputs: std::mem::take(&mut call.outputs),
            id: call.id.clone(),
            is_decoupled: call.model.config.decoupled,
            wants_empty_final: call.wants_empty_final,
            observation,
        };
        let (model, request, context) = call.into_parts();
        let state = State::Starting(Box::pin(Call::start(model, request, context)));
        Box::new(Self { state, active: Some(active) })
    }

    fn refused(reply: Item) -> Box<Self> {
        Box::new(Self { state: State::Refused(reply), active: None })
    }

    /// Ends the request and makes the event for its end.
    fn end(&mut self, result: Result<Option<Item>, Error>) -> Option<Event> {
        self.state = State::Over;
        let mut active = self.active.take()?;
        active.observation.end(result.as_ref().map(|_| ()));
        match result {
            Ok(reply) => reply.map(Event::Reply),
            Err(error) => {
                Some(Event::Failed { name: active.model.name.clone(), id: active.id, error })
            }
        }
    }

    /// Makes the event for what the engine's stream gave.
    fn advance(&mut self, item: Option<engine::Result<InferOutput>>) -> Option<Event> {
        let active = self.active.as_mut()?;
        match item {
            Some(Err(error)) => self.end(Err(error)),
            Some(Ok(output)) => {
                let is_last = output.is_last || !active.is_decoupled;
                let reply = match active.encode(output, is_last) {
                    Ok(reply) => reply,
                    Err(error) => return self.end(Err(error)),
                };
                match is_last {
                    true => self.end(Ok(Some(reply))),
                    false => Some(Event::Reply(reply)),
                }
            }
            None if !active.is_decoupled => {
                let text = "the model ended without a response";
                self.end(Err(Error::new(ErrorKind::Internal, text)))
            }
            None => {
                let wants_last = active.wants_empty_final;
                let reply = wants_last.then(|| active.encode(InferOutput::default(), true));
                self.end(reply.transpose())
            }
        }
    }
}

impl Active {
    fn encode(&mut self, mut output: InferOutput, is_last: bool) -> engine::Result<Item> {
        let started = Instant::now();
        self.observation.show(&output.tensors);
        self.outputs.deliver(&self.model, &mut output.tensors)?;
        self.observation.queued(output.queue_time);
        let head = tensor::wire::ResponseHead {
            model_name: &self.model.name,
            model_version: &self.model.version,
            id: &self.id,
            parameters: &output.parameters,
        };
        let bytes = tensor::wire::encode_stream_response(&head, &output.tensors, is_last);
        self.observation.encoded(started, output.tensors.is_empty());
        Ok(Reply::Encoded(self.observation.answer(bytes)?))
    }
}

impl Stream for Flight {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Event>> {
        loop {
            match &mut self.state {
                State::Over => return Poll::Ready(None),
                State::Refused(_) => {
                    let State::Refused(reply) = std::mem::replace(&mut self.state, State::Over)
                    else {
                        return Poll::Ready(None);
                    };
                    return Poll::Ready(Some(Event::Reply(reply)));
                }
                State::Starting(call) => match ready!(call.as_mut().poll(cx)) {
                    Ok(stream) => self.state = State::Running(stream),
                    Err(error) => return Poll::Ready(self.end(Err(error))),
                },
                State::Running(stream) => {
                    let item = ready!(stream.as_mut().poll_next(cx));
                    return Poll::Ready(self.advance(item));
                }
            }
        }
    }
}

/// Makes the in-band answer to a request that failed.
fn failure(model_name: &str, id: &str, error: &Error) -> Item {
    Reply::Message(ModelStreamInferResponse {
        error_message: status::cut(error.message()),
        infer_response: Some(ModelInferResponse {
            model_name: model_name.to_owned(),
            id: id.to_owned(),
            ..ModelInferResponse::default()
        }),
    })
}
