//! The `grpc-timeout` header: how long a caller waits, as gRPC over HTTP/2 writes it.

use std::time::{Duration, Instant};

use engine::{Error, ErrorKind};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The name of the header.
pub(super) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Units from the finest to the coarsest, in nanoseconds.
const UNITS: [(char, u64); 6] = [
    ('n', 1),
    ('u', 1_000),
    ('m', 1_000_000),
    ('S', 1_000_000_000),
    ('M', 60_000_000_000),
    ('H', 3_600_000_000_000),
];

/// The largest number that a header may hold.
const MAX_DIGITS: u64 = 99_999_999;

/// Writes the time that is left, rounded down to what the format can say.
pub(super) fn header(left: Duration) -> HeaderValue {
    let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    let (unit, size) = UNITS
        .into_iter()
        .find(|(_, size)| left / size <= MAX_DIGITS)
        .unwrap_or(UNITS[UNITS.len() - 1]);
    let text = format!("{}{unit}", (left / size).min(MAX_DIGITS));
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("0n"))
}

/// Reads when the caller stops waiting; none: it did not say. Errors: a header that is none.
pub(super) fn read(headers: &HeaderMap) -> Result<Option<Instant>, Error> {
    let Some(value) = headers.get(TIMEOUT) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    match parse(text) {
        Some(timeout) => Ok(Instant::now().checked_add(timeout)),
        None => Err(Error::invalid(format!("grpc-timeout: `{text}` is not a gRPC timeout"))),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let value: u64 = digits.parse().ok().filter(|_| is_number)?;
    let (_, size) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    Some(Duration::from_nanos(value.saturating_mul(size)))
}

/// The error of a request whose time is over.
pub(super) fn exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "Deadline Exceeded: the request's own time is over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back_as_the_format_can_say_it() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(7), "7000000u"),
            (Duration::from_secs(3600), "3600000m"),
            (Duration::MAX, "5124095H"),
        ];
        for (time, text) in table {
            assert_eq!(header(time), text);
            assert!(parse(text).unwrap() <= time);
        }
        for wrong in ["", "m", "5", "-1m", "123456789m", "1é", "1x", "+1S"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
