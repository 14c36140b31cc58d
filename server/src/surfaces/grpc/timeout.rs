//! The `grpc-timeout` header: when a client stops waiting. It is read once for each call.

use std::time::{Duration, Instant};

use engine::{Error, Result};
use http::{Extensions, HeaderMap};

/// When a call's client stops waiting, in the request's extensions.
#[derive(Clone, Copy)]
pub(super) struct Deadline(pub Instant);

impl Deadline {
    /// Returns the deadline of a call, if it has one.
    pub(super) fn of(extensions: &Extensions) -> Option<Instant> {
        extensions.get::<Self>().map(|deadline| deadline.0)
    }
}

/// Returns the moment at which the client stops waiting, from the `grpc-timeout` header.
///
/// Errors: a header that does not follow the gRPC protocol, which has no timeout of 0.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Option<Instant>> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    match parse_timeout(text) {
        Some(timeout) => Ok(Instant::now().checked_add(timeout)),
        None => Err(Error::invalid(format!("grpc-timeout: `{text}` is not a gRPC timeout"))),
    }
}

/// Reads "at most 8 digits and a unit", as the gRPC protocol over HTTP/2 writes a timeout.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let value: u64 = digits.parse().ok().filter(|&value| is_number && value > 0)?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let table = [
            ("100m", Some(Duration::from_millis(100))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("2H", Some(Duration::from_secs(7200))),
            ("", None),
            ("m", None),
            ("5", None),
            ("-1m", None),
            ("123456789m", None),
            ("0n", None),
            ("1é", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }
}
