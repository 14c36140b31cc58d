//! How an error crosses the wire: exactly, in a trailer of its own, beside the status of gRPC.
//!
//! A peer that does not know the trailer reads the status; one that does not write it is
//! understood by its status. The statuses are the protocol's between frontends and workers, as
//! `proto/worker.proto` has them; clients never see them.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use engine::{Error, ErrorKind};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use proto::worker::Failure;
use proto::worker::failure::Kind;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const FAILURE: HeaderName = HeaderName::from_static("stator-failure-bin");

/// The most bytes of a message in a failure, and of its parameter and code: headers stay well
/// under the 16 KiB that other gRPC libraries take.
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_WORD_BYTES: usize = 256;

/// The most bytes of `grpc-message`, which only those read who do not know failures.
const MAX_TEXT_BYTES: usize = 512;

/// Kinds with their name on the wire and the status of gRPC that goes with them.
const KINDS: [(ErrorKind, Kind, u8); 11] = [
    (ErrorKind::InvalidRequest, Kind::InvalidRequest, 3),
    (ErrorKind::Unauthenticated, Kind::Unauthenticated, 16),
    (ErrorKind::PermissionDenied, Kind::PermissionDenied, 7),
    (ErrorKind::NotFound, Kind::NotFound, 5),
    (ErrorKind::AlreadyExists, Kind::AlreadyExists, 6),
    (ErrorKind::Overloaded, Kind::Overloaded, 8),
    (ErrorKind::Unavailable, Kind::Unavailable, 14),
    (ErrorKind::DeadlineExceeded, Kind::DeadlineExceeded, 4),
    (ErrorKind::Cancelled, Kind::Cancelled, 1),
    (ErrorKind::Unimplemented, Kind::Unimplemented, 12),
    (ErrorKind::Internal, Kind::Internal, 13),
];

/// Statuses that workers of other makes give, and what they are read as.
const OTHERS: [(u8, ErrorKind); 5] = [
    (9, ErrorKind::InvalidRequest),
    (11, ErrorKind::InvalidRequest),
    (10, ErrorKind::Unavailable),
    (2, ErrorKind::Internal),
    (15, ErrorKind::Internal),
];

/// Returns the trailers of a call that went well.
pub(super) fn fine() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    trailers
}

/// Returns the trailers of a call that failed.
pub(super) fn trailers(error: &Error) -> HeaderMap {
    let (_, kind, status) = KINDS.into_iter().find(|(kind, ..)| *kind == error.kind()).unwrap_or((
        ErrorKind::Internal,
        Kind::Internal,
        13,
    ));
    let wait = error.retry_after();
    let failure = Failure {
        kind: kind.into(),
        message: cut(error.message(), MAX_MESSAGE_BYTES).to_owned(),
        param: error.param().map(|param| cut(param, MAX_WORD_BYTES).to_owned()),
        code: error.code().map(|code| cut(code, MAX_WORD_BYTES).to_owned()),
        retry_after_ns: wait.map(|wait| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
    };
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert(STATUS, HeaderValue::from(u16::from(status)));
    let text = percent_encode(cut(error.message(), MAX_TEXT_BYTES));
    let values = [(MESSAGE, text), (FAILURE, STANDARD_NO_PAD.encode(failure.encode_to_vec()))];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            trailers.insert(name, value);
        }
    }
    trailers
}

/// Reads how a call ended; none: these headers do not say it.
pub(super) fn read(headers: &HeaderMap) -> Option<Result<(), Error>> {
    let status = headers.get(STATUS)?;
    let status: Option<u8> = status.to_str().ok().and_then(|text| text.parse().ok());
    if status == Some(0) {
        return Some(Ok(()));
    }
    let failure = headers.get(FAILURE).and_then(|value| {
        let value = value.as_bytes();
        let value = value.iter().position(|byte| *byte == b'=').map_or(value, |end| &value[..end]);
        Failure::decode(STANDARD_NO_PAD.decode(value).ok()?.as_slice()).ok()
    });
    Some(Err(failure.and_then(of_failure).unwrap_or_else(|| of_status(status, headers))))
}

