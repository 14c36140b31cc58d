//! The gRPC door: connections, HTTP/2 settings, and which service a call is for.
//!
//! The HTTP/2 server is hyper's own rather than tonic's, so that `grpc-timeout` is answered by us
//! with DEADLINE_EXCEEDED and the number of connections has a bound.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::Tasks;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use proto::inference::grpc_inference_service_server::GrpcInferenceServiceServer;
use proto::{Cost, Reply};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tower::Service as _;

use super::ending::Ending;
use super::frames::Answers;
use super::health;
use super::messages::{self, Messages, Requests, Rules, Whole};
use super::service::KserveService;
use super::timeout::{Deadline, deadline};
use crate::args::Compression;
use crate::security::restriction::{self, Restrictions};
use crate::security::{Keys, Need, OF_MODELS, forget, of_rpc};
use crate::serving::shared::shutting_down;
use crate::support::buffers::IsLone;
use crate::support::metrics::Metrics;
use crate::support::status;
use crate::surfaces::grpc::GrpcConfig;
use crate::surfaces::listener::{Answered, Asked, Call, Caller, Protocol, Seat, Transport};
use crate::surfaces::orca;

/// The path of the service, before the name of a method.
const INFERENCE: &str = "/inference.GRPCInferenceService/";

/// Largest header list of a call, in bytes; gRPC's own default is half of it.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 10;

/// The largest message of a call that carries no tensors and no files, in bytes.
const MAX_CONTROL_BYTES: usize = 1 << 20;

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a new connection may take to send it.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may stay without a first call.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(75);

/// Calls that never end by themselves.
const ENDLESS: [&str; 2] = ["/grpc.health.v1.Health/Watch", "/grpc.reflection."];

/// The body of a request.
type Inbound = Asked<Incoming>;

/// The answer to a call, as it comes.
type Answer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// The services behind the port.
#[derive(Clone)]
pub(crate) struct Door {
    service: KserveService,
    inference: GrpcInferenceServiceServer<KserveService>,
    others: Routes,
    accepting: Tasks,
    limits: Limits,
    restrictions: Arc<Restrictions>,
    keys: Option<Arc<Keys>>,
}

/// What the door needs to know of the configuration.
#[derive(Clone, Copy)]
struct Limits {
    max_receive: usize,
    max_send: usize,
    compression: Compression,
}

impl Door {
    /// Makes the door; `others` are health and reflection, which end when `accepting` does.
    pub(crate) fn new(
        service: KserveService,
        others: Routes,
        config: &GrpcConfig,
        keys: Option<Arc<Keys>>,
        accepting: Tasks,
    ) -> Self {
        let mut inference = GrpcInferenceServiceServer::new(service.clone())
            .max_decoding_message_size(config.max_receive)
            .max_encoding_message_size(config.max_send);
        inference = match config.response_compression {
            Compression::None => inference,
            Compression::Gzip => inference.send_compressed(CompressionEncoding::Gzip),
            Compression::Deflate => inference.send_compressed(CompressionEncoding::Deflate),
            Compression::Zstd => inference.send_compressed(CompressionEncoding::Zstd),
        };
        let limits = Limits {
            max_receive: config.max_receive,
            max_send: config.max_send,
            compression: config.response_compression,
        };
        let restrictions = Arc::new(config.restrictions.clone());
        Self { service, inference, others: others.prepare(), accepting, limits, restrictions, keys }
    }

