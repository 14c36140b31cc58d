//! What the caller of a request may do; it travels in the request's extensions.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use engine::Meter;
use http::Extensions;
use http::request::Parts;

use super::keys::{Key, denied};

/// What a caller may do: everything, where no keys are configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grant(Option<Arc<Key>>);

impl Grant {
    /// Makes the grant of a key.
    pub(super) fn of_key(key: Arc<Key>) -> Self {
        Self(Some(key))
    }

    /// Returns the grant that a door put into a request's extensions; it puts one into every
    /// request where keys are configured.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Counts a request.
    ///
    /// Errors: `Unauthenticated` once the key is no longer in force; `Overloaded` with the code
    /// `rate_limit_exceeded` and the time to wait, over one of its rates.
    pub(crate) fn admit(&self) -> engine::Result<()> {
        match &self.0 {
            None => Ok(()),
            Some(key) => {
                key.is_in_force()?;
                key.take_request()
            }
        }
    }

    /// Refuses models that the key is not for.
    ///
    /// Errors: `PermissionDenied`.
    pub(crate) fn allows_model(&self, name: &str) -> engine::Result<()> {
        let Some(key) = &self.0 else { return Ok(()) };
        match key.entry.models.iter().any(|pattern| matches(pattern, name)) {
            true => Ok(()),
            false => Err(denied(format!("model '{name}' is not allowed for this key"))),
        }
    }

    /// Returns the name of the key, empty without keys: whose the things are that are kept.
    pub(crate) fn owner(&self) -> &str {
        self.0.as_ref().map_or("", |key| &key.entry.name)
    }

    /// Returns what counts the caller's tokens, for [`engine::Context::with_meter`].
    pub(crate) fn meter(&self) -> Option<Arc<dyn Meter>> {
        self.0.as_ref().map(|key| key.meter())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Grant {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}

/// Returns whether a name fits a pattern, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        // The earliest place leaves the most for what follows.
        let Some(at) = name.find(part) else {
            return false;
        };
        name = &name[at + part.len()..];
    }
    true
}

/// Marks a request without a key that may read of models.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stranger;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let table = [
            ("*", "", true),
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "x", true),
            ("org/*", "org/model", true),
        ];
        for (pattern, name, expected) in table {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn without_keys_everything_is_allowed() {
        let grant = Grant::of(&Extensions::new());
        assert!(grant.admit().is_ok() && grant.allows_model("any").is_ok());
        assert!(grant.meter().is_none());
    }
}
