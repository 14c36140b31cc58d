//! Answers over HTTP: JSON bodies, errors with their status, compression as the client accepts it.

use std::io::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine::Error;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::serving::inference::heavy;
use crate::support::buffers::{Buffers, FOLLOWED_BYTES, Foreseen};
use crate::support::status;

/// Bodies below this size are not worth compressing.
const MIN_COMPRESSED_BYTES: usize = 256;

/// Why a call has no answer of its own.
#[derive(Debug)]
pub(super) struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The answer to a call, or why there is none.
pub(super) type Answer = Result<Response, Failure>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = status::http_of(&self.0);
        let content = body(&json!({ "error": status::cut(self.0.message()) }));
        let mut response = (status, content).into_response();
        status::add_retry_after(&self.0, response.headers_mut());
        response
    }
}

/// Makes a JSON body with its content type.
pub(super) fn body(value: &Value) -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind], value.to_string()).into_response()
}

/// Makes an answer of a JSON value.
pub(super) fn json_with(status: StatusCode, value: &Value) -> Response {
    (status, body(value)).into_response()
}

/// Makes the answer of a call that has nothing to say.
pub(super) fn empty() -> Response {
    body(&json!({}))
}

/// Makes an answer that takes at most so many bytes. They are held for the request before, and
/// until the answer is written.
///
/// Errors: there is not as much memory; what making it says.
pub(super) fn foreseen(
    (buffers, is_lone): (&Arc<Buffers>, bool),
    bytes: usize,
    make: impl FnOnce() -> engine::Result<Response>,
) -> engine::Result<Response> {
    if bytes < FOLLOWED_BYTES {
        return make();
    }
    let mut held = buffers.hold_for(is_lone);
    held.grow(bytes)?;
    let mut response = heavy(bytes, make)?;
    response.extensions_mut().insert(Foreseen::new(held));
    Ok(response)
}

/// Makes an answer of bytes, compressed if the request's headers accept it.
pub(super) fn bytes(asked: &HeaderMap, kind: &'static str, mut content: Vec<u8>) -> Response {
    content.shrink_to_fit();
    let encoding = encoding(asked).filter(|_| content.len() >= MIN_COMPRESSED_BYTES);
    let (content, encoding) =
        match encoding.map(|encoding| (compress(encoding, &content), encoding)) {
            Some((Ok(compressed), encoding)) => (compressed, Some(encoding)),
            _ => (content, None),
        };
    let mut response = Response::new(Body::from(Bytes::from(content)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    response
}

/// Returns the encoding for an answer to a request with these headers; none for a body as it is.
pub(super) fn encoding(asked: &HeaderMap) -> Option<&'static str> {
    asked.get(header::ACCEPT_ENCODING).and_then(accepted)
}

/// Returns the encoding of ours that a client likes best; none for a body as it is.
fn accepted(header: &HeaderValue) -> Option<&'static str> {
    let mut best: Option<(&'static str, f32)> = None;
    for item in header.to_str().ok()?.split(',') {
        let (name, quality) = match item.split_once(";q=") {
            Some((name, quality)) => (name.trim(), quality.trim().parse().unwrap_or(0.0)),
            None => (item.trim(), 1.0),
        };
        let known = ["gzip", "deflate"].into_iter().find(|known| *known == name);
        if let Some(known) = known.filter(|_| quality > 0.0 && best.is_none_or(|b| quality > b.1)) {
            best = Some((known, quality));
        }
    }
    best.map(|(name, _)| name)
}

fn compress(encoding: &str, content: &[u8]) -> std::io::Result<Vec<u8>> {
    if encoding == "gzip" {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content)?;
        return encoder.finish();
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_one_that_is_liked_best() {
        let table = [
            ("gzip", Some("gzip")),
            ("deflate, gzip;q=0.5", Some("deflate")),
            ("gzip;q=0, br", None),
            ("identity", None),
            ("*", None),
        ];
        for (header, expected) in table {
            assert_eq!(accepted(&HeaderValue::from_static(header)), expected, "{header}");
        }
    }
}
