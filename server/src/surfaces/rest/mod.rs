//! The KServe v2 REST door: the routes of Triton's HTTP face over the calls that gRPC has too.

mod answer;
mod catalog;
mod config;
mod control;
mod generate;
mod infer;
mod outputs;

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use engine::{Error, ErrorKind};
use http::request::Parts;
use http::{StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;
use tensor::Tensor;
use tensor::wire::ResponseHead;

use crate::security::restriction::{self, Restrictions};
use crate::serving::inference::{self, Observation, heavy};
use crate::serving::shared::Shared;
use crate::support::forwarding::Forwarding;
use crate::support::preparing;
use crate::surfaces::http::receive::{Intake, receive};
use crate::surfaces::{openai, orca};
use answer::{Answer, Failure, json_with};
use outputs::BinaryOutputs;

pub use config::HttpConfig;

/// The state of the routes.
#[derive(Clone)]
struct Rest {
    shared: Arc<Shared>,
    forwarding: Forwarding,
    restrictions: Arc<Restrictions>,
    intake: Intake,
}

/// The model that a route names; an empty version means the latest.
#[derive(Clone, Debug, Default, Deserialize)]
struct ModelPath {
    #[serde(default)]
    model: String,
    #[serde(default)]
    version: String,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<Self>::from_request_parts(parts, state).await {
            Ok(Path(path)) => Ok(path),
            Err(error) => Err(Failure(Error::invalid(format!("the route is malformed: {error}")))),
        }
    }
}

/// Makes the routes.
pub(crate) fn router(shared: Arc<Shared>, config: &HttpConfig) -> Router {
    let rest = Rest {
        intake: Intake::new(&shared, config.max_input),
        shared,
        forwarding: config.forwarding.clone(),
        restrictions: Arc::new(config.restrictions.clone()),
    };
    let model = Router::new()
        .route("/", get(catalog::model))
        .route("/ready", get(catalog::model_ready))
        .route("/config", get(catalog::config))
        .route("/stats", get(catalog::statistics))
        .route("/infer", post(infer))
        .route("/generate", post(generate::generate))
        .route("/generate_stream", post(generate::generate_stream));
    let shared_memory = Router::new()
        .route("/systemsharedmemory/status", get(control::system_status))
        .route("/systemsharedmemory/unregister", post(control::system_unregister))
        .route("/systemsharedmemory/region/{region}/status", get(control::system_status))
        .route("/systemsharedmemory/region/{region}/register", post(control::system_register))
        .route("/systemsharedmemory/region/{region}/unregister", post(control::system_unregister))
        .route("/cudasharedmemory/status", get(control::cuda_status))
        .route("/cudasharedmemory/unregister", post(control::cuda_unregister))
        .route("/cudasharedmemory/region/{region}/status", get(control::cuda_status))
        .route("/cudasharedmemory/region/{region}/register", post(control::cuda_register))
        .route("/cudasharedmemory/region/{region}/unregister", post(control::cuda_unregister));
    let all = Router::new()
        .route("/health/live", get(catalog::live))
        .route("/health/ready", get(catalog::ready))
        .route("/models/stats", get(catalog::all_statistics))
        .route(
            "/models/{model}/trace/setting",
            get(control::model_trace).post(control::model_trace),
        )
        .nest("/models/{model}", model.clone())
        .nest("/models/{model}/versions/{version}", model)
        .route("/repository/index", post(control::index))
        .route("/repository/models/{model}/load", post(control::load))
        .route("/repository/models/{model}/unload", post(control::unload))
        .route("/trace/setting", get(control::server_trace).post(control::server_trace))
        .route("/logging", get(control::logging).post(control::logging))
        .merge(shared_memory);
    Router::new()
        .route("/v2", get(catalog::server))
        .route("/v2/", get(catalog::server))
        .nest("/v2", all)
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(rest.clone(), restrict))
        .with_state(rest)
}

/// `POST /v2/models/MODEL[/versions/VERSION]/infer`
async fn infer(State(rest): State<Rest>, path: ModelPath, request: Request) -> Answer {
    let received = receive(request, &rest.intake).await?;
    let observation = Observation::begin(&rest.shared, "HttpInfer", received.is_lone);
    let model = rest.shared.models.get(&path.model, &path.version);
    let json_bytes = infer::json_bytes(&received);
    let place = preparing::place(json_bytes).await;
    let decoded = model.and_then(|model| {
        if !model.is_foldable() {
            return Err(Error::new(
                ErrorKind::Unimplemented,
                "HTTP end point doesn't support models with decoupled transaction policy",
            ));
        }
        let path = (path.model.as_str(), path.version.as_str());
        heavy(json_bytes, || infer::decode(&received, path, &model.config))
    });
    drop(place);
    let (asked, wanted) = match decoded {
        Ok((envelope, wanted)) => (Ok(rest.asked(envelope, &received, true)), wanted),
        Err(error) => (Err(error), BinaryOutputs::default()),
    };
    let (headers, is_lone) = (received.headers, received.is_lone);
    let encode = |head: &ResponseHead<'_>, tensors: &[Tensor]| {
        let most = outputs::answer_bytes(&wanted, head, tensors);
        let encode = || outputs::encode(&headers, &wanted, (head, tensors), most);
        // The compressed copy is made beside the answer.
        let copies = 1 + usize::from(answer::encoding(&headers).is_some());
        answer::foreseen((&rest.shared.buffers, is_lone), most * copies, encode)
    };
    let mut response = inference::unary(&rest.shared, observation, asked, encode).await?;
    orca::add(&headers, &rest.shared.models, response.headers_mut());
    Ok(response)
}

/// Lets pass what is not restricted, or has the header for it.
async fn restrict(State(rest): State<Rest>, request: Request, next: Next) -> Response {
    let group = restriction::group_of_route(request.uri().path());
    match group.and_then(|group| rest.restrictions.lacking(group, request.headers())) {
        None => next.run(request).await,
        Some(header) => {
            let text = format!("This API is restricted, expecting header '{header}'");
            json_with(StatusCode::FORBIDDEN, &json!({ "error": text }))
        }
    }
}

async fn unknown(uri: Uri) -> Response {
    if uri.path().starts_with("/v1/") {
        return openai::unknown_route(uri).await;
    }
    json_with(StatusCode::NOT_FOUND, &json!({ "error": "Not Found" }))
}

async fn wrong_method() -> Response {
    let body = json!({ "error": "Method Not Allowed" });
    json_with(StatusCode::METHOD_NOT_ALLOWED, &body).into_response()
}
