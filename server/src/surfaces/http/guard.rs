//! The guard in front of an HTTP router: origins of web pages, then keys.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use engine::Error;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::security::{Keys, Need, OF_MODELS, Stranger, forget, of_route};
use crate::support::status;
use crate::surfaces::listener::Refuse;
use crate::surfaces::paths::Paths;

/// What an answer's headers may tell web pages.
const EXPOSED: [HeaderName; 3] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("retry-after"),
    HeaderName::from_static("retry-after-ms"),
];

/// How long a browser may remember what it is allowed, in seconds.
const PREFLIGHT_SECS: u64 = 600;

/// Puts the guard in front of a router: keys where there are any, origins where some may call.
pub(crate) fn protect(
    mut router: Router,
    keys: Option<&Arc<Keys>>,
    paths: &Paths,
    origins: &[HeaderValue],
) -> Router {
    if let Some(keys) = keys {
        let state = (keys.clone(), paths.clone());
        router = router.layer(middleware::from_fn_with_state(state, check));
    }
    // Outermost: a browser's preflight request brings no key.
    match origins.is_empty() {
        true => router,
        false => router.layer(cors(origins)),
    }
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origins = match origins {
        [any] if any == "*" => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // `*` would leave out `authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(std::time::Duration::from_secs(PREFLIGHT_SECS))
}

/// Lets a request pass that brings a key for its route, with its grant.
async fn check(
    State((keys, paths)): State<(Arc<Keys>, Paths)>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = &paths.usual(request.uri().path());
    let need = of_route(path);
    let granted = keys.check(request.headers(), need);
    match granted.and_then(|grant| grant.admit().map(|()| grant)) {
        Ok(grant) => {
            if need == Need::Nothing && keys.check(request.headers(), OF_MODELS).is_err() {
                request.extensions_mut().insert(Stranger);
            }
            forget(request.headers_mut());
            request.extensions_mut().insert(grant);
            next.run(request).await
        }
        Err(error) => refusal(path, &error),
    }
}

/// Returns what refuses requests that a shutdown leaves no time for, or memory no answer.
pub(crate) fn refusing(paths: &Paths) -> Refuse {
    let paths = paths.clone();
    Arc::new(move |path, error| refusal(&paths.usual(path), error))
}

/// Makes the answer to a request that is refused, in the words of the API it is for.
fn refusal(path: &str, error: &Error) -> Response {
    let status = status::http_of(error);
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    let mut response = (status, kind, body(path, status, error).to_string()).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    status::add_retry_after(error, headers);
    response
}

fn body(path: &str, status: StatusCode, error: &Error) -> Value {
    let message = error.message();
    let is_anthropic = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let kind = match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::SERVICE_UNAVAILABLE if is_anthropic => "overloaded_error",
        StatusCode::SERVICE_UNAVAILABLE => "service_unavailable",
        _ => "rate_limit_error",
    };
    if is_anthropic {
        json!({ "type": "error", "error": { "type": kind, "message": message } })
    } else if path.starts_with("/v1/") {
        let code = error.code();
        json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
    } else {
        json!({ "error": message })
    }
}
