//! Answers of the OpenAI door: JSON, and errors in the client's dialect.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use engine::{Error, ErrorKind};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde_json::{Value as Json, json};

use super::OpenAi;
use crate::support::status::{self, Dialect};

/// Makes a JSON answer.
pub(super) fn json(status: StatusCode, value: &Json) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Makes the answer of a call that worked.
pub(super) fn fine(value: &Json) -> Response {
    json(StatusCode::OK, value)
}

/// Makes the answer of a call that failed.
pub(super) fn failure(door: &OpenAi, dialect: Dialect, error: &Error) -> Response {
    let status = status::of_openai(dialect, error, door.config.overload_status);
    let mut response = json(status, &body(dialect, error)).into_response();
    if matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable) {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        headers.insert("retry-after-ms", HeaderValue::from_static("1000"));
        status::add_retry_after(error, headers);
    }
    response
}

/// Returns the body of an error.
pub(super) fn body(dialect: Dialect, error: &Error) -> Json {
    let value = value(dialect, error);
    match dialect {
        Dialect::OpenAi => json!({ "error": value }),
        Dialect::Anthropic => json!({ "type": "error", "error": value }),
    }
}

/// Returns the value of the key `error`.
pub(super) fn value(dialect: Dialect, error: &Error) -> Json {
    let kind = status::error_type(dialect, error);
    let message = status::cut(error.message());
    match dialect {
        Dialect::OpenAi => json!({
            "message": message,
            "type": kind,
            "param": error.param(),
            "code": error.code(),
        }),
        // Anthropic's clients look for codes of their own here, and go another way on some.
        Dialect::Anthropic => match error.code().filter(|code| code.starts_with("thread_")) {
            Some(code) => {
                json!({"type": kind, "message": message, "details": {"error_code": code}})
            }
            None => json!({ "type": kind, "message": message }),
        },
    }
}

/// Answers a path that is no route.
pub(crate) async fn unknown_route(uri: Uri) -> Response {
    let error = Error::not_found(format!("there is nothing at {}", uri.path()));
    let error = error.with_code("unknown_url");
    json(StatusCode::NOT_FOUND, &body(Dialect::OpenAi, &error))
}

/// Answers a path below that of messages that is no route.
pub(super) async fn unknown_of_messages(uri: Uri) -> Response {
    let error = Error::not_found(format!("there is nothing at {}", uri.path()));
    json(StatusCode::NOT_FOUND, &body(Dialect::Anthropic, &error))
}

/// Answers a route that is called by another method than its own.
pub(super) async fn wrong_method(State(door): State<OpenAi>, method: Method, uri: Uri) -> Response {
    let error = Error::invalid(format!("{} does not take {method}", uri.path()));
    let error = error.with_code("method_not_allowed");
    let is_message = uri.path().starts_with(door.config.paths.get("messages"));
    let dialect = if is_message { Dialect::Anthropic } else { Dialect::OpenAi };
    json(StatusCode::METHOD_NOT_ALLOWED, &body(dialect, &error))
}
