//! Error kinds as gRPC and HTTP statuses: the one file that knows client-facing status codes.
//!
//! The codes are Triton's (its table of internal codes to gRPC); where Triton has no case of its
//! own, the closest canonical gRPC code is taken.

use std::time::Duration;

use bytes::Bytes;
use engine::{Error, ErrorKind};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use proto::{BadPrefix, Malformed};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::support::codes::{BUSY, NO_BUFFERS, RATE_LIMITED, STALLED, TOO_LARGE, UNKNOWN_ENCODING};
use crate::support::stall_timer::Slow;
use crate::support::unpack::Unpackable;

/// The longest text of a status. Percent-encoding may make nine bytes of a character.
const MAX_TEXT_CHARACTERS: usize = 600;

/// Returns the gRPC status for a failed request.
pub(crate) fn grpc(error: &Error) -> Status {
    let text = cut(error.message());
    match error.retry_after() {
        None => Status::new(code_of(error), text),
        Some(wait) => {
            let details = details(code_of(error), &text, wait);
            Status::with_details(code_of(error), text, details)
        }
    }
}

/// Cuts a text that repeats too much of the client's own: it travels in a header, and gRPC
/// clients refuse headers of more than some kilobytes.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARACTERS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Returns the gRPC code of an error.
pub(crate) fn code_of(error: &Error) -> Code {
    match error.code() {
        Some(RATE_LIMITED | BUSY | NO_BUFFERS) => Code::ResourceExhausted,
        _ => code(error.kind()),
    }
}

/// Returns the HTTP status of an error: finer than that of its kind where its code says more.
pub(crate) fn http_of(error: &Error) -> StatusCode {
    match error.code() {
        Some(RATE_LIMITED) => StatusCode::TOO_MANY_REQUESTS,
        Some(STALLED) => StatusCode::REQUEST_TIMEOUT,
        _ => http(error.kind()),
    }
}

/// Says in an answer's headers when to come back, in seconds and in milliseconds.
pub(crate) fn add_retry_after(error: &Error, headers: &mut HeaderMap) {
    let Some(wait) = error.retry_after() else { return };
    let ms = wait.as_millis().clamp(1, u128::from(u64::MAX)) as u64;
    headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    headers.insert("retry-after-ms", HeaderValue::from(ms));
}

/// Makes the details of a status that may be tried again: `google.rpc.Status` around a
/// `google.rpc.RetryInfo`, which gRPC clients read.
fn details(code: Code, text: &str, wait: Duration) -> Bytes {
    let mut delay = Vec::new();
    put_number(&mut delay, 1, wait.as_secs().min(i64::MAX as u64));
    put_number(&mut delay, 2, wait.subsec_nanos().into());
    let mut info = Vec::new();
    put_bytes(&mut info, 1, &delay);
    let mut any = Vec::new();
    put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    put_bytes(&mut any, 2, &info);
    let mut status = Vec::new();
    put_number(&mut status, 1, code as u64);
    put_bytes(&mut status, 2, text.as_bytes());
    put_bytes(&mut status, 3, &any);
    status.into()
}

/// Writes a protobuf field that is a number.
fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    out.push(field << 3);
    put_varint(out, number);
}

/// Writes a protobuf field that is bytes, a text or a message.
fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Returns the gRPC code of a kind of error.
pub(crate) fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidRequest => Code::InvalidArgument,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        // Triton answers a full queue with UNAVAILABLE, which its clients retry.
        ErrorKind::Overloaded | ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    }
}

