//! Headers that become request parameters, by a pattern (Triton's header forwarding).

use http::HeaderMap;
use regex::{Regex, RegexBuilder};
use tensor::{Parameter, Parameters};

use crate::support::invalid::Invalid;

/// Names that a header may not set, since they steer the request.
const RESERVED: [&str; 5] =
    ["sequence_id", "sequence_start", "sequence_end", "priority", "timeout"];

/// Which headers are forwarded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forwarding(Option<Regex>);

impl Forwarding {
    /// Compiles a pattern, which has to match a header's whole name; case does not matter.
    ///
    /// Errors: a pattern that is no regular expression.
    pub(crate) fn new(pattern: Option<&str>) -> Result<Self, regex::Error> {
        let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else {
            return Ok(Self(None));
        };
        let whole = format!("^(?:{pattern})$");
        RegexBuilder::new(&whole).case_insensitive(true).build().map(|regex| Self(Some(regex)))
    }

    /// Compiles the pattern of a flag.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub(crate) fn parse(flag: &str, pattern: Option<&str>) -> Result<Self, Invalid> {
        Self::new(pattern).map_err(|error| Invalid(format!("{flag}: {error}")))
    }

    /// Returns the headers that match, as string parameters; binary ones are not text.
    pub(crate) fn parameters(&self, headers: &HeaderMap) -> Parameters {
        let Some(pattern) = &self.0 else {
            return Parameters::new();
        };
        let forwarded = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let name = name.as_str();
            let is_reserved = name.starts_with("triton_") || RESERVED.contains(&name);
            let is_wanted = !is_reserved && !name.ends_with("-bin") && pattern.is_match(name);
            let text = value.to_str().ok().filter(|_| is_wanted)?;
            Some((name.to_owned(), Parameter::String(text.to_owned())))
        };
        headers.iter().filter_map(forwarded).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_match_and_reserved_ones_never_do() {
        let mut headers = HeaderMap::new();
        for name in ["x-tenant", "x-tenant-id", "other", "priority", "triton_x", "x-raw-bin"] {
            headers.insert(name, "v".parse().unwrap());
        }
        let names = |pattern| {
            let found = Forwarding::new(Some(pattern)).unwrap().parameters(&headers);
            found.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names("X-Tenant"), ["x-tenant"]);
        assert_eq!(names("x-.*"), ["x-tenant", "x-tenant-id"]);
        assert_eq!(names(".*"), ["other", "x-tenant", "x-tenant-id"]);
        assert!(Forwarding::new(Some("(")).is_err());
        assert!(Forwarding::new(None).unwrap().parameters(&headers).is_empty());
    }
}