    /// Asks for a key, where calls need one, and leaves its grant in the request. A stream's
    /// requests are counted one by one, as they come. Returns the refusal of an open call that asks
    /// of models, if its key is not for that.
    fn check(&self, request: &mut Request<Inbound>) -> engine::Result<Option<Status>> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let path = request.uri().path();
        let is_stream = path == "/inference.GRPCInferenceService/ModelStreamInfer";
        let need = of_rpc(path);
        let grant = keys.check(request.headers(), need)?;
        if !is_stream {
            grant.admit()?;
        }
        let of_models = match need == Need::Nothing {
            true => keys.check(request.headers(), OF_MODELS).err(),
            false => None,
        };
        forget(request.headers_mut());
        request.extensions_mut().insert(grant);
        Ok(of_models.map(|error| status::grpc(&error)))
    }

    /// Returns what the messages of a call may be.
    ///
    /// Errors: UNIMPLEMENTED for an encoding that is not known.
    fn rules(&self, path: &str, headers: &HeaderMap, is_lone: bool) -> Result<Rules, Status> {
        let method = path.strip_prefix(INFERENCE);
        let is_large =
            matches!(method, Some("ModelInfer" | "ModelStreamInfer" | "RepositoryModelLoad"));
        let is_stream = method == Some("ModelStreamInfer") || path.starts_with("/grpc.reflection.");
        let max_receive = self.limits.max_receive;
        Ok(Rules {
            max_bytes: if is_large { max_receive } else { max_receive.min(MAX_CONTROL_BYTES) },
            encoding: messages::encoding(headers)?,
            is_unary: !is_stream,
            is_lone,
            cost: match method {
                Some("ModelInfer" | "ModelStreamInfer") => Some(Cost::INFER),
                Some("RepositoryModelLoad" | "RepositoryModelUnload") => Some(Cost::LOAD),
                _ => None,
            },
            buffers: self.service.shared().buffers.clone(),
            accepting: self.accepting.clone(),
        })
    }

    /// Returns whether the answers of a call are sent as they are, so that tensors pass uncopied.
    fn has_plain_answers(&self, headers: &HeaderMap) -> bool {
        let accepted = headers.get("grpc-accept-encoding").and_then(|value| value.to_str().ok());
        let wanted = self.limits.compression.name();
        let is_wanted = |wanted| {
            accepted.into_iter().flat_map(|all| all.split(',')).any(|name| name.trim() == wanted)
        };
        !wanted.is_some_and(is_wanted)
    }
}

/// The answer to a ModelInfer call. The future is moved to where it runs, so what it awaits is
/// borrowed where it can be.
async fn unary(
    service: KserveService,
    request: Request<Inbound>,
    (rules, limits): (Rules, Limits),
) -> Result<Response<Body>, Infallible> {
    let is_lone = rules.is_lone;
    let (parts, body) = request.into_parts();
    let mut requests = Requests::new(body, rules);
    let only = messages::only(&mut requests);
    let envelope = match Deadline::of(&parts.extensions) {
        Some(at) => {
            tokio::time::timeout_at(at.into(), only).await.unwrap_or_else(|_| Err(status::late()))
        }
        None => only.await,
    };
    let caller = (&parts.headers, &parts.extensions);
    let reply = match envelope {
        Ok(envelope) => service.unary(caller, is_lone, envelope).await,
        Err(error) => Err(error),
    };
    Ok(match reply {
        Ok(reply) => {
            let replies = stream::iter([Ok(reply.into_payload())]);
            let mut response = respond(Answers::new(replies, limits.max_send));
            orca::add(&parts.headers, &service.shared().models, response.headers_mut());
            response
        }
        Err(error) => error.into_http(),
    })
}

/// The answer to a ModelStreamInfer call.
fn streaming(
    service: &KserveService,
    request: Request<Inbound>,
    (rules, limits): (Rules, Limits),
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let requests = Box::pin(Requests::new(body, rules));
    match service.session((&parts.headers, &parts.extensions), requests) {
        Ok(session) => respond(Answers::new(session.map_ok(Reply::into_payload), limits.max_send)),
        Err(error) => error.into_http(),
    }
}

/// Makes a request for tonic, of messages that are whole and plain.
fn whole(request: Request<Inbound>, rules: Rules) -> Request<Whole<Inbound>> {
    let is_lone = IsLone(rules.is_lone);
    let mut request = request.map(|body| Whole::new(body, rules));
    request.extensions_mut().insert(is_lone);
    let costs = request.body().costs();
    request.extensions_mut().insert(costs);
    request.headers_mut().remove("grpc-encoding");
    request
}