/// Returns the HTTP status of a kind of error, Triton's where it has one.
pub(crate) fn http(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::AlreadyExists | ErrorKind::Cancelled => {
            StatusCode::BAD_REQUEST
        }
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Overloaded | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Whose errors a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`
    Anthropic,
}

/// Anthropic's status for an overloaded server.
const OVERLOADED: u16 = 529;

/// Returns the HTTP status of an error at the OpenAI door; `overload` is that of a full queue,
/// which one dialect has of its own.
pub(crate) fn of_openai(dialect: Dialect, error: &Error, overload: u16) -> StatusCode {
    let overload = match dialect {
        Dialect::OpenAi => overload,
        Dialect::Anthropic => OVERLOADED,
    };
    match error.kind() {
        ErrorKind::AlreadyExists => StatusCode::CONFLICT,
        // Triton's doors answer 400.
        _ if error.code() == Some(TOO_LARGE) => StatusCode::PAYLOAD_TOO_LARGE,
        _ if error.code() == Some(UNKNOWN_ENCODING) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        // The caller is gone, so nobody reads it; nginx's word for that in logs is 499.
        ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::Overloaded => {
            StatusCode::from_u16(overload).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
        }
        _ => http_of(error),
    }
}

/// Returns the type of an error in a dialect.
pub(crate) fn error_type(dialect: Dialect, error: &Error) -> &'static str {
    let is_anthropic = dialect == Dialect::Anthropic;
    match error.kind() {
        _ if is_anthropic && error.code() == Some(TOO_LARGE) => "request_too_large",
        ErrorKind::InvalidRequest | ErrorKind::AlreadyExists => "invalid_request_error",
        ErrorKind::Unauthenticated => "authentication_error",
        ErrorKind::PermissionDenied => "permission_error",
        ErrorKind::NotFound if is_anthropic => "not_found_error",
        ErrorKind::NotFound | ErrorKind::Unimplemented => "invalid_request_error",
        ErrorKind::Overloaded | ErrorKind::Unavailable if is_anthropic => "overloaded_error",
        ErrorKind::Overloaded | ErrorKind::Unavailable => "service_unavailable",
        ErrorKind::DeadlineExceeded => "timeout_error",
        ErrorKind::Cancelled | ErrorKind::Internal if is_anthropic => "api_error",
        ErrorKind::Cancelled | ErrorKind::Internal => "server_error",
    }
}

/// Returns whether a request ended because nobody waited for it any longer.
pub(crate) fn is_cancelled(code: Code) -> bool {
    code == Code::Cancelled
}

/// Why a request failed, as Triton's metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureReason {
    /// No room in a queue, or no time left.
    Rejected,
    /// The client left.
    Canceled,
    /// The engine failed it.
    Backend,
    /// Anything else.
    Other,
}

impl FailureReason {
    /// Every reason.
    pub(crate) const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// Returns the value of Triton's label `reason`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// Returns why a request failed, as Triton's metrics tell it.
pub(crate) fn failure_reason(code: Code) -> FailureReason {
    match code {
        Code::Cancelled => FailureReason::Canceled,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => {
            FailureReason::Rejected
        }
        Code::Internal | Code::Unknown | Code::InvalidArgument => FailureReason::Backend,
        _ => FailureReason::Other,
    }
}

/// Returns the name of a code as metrics and logs show it, such as `INVALID_ARGUMENT`.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Gives a message over the size limit the code that gRPC C++, and so Triton, answers:
/// RESOURCE_EXHAUSTED, where tonic says OUT_OF_RANGE. Other statuses pass unchanged.
pub(crate) fn oversized(status: Status) -> Status {
    if status.code() != Code::OutOfRange {
        return status;
    }
    Status::resource_exhausted(format!(
        "{}; the server's limits are --grpc-max-receive-message-bytes (at most 1 MiB for a call \
         that carries no tensors or files) and --grpc-max-send-message-bytes",
        status.message().trim_start_matches("Error, ")
    ))
}

/// Returns the status for a call of a restricted group without the right header, as in Triton.
pub(crate) fn restricted(header: &str) -> Status {
    Status::unavailable(format!("This protocol is restricted, expecting header '{header}'"))
}

/// Returns the status of a call that went well.
pub(crate) fn fine() -> Status {
    Status::new(Code::Ok, "")
}

/// Returns the status for a message over the limit of its direction.
pub(crate) fn too_large(length: usize, limit: usize) -> Status {
    oversized(Status::out_of_range(format!(
        "message length too large: found {length} bytes, the limit is: {limit} bytes"
    )))
}

/// Returns the status for a message that is no protobuf of its type.
pub(crate) fn undecodable(error: Malformed) -> Status {
    match error {
        Malformed::TooMany => Status::invalid_argument(error.to_string()),
        Malformed::Undecodable(error) => {
            Status::internal(format!("failed to decode Protobuf message: {error}"))
        }
    }
}

/// Returns the status for a message that is not taken: too long a one, or a compressed one of a
/// call that names no compression.
pub(crate) fn bad_prefix(prefix: BadPrefix) -> Status {
    match prefix {
        BadPrefix::TooLong { length, max_bytes } => too_large(length, max_bytes),
        BadPrefix::Flag(1) => {
            Status::internal("a message is compressed, and `grpc-encoding` names no compression")
        }
        BadPrefix::Flag(flag) => {
            Status::internal(format!("a message begins with {flag}, expected 0 or 1"))
        }
    }
}

/// Returns the status of a call whose deadline passed before its message was there.
pub(crate) fn late() -> Status {
    Status::deadline_exceeded("Deadline Exceeded: the request was still coming")
}

/// Returns the status of a call whose connection failed.
pub(crate) fn broken(error: impl std::fmt::Display) -> Status {
    Status::cancelled(format!("the request could not be read: {error}"))
}

/// Returns the status for a message that takes too long to come.
pub(crate) fn slow(why: Slow) -> Status {
    Status::invalid_argument(format!("the request {why}"))
}

/// Returns the status for a call whose messages are compressed in a way that is not `accepted`.
pub(crate) fn unknown_encoding(name: &str, accepted: &'static str) -> Status {
    let text = format!("`grpc-encoding: {name}` is not supported; {accepted} are");
    let mut status = Status::unimplemented(cut(&text));
    status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static(accepted));
    status
}

/// Returns the status for a message that could not be decompressed.
pub(crate) fn unpackable(why: Unpackable, max_bytes: usize) -> Status {
    match why {
        Unpackable::TooLong => oversized(Status::out_of_range(format!(
            "message length too large: found more after decompression, the limit is: \
             {max_bytes} bytes"
        ))),
        Unpackable::Broken(error) => {
            Status::internal(format!("a message could not be decompressed: {error}"))
        }
        Unpackable::Failed(error) => grpc(&error),
    }
}

/// Returns the status for a unary call with more than one message.
pub(crate) fn second_message() -> Status {
    Status::unimplemented("a second message came, where the call has one")
}

/// Returns the status for a body that ends inside a message.
pub(crate) fn cut_off() -> Status {
    Status::internal("the request ends inside a message")
}

/// Returns the status for a unary call without a message.
pub(crate) fn without_message() -> Status {
    Status::internal("Missing request message.")
}

/// Rewrites the answer to a message over the size limit; see [`oversized`].
pub(crate) fn with_triton_size_code(
    mut response: http::Response<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    if response.headers().get("grpc-status").is_none_or(|code| code != "11") {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(found) if found.code() == Code::OutOfRange => {
            let headers = response.headers_mut();
            // A status whose text cannot stand in a header leaves the old one: still an error.
            let _ = oversized(found).add_header(headers);
            response
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_that_triton_clients_expect() {
        let table = [
            (ErrorKind::InvalidRequest, "INVALID_ARGUMENT"),
            (ErrorKind::Unauthenticated, "UNAUTHENTICATED"),
            (ErrorKind::PermissionDenied, "PERMISSION_DENIED"),
            (ErrorKind::NotFound, "NOT_FOUND"),
            (ErrorKind::AlreadyExists, "ALREADY_EXISTS"),
            (ErrorKind::Overloaded, "UNAVAILABLE"),
            (ErrorKind::Unavailable, "UNAVAILABLE"),
            (ErrorKind::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (ErrorKind::Cancelled, "CANCELLED"),
            (ErrorKind::Unimplemented, "UNIMPLEMENTED"),
            (ErrorKind::Internal, "INTERNAL"),
        ];
        for (kind, expected) in table {
            assert_eq!(code_name(code(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_code_of_an_error_may_say_more_than_its_kind() {
        let limited = Error::new(ErrorKind::Overloaded, "x").with_code(RATE_LIMITED);
        let limited = limited.with_retry_after(Duration::from_millis(1500));
        assert_eq!(http_of(&limited), 429);
        let large = Error::invalid("x").with_code(TOO_LARGE);
        assert_eq!(
            (http_of(&large), of_openai(Dialect::OpenAi, &large, 503)),
            (StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE)
        );
        let full = Error::new(ErrorKind::Overloaded, "x");
        assert_eq!(
            (http_of(&full), code_of(&full)),
            (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable)
        );
        let busy = full.with_code(BUSY);
        assert_eq!(http_of(&busy), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(code_of(&busy), Code::ResourceExhausted);
        let mut headers = HeaderMap::new();
        add_retry_after(&limited, &mut headers);
        assert_eq!(
            (&headers["retry-after"], &headers["retry-after-ms"]),
            (&HeaderValue::from_static("2"), &HeaderValue::from_static("1500"))
        );
        let status = grpc(&limited);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let kind = b"type.googleapis.com/google.rpc.RetryInfo";
        let info =
            [&b"\x0a\x28"[..], kind, b"\x12\x0a\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01"].concat();
        let expected = [&b"\x08\x08\x12\x01x\x1a\x36"[..], &info].concat();
        assert_eq!(status.details(), expected);
    }

    #[test]
    fn the_status_of_overload_is_the_dialects() {
        let full = Error::new(ErrorKind::Overloaded, "full");
        assert_eq!(of_openai(Dialect::OpenAi, &full, 503), 503);
        assert_eq!(of_openai(Dialect::Anthropic, &full, 503), 529);
        assert_eq!(error_type(Dialect::Anthropic, &full), "overloaded_error");
        let unknown = Error::not_found("x");
        assert_eq!(of_openai(Dialect::Anthropic, &unknown, 503), 404);
        assert_eq!(error_type(Dialect::Anthropic, &unknown), "not_found_error");
    }

    #[test]
    fn only_an_oversized_message_changes_its_code() {
        let status = Status::out_of_range("Error, decoded message length too large: found 9 bytes");
        assert_eq!(oversized(status).code(), Code::ResourceExhausted);
        assert_eq!(oversized(Status::internal("x")).code(), Code::Internal);
    }
}
