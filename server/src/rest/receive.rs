//! Request bodies: read up to a limit, decompressed up to the same limit.

use std::io::Read;

use axum::extract::Request;
use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use flate2::read::{GzDecoder, ZlibDecoder};
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

/// A request with its whole body.
pub(super) struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Reads a request's body.
///
/// Errors: a body over the limit, before or after decompression; an unknown encoding; a body that
/// its encoding does not decode; a client that left.
pub(super) async fn receive(request: Request, limit: usize) -> Result<Received> {
    let (parts, body) = request.into_parts();
    let collected = Limited::new(body, limit).collect().await;
    let body = collected.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => too_large(limit),
        None => Error::new(ErrorKind::Cancelled, format!("the body could not be read: {error}")),
    })?;
    let body = body.to_bytes();
    let encoding = parts.headers.get(header::CONTENT_ENCODING);
    let body = match encoding.map(|value| value.to_str().unwrap_or_default()) {
        None | Some("" | "identity") => body,
        Some(encoding @ ("gzip" | "deflate")) => {
            let encoding = encoding.to_owned();
            tokio::task::spawn_blocking(move || decompress(&encoding, &body, limit))
                .await
                .map_err(|error| Error::internal("decompression failed").with_source(error))??
        }
        Some(other) => {
            let text = format!("Content-Encoding `{other}` is not supported; gzip and deflate are");
            return Err(Error::new(ErrorKind::Unimplemented, text));
        }
    };
    Ok(Received { headers: parts.headers, body })
}

fn decompress(encoding: &str, body: &[u8], limit: usize) -> Result<Bytes> {
    let mut plain = Vec::new();
    let bound = limit as u64 + 1;
    let read = match encoding {
        "gzip" => GzDecoder::new(body).take(bound).read_to_end(&mut plain),
        _ => ZlibDecoder::new(body).take(bound).read_to_end(&mut plain),
    };
    read.map_err(|error| Error::invalid(format!("the body is not {encoding}: {error}")))?;
    match plain.len() > limit {
        true => Err(too_large(limit)),
        false => Ok(plain.into()),
    }
}

fn too_large(limit: usize) -> Error {
    Error::invalid(format!(
        "request JSON and binary data have more than {limit} bytes, which is the limit of \
         --http-max-input-bytes"
    ))
}

/// Reads a JSON body; an empty one is an empty object.
///
/// Errors: what is wrong with it, in Triton's words.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| unreadable(&error))
}

/// Makes the error for JSON that cannot be read, or is not what it should be.
pub(super) fn unreadable(error: &serde_json::Error) -> Error {
    Error::invalid(match error.classify() {
        serde_json::error::Category::Data => format!("Unable to parse 'request': {error}"),
        _ => format!("failed to parse the request JSON buffer: {error}"),
    })
}
