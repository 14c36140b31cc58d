//! Times as Kubernetes writes them: RFC 3339 in UTC with microseconds.

use std::time::Duration;

const DAY: u64 = 24 * 3600;

/// Writes a time since 1970, as `2026-02-28T23:59:59.000001Z`.
pub(super) fn format(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = since_1970.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Reads a time in UTC, with or without parts of a second.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let is_time = hour < 24 && minute < 60 && second <= 60;
    if !is_time || !(1970..=9999).contains(&year) || fraction.len() > 9 {
        return None;
    }
    if !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    let days: u64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let days = days + (1..month).map(|month| days_of(year, month)).sum::<u64>() + day - 1;
    let nanos = digits(fraction)? * 10_u64.pow(9 - fraction.len() as u32);
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    Some(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(digits);
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

fn digits(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Returns year, month and day of a number of days since 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let (mut year, mut month) = (1970, 1);
    while days >= if is_leap(year) { 366 } else { 365 } {
        days -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    while days >= days_of(year, month) {
        days -= days_of(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments_are_written_and_read() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_772_323_199, "2026-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(format(Duration::from_secs(seconds)), text);
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)));
        }
        assert_eq!(parse("1970-01-01T00:00:01Z"), Some(Duration::from_secs(1)));
        for wrong in ["", "1970-01-01", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
        for wrong in ["2026-01-01T24:00:00Z", "2026-01-01T00:00:00+01:00", "2026-01-01T+1:00:00Z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(micros in 0_u64..200_000_000_000_000_000) {
            let moment = Duration::from_micros(micros);
            prop_assert_eq!(parse(&format(moment)), Some(moment));
        }

        #[test]
        fn nothing_that_comes_is_a_panic(text in "[0-9TZ:.+-]{0,40}") {
            parse(&text);
        }
    }
}