fn of_failure(failure: Failure) -> Option<Error> {
    let named = Kind::try_from(failure.kind).ok()?;
    let (kind, ..) = KINDS.into_iter().find(|(_, kind, _)| *kind == named)?;
    let mut error = Error::new(kind, failure.message);
    if let Some(param) = failure.param {
        error = error.with_param(param);
    }
    if let Some(code) = failure.code {
        error = error.with_code(code);
    }
    Some(match failure.retry_after_ns {
        Some(wait) => error.with_retry_after(Duration::from_nanos(wait)),
        None => error,
    })
}

fn of_status(status: Option<u8>, headers: &HeaderMap) -> Error {
    let known = KINDS.into_iter().map(|(kind, _, code)| (code, kind)).chain(OTHERS);
    let kind = known
        .into_iter()
        .find(|(code, _)| Some(*code) == status)
        .map_or(ErrorKind::Internal, |(_, kind)| kind);
    match headers.get(MESSAGE) {
        Some(text) => Error::new(kind, percent_decode(text.as_bytes())),
        None => Error::new(kind, "the worker gave no reason"),
    }
}

fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// Encodes `grpc-message` as "gRPC over HTTP/2" has it.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Undoes that; what is no encoding stays.
pub(crate) fn percent_decode(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let hex = after.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(error: &Error) -> String {
        let (kind, wait) = (error.kind(), error.retry_after());
        format!("{kind:?} {} {:?} {:?} {wait:?}", error.message(), error.param(), error.code())
    }

    #[test]
    fn every_kind_and_field_of_an_error_survives() {
        for (kind, ..) in KINDS {
            let plain = Error::new(kind, "100 % wrong: ä\nb");
            let rich = plain.clone().with_param("tools[0].name").with_code("some_code");
            let rich = rich.with_retry_after(Duration::from_nanos(1_500_000_001));
            for error in [plain, rich] {
                let back = read(&trailers(&error)).unwrap().unwrap_err();
                assert_eq!(shown(&back), shown(&error));
            }
        }
        assert!(read(&fine()).unwrap().is_ok());
        assert!(read(&HeaderMap::new()).is_none());
    }

    #[test]
    fn a_bare_status_is_understood() {
        for (kind, _, status) in KINDS {
            let mut headers = trailers(&Error::new(kind, "100 % wrong: ä\nb"));
            headers.remove(FAILURE);
            let back = read(&headers).unwrap().unwrap_err();
            assert_eq!((back.kind(), back.message()), (kind, "100 % wrong: ä\nb"), "{status}");
        }
        for (status, kind) in OTHERS.into_iter().chain([(77, ErrorKind::Internal)]) {
            let mut headers = HeaderMap::new();
            headers.insert(STATUS, HeaderValue::from(u16::from(status)));
            assert_eq!(read(&headers).unwrap().unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn a_failure_may_be_padded_and_a_broken_one_does_not_hide_the_status() {
        let mut headers = trailers(&Error::not_found("gone"));
        let plain = headers.get(FAILURE).unwrap().to_str().unwrap().to_owned();
        headers.insert(FAILURE, HeaderValue::from_str(&format!("{plain}==")).unwrap());
        assert_eq!(read(&headers).unwrap().unwrap_err().message(), "gone");
        headers.insert(FAILURE, HeaderValue::from_static("!"));
        assert_eq!(read(&headers).unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let error = Error::internal("ä".repeat(10_000)).with_param("x".repeat(1000));
        let headers = trailers(&error);
        let bytes: usize = headers.iter().map(|(_, value)| value.len()).sum();
        assert!(bytes < 8 << 10, "{bytes}");
        assert_eq!(read(&headers).unwrap().unwrap_err().message(), "ä".repeat(2048));
    }
}
