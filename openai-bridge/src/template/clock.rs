//! The time as templates ask for it: Python's `strftime` over a moment in UTC.

const SECONDS_A_DAY: i64 = 86_400;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The last second of the year 9999, after which Python has no dates either.
const LAST: u64 = 253_402_300_799;

/// The moment of a request, in UTC: an argument, because this crate has no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    unix_s: i64,
}

impl Now {
    /// Makes the moment that is so many seconds after the beginning of 1970, 9999 at the latest.
    pub fn from_unix(seconds: u64) -> Self {
        Self { unix_s: seconds.min(LAST) as i64 }
    }

    /// Writes the moment as Python's `datetime.strftime` does; what is no directive stays.
    pub(super) fn format(self, format: &str) -> String {
        let date = Date::of(self.unix_s);
        let mut out = String::with_capacity(format.len() * 2);
        let mut rest = format.chars();
        while let Some(letter) = rest.next() {
            if letter != '%' {
                out.push(letter);
                continue;
            }
            let before = rest.clone();
            let mut directive = rest.next();
            // The C library's `-`: no padding.
            let is_bare = directive == Some('-');
            if is_bare {
                directive = rest.next();
            }
            let text = directive.and_then(|directive| date.field(directive, self.unix_s));
            match text {
                Some(text) if is_bare => out.push_str(bare(&text)),
                Some(text) => out.push_str(&text),
                None => {
                    out.push('%');
                    rest = before;
                }
            }
        }
        out
    }
}

/// Takes the padding off a number; `00` becomes `0`.
fn bare(text: &str) -> &str {
    let number = text.trim_start_matches(['0', ' ']);
    if number.starts_with(|first: char| first.is_ascii_digit()) || text.is_empty() {
        return number;
    }
    match text.chars().all(|digit| digit == '0') {
        true => "0",
        false => text,
    }
}

/// A moment's fields in the Gregorian calendar.
struct Date {
    year: i64,
    /// From 1.
    month: i64,
    day: i64,
    /// From 1.
    day_of_year: i64,
    /// From Sunday, which is 0.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Date {
    fn of(unix_s: i64) -> Self {
        let (days, seconds) = (unix_s / SECONDS_A_DAY, unix_s % SECONDS_A_DAY);
        let mut year = 1970 + days / 366;
        while days_before(year + 1) <= days {
            year += 1;
        }
        let mut month = 1;
        let mut day = days - days_before(year);
        let day_of_year = day + 1;
        while day >= days_in(year, month) {
            day -= days_in(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: day + 1,
            day_of_year,
            // The first of January 1970 was a Thursday.
            weekday: (days + 4) % 7,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    /// Returns what a directive stands for, in the C locale and without a time zone.
    fn field(&self, directive: char, unix_s: i64) -> Option<String> {
        let mut out = String::new();
        let parts = |format: &str| Some(Now { unix_s }.format(format));
        let hour_12 = if self.hour % 12 == 0 { 12 } else { self.hour % 12 };
        match directive {
            'a' => out.push_str(&self.weekday_name()[..3]),
            'A' => out.push_str(self.weekday_name()),
            'b' | 'h' => out.push_str(&self.month_name()[..3]),
            'B' => out.push_str(self.month_name()),
            'd' => two(&mut out, self.day),
            'e' => out = format!("{:2}", self.day),
            'm' => two(&mut out, self.month),
            'y' => two(&mut out, self.year % 100),
            'Y' => out = format!("{}", self.year),
            'C' => two(&mut out, self.year / 100),
            'H' => two(&mut out, self.hour),
            'I' => two(&mut out, hour_12),
            'k' => out = format!("{:2}", self.hour),
            'l' => out = format!("{hour_12:2}"),
            'M' => two(&mut out, self.minute),
            'S' => two(&mut out, self.second),
            'f' => out.push_str("000000"),
            'j' => out = format!("{:03}", self.day_of_year),
            'p' => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => out.push_str(if self.hour < 12 { "am" } else { "pm" }),
            's' => out = format!("{unix_s}"),
            'u' => out = format!("{}", (self.weekday + 6) % 7 + 1),
            'w' => out = format!("{}", self.weekday),
            'U' => two(&mut out, (self.day_of_year + 6 - self.weekday) / 7),
            'W' => two(&mut out, (self.day_of_year + 6 - (self.weekday + 6) % 7) / 7),
            'G' => out = format!("{}", self.iso_week().0),
            'g' => two(&mut out, self.iso_week().0 % 100),
            'V' => two(&mut out, self.iso_week().1),
            'c' => return parts("%a %b %e %H:%M:%S %Y"),
            'x' | 'D' => return parts("%m/%d/%y"),
            'X' | 'T' => return parts("%H:%M:%S"),
            'F' => return parts("%Y-%m-%d"),
            'R' => return parts("%H:%M"),
            'r' => return parts("%I:%M:%S %p"),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            '%' => out.push('%'),
            // A moment without a time zone has neither name nor offset in Python.
            'z' | 'Z' => {}
            _ => return None,
        }
        Some(out)
    }

    fn weekday_name(&self) -> &'static str {
        DAYS[self.weekday as usize]
    }

    fn month_name(&self) -> &'static str {
        MONTHS[self.month as usize - 1]
    }

    /// Returns the year and the week of ISO 8601: weeks begin on Monday, the first has a Thursday.
    fn iso_week(&self) -> (i64, i64) {
        let thursday = self.day_of_year + 3 - (self.weekday + 6) % 7;
        let length = if is_leap(self.year) { 366 } else { 365 };
        if thursday < 1 {
            let before = if is_leap(self.year - 1) { 366 } else { 365 };
            (self.year - 1, (thursday + before - 1) / 7 + 1)
        } else if thursday > length {
            (self.year + 1, 1)
        } else {
            (self.year, (thursday - 1) / 7 + 1)
        }
    }
}

fn two(out: &mut String, number: i64) {
    *out = format!("{number:02}");
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

/// Returns the days between the first of January 1970 and that of a later year.
fn days_before(year: i64) -> i64 {
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_python_writes_them() {
        let all = "%a %A %b %B %d %e %m %y %Y %H %I %M %S %j %p %u %w %U %W %G %V";
        let table = [
            (
                0,
                all,
                "Thu Thursday Jan January 01  1 01 70 1970 00 12 00 00 001 AM 4 4 00 00 1970 01",
            ),
            (
                1_709_210_096,
                all,
                "Thu Thursday Feb February 29 29 02 24 2024 12 12 34 56 060 PM 4 4 08 09 2024 09",
            ),
            (
                1_609_459_199,
                all,
                "Thu Thursday Dec December 31 31 12 20 2020 23 11 59 59 366 PM 4 4 52 52 2020 53",
            ),
            (
                1_609_459_200,
                "%F %T %G-%V %c",
                "2021-01-01 00:00:00 2020-53 Fri Jan  1 00:00:00 2021",
            ),
            (1_735_516_800, "%G-%V", "2025-01"),
            (1_609_459_200, "%-d %-m %-H %-M %-j %d%%", "1 1 0 0 1 01%"),
            (0, "100% %Q %", "100% %Q %"),
            (0, "%Z|%z|%f", "||000000"),
            (u64::MAX, "%F", "9999-12-31"),
            (4_102_444_800, "%d %b %Y", "01 Jan 2100"),
        ];
        for (seconds, format, expected) in table {
            assert_eq!(Now::from_unix(seconds).format(format), expected, "{seconds} {format}");
        }
    }
}