/// Reads a health check, which may be of the server and its service, and of models only by whom
/// they are told to.
///
/// Errors: `refusal` for the name of a model; what is no health check.
async fn of_server(
    request: Request<Inbound>,
    rules: Rules,
    refusal: Status,
) -> Result<Request<Full<Bytes>>, Status> {
    let (mut parts, body) = request.into_parts();
    let mut messages = Messages::new(body, rules);
    let message = messages.next().await.unwrap_or_else(|| Err(status::without_message()))?;
    if let Some(second) = messages.next().await {
        return Err(second.err().unwrap_or_else(status::second_message));
    }
    let asked = HealthCheckRequest::decode(message.to_bytes());
    let asked = asked.map_err(|error| status::undecodable(error.into()))?;
    if !health::is_of_server(&asked.service) {
        return Err(refusal);
    }
    parts.headers.remove("grpc-encoding");
    Ok(Request::from_parts(parts, Full::new(messages::framed(&message))))
}

/// Returns whether a request is a gRPC call. What is none is refused by its HTTP status.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn respond<B>(body: B) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes, Error = Status> + Send + 'static,
{
    let mut response = Response::new(Body::new(body));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Answers a call until its client stops waiting.
async fn in_time(
    deadline: Option<Instant>,
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Result<Response<Body>, Infallible> {
    match deadline {
        None => answer.await,
        Some(at) => tokio::time::timeout_at(at.into(), answer)
            .await
            .unwrap_or_else(|_| Ok(status::late().into_http())),
    }
}

fn refuse(refusal: Status) -> Answer {
    Box::pin(std::future::ready(Ok(refusal.into_http())))
}

impl Door {
    /// Answers a call.
    fn call(&self, mut request: Request<Inbound>, call: &Call) -> Answer {
        let of_models = match self.check(&mut request) {
            Ok(of_models) => of_models,
            Err(error) => return refuse(status::grpc(&error)),
        };
        if !is_grpc(request.headers()) {
            let mut refusal = Response::new(Body::empty());
            *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        match self.service.shared().buffers.open(request.headers(), call.is_lone()) {
            Ok(open) => call.keep(open),
            Err(error) => return refuse(status::grpc(&error)),
        }
        let path = request.uri().path();
        let group = restriction::group_of_rpc(path);
        let lacking = group.and_then(|group| self.restrictions.lacking(group, request.headers()));
        if let Some(header) = lacking {
            return refuse(status::restricted(header));
        }
        let rules = match self.rules(path, request.headers(), call.is_lone()) {
            Ok(rules) => rules,
            Err(refusal) => return refuse(refusal),
        };
        let deadline = match deadline(request.headers()) {
            Ok(deadline) => deadline,
            Err(error) => return refuse(status::grpc(&error)),
        };
        call.set_idle(ENDLESS.iter().any(|endless| path.starts_with(endless)));
        let is_stream = path.strip_prefix(INFERENCE) == Some("ModelStreamInfer");
        // Extensions are only made where there are any: they cost a small call two allocations.
        if is_stream {
            request.extensions_mut().insert(call.clone());
        }
        if let Some(at) = deadline {
            request.extensions_mut().insert(Deadline(at));
        }
        self.route(request, (rules, of_models))
    }

    /// Answers a call that is let in; `of_models` refuses one that asks of models.
    fn route(
        &self,
        request: Request<Inbound>,
        (rules, of_models): (Rules, Option<Status>),
    ) -> Answer {
        let path = request.uri().path();
        let deadline = Deadline::of(request.extensions());
        match path.strip_prefix(INFERENCE) {
            Some("ModelInfer") if self.has_plain_answers(request.headers()) => {
                Box::pin(unary(self.service.clone(), request, (rules, self.limits)))
            }
            Some("ModelStreamInfer") if self.has_plain_answers(request.headers()) => {
                let answer = streaming(&self.service, request, (rules, self.limits));
                Box::pin(std::future::ready(Ok(answer)))
            }
            Some(method) => {
                let asked = (method == "ModelInfer").then(|| request.headers().clone());
                // Inference keeps its deadline itself, and counts what comes too late.
                let deadline = deadline.filter(|_| !method.ends_with("Infer"));
                let service = self.service.clone();
                let answer = self.inference.clone().call(whole(request, rules));
                Box::pin(async move {
                    let mut answer =
                        in_time(deadline, answer).await.map(status::with_triton_size_code)?;
                    if let Some(asked) = asked {
                        orca::add(&asked, &service.shared().models, answer.headers_mut());
                    }
                    Ok(answer.map(Body::new))
                })
            }
            None => {
                let mut others = self.others.clone();
                let accepting = self.accepting.clone();
                let is_probe = path.starts_with("/grpc.health.v1.Health/");
                let answer = async move {
                    let answer = match of_models.filter(|_| is_probe) {
                        None => others.call(whole(request, rules)).await?,
                        Some(refusal) => match of_server(request, rules, refusal).await {
                            Ok(request) => others.call(request).await?,
                            Err(refusal) => return Ok(refusal.into_http()),
                        },
                    };
                    let ending = |body| Body::new(Ending::new(body, accepting).until(deadline));
                    Ok(answer.map(ending))
                };
                Box::pin(in_time(deadline, answer))
            }
        }
    }
}

/// The calls of a connection.
struct Calls {
    door: Door,
    caller: Caller,
}

impl Service<Request<Incoming>> for Calls {
    type Response = Response<Answered<Ending>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let call = self.caller.begin();
        let answer = self.door.call(request.map(|body| Asked::new(body, call.clone())), &call);
        Box::pin(async move {
            let answer = tokio::select! {
                biased;
                answer = answer => answer?,
                () = call.ending().cancelled() => status::grpc(&shutting_down()).into_http(),
            };
            let ending = call.ending().clone();
            Ok(answer.map(|body| Answered::new(Ending::new(body, ending), call)))
        })
    }
}

/// gRPC over HTTP/2, answered by a [`Door`].
#[derive(Clone)]
pub(crate) struct Grpc {
    pub door: Door,
    pub config: GrpcConfig,
    pub metrics: Arc<Metrics>,
}

impl Protocol for Grpc {
    const TASK: &'static str = "grpc connection";

    async fn serve(self, mut transport: Transport, seat: &Seat, accepting: Tasks) {
        // A connection that says nothing holds no place for long.
        let has_begun = tokio::select! {
            has_begun = transport.begins_with(PREFACE, PREFACE_TIMEOUT) => has_begun,
            () = seat.gives_way() => false,
            () = accepting.cancelled() => false,
        };
        if !has_begun {
            return;
        }
        self.metrics.connections.inc();
        let is_over = accepting.cancelled();
        let age = self.config.max_connection_age;
        let calls = Calls { door: self.door, caller: seat.caller() };
        let served = http2(&self.config).serve_connection(TokioIo::new(transport), calls);
        let mut served = pin!(served);
        let silence = async {
            tokio::time::sleep(FIRST_CALL_TIMEOUT).await;
            if seat.has_called() {
                std::future::pending::<()>().await;
            }
        };
        let end = async {
            tokio::select! {
                () = is_over => {}
                () = sleep_if(age) => {}
                () = silence => {}
                () = seat.gives_way() => {}
            }
        };
        let result = tokio::select! {
            result = served.as_mut() => Some(result),
            () = end => {
                served.as_mut().graceful_shutdown();
                seat.see_out(served).await
            }
        };
        self.metrics.connections.dec();
        if let Some(Err(error)) = result {
            tracing::debug!(%error, "connection failed");
        }
    }
}

async fn sleep_if(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Pings of clients are answered and never counted against them, so any keepalive setting of a
/// client works.
fn http2(config: &GrpcConfig) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_connection_window_size(config.connection_window)
        .initial_stream_window_size(config.stream_window)
        .max_frame_size(config.max_frame)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout);
    if config.is_window_adaptive {
        builder.adaptive_window(true);
    }
    builder
}
