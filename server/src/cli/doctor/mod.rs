//! `stator doctor`: what this machine has, what can be reached from it, and what to do about the
//! rest.

mod machine;
mod reach;

use std::fmt;

use crate::args::DoctorArgs;
use crate::support::invalid::Invalid;

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// As it should be, or not needed.
    Ok,
    /// A server runs, with less than it could have.
    Warn,
    /// A server, or what was asked for, does not work.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// What was found of one thing.
#[derive(Debug)]
struct Finding {
    level: Level,
    /// What was looked at.
    what: String,
    found: String,
    /// What to do; nothing where all is well.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), found: found.into(), advice: None }
    }

    fn warn(what: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { level: Level::Warn, what: what.into(), found: found.into(), advice }
    }

    fn fail(what: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(what, found, advice) }
    }
}

/// All that was found.
#[derive(Debug)]
pub struct Report(Vec<Finding>);

impl Report {
    /// Returns whether everything that was asked for works.
    pub fn is_healthy(&self) -> bool {
        self.0.iter().all(|finding| finding.level != Level::Fail)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
        for Finding { level, what, found, advice } in &self.0 {
            writeln!(f, "{level:<5} {what:<width$}  {found}")?;
            if let Some(advice) = advice {
                writeln!(f, "{:5} {:width$}  -> {advice}", "", "")?;
            }
        }
        Ok(())
    }
}

/// Looks at the machine and at what the flags name.
///
/// # Errors
/// [`Invalid`], naming the flag that is wrong.
pub fn examine(args: &DoctorArgs) -> Result<Report, Invalid> {
    let mut findings = machine::examine();
    findings.extend(reach::examine(args)?);
    Ok(Report(findings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_to_do_and_whether_it_is_needed() {
        let well = Finding::ok("port 8000", "free");
        let slow = Finding::warn("open files", "256", "run `ulimit -n 65536`");
        let report = Report(vec![well, slow]);
        assert!(report.is_healthy());
        let text = "ok    port 8000   free\n\
                    warn  open files  256\n                  -> run `ulimit -n 65536`\n";
        assert_eq!(report.to_string(), text);
        assert!(!Report(vec![Finding::fail("port 8000", "taken", "stop it")]).is_healthy());
    }
}
