//! The API keys in force: whose key a call brings, and whether it may go on.
//!
//! Only digests are held. A digest is compared with those of all keys, each in a time that does
//! not depend on where they differ.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use engine::{Error, ErrorKind, Meter, Result};
use http::{HeaderMap, header};
use ring::digest::{SHA256, digest};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::bucket::Bucket;
use super::grant::Grant;
use super::keyfile::{self, Entry};
use super::scope::Need;
use super::tls::read;

/// The keys of a file.
pub(crate) struct Keys {
    path: PathBuf,
    current: RwLock<Arc<[Arc<Key>]>>,
    /// The file as it was when it was last looked at.
    seen: Mutex<std::result::Result<Vec<u8>, String>>,
}

/// One key, and what it has used.
#[derive(Debug)]
pub(super) struct Key {
    pub entry: Entry,
    usage: Arc<Usage>,
    is_withdrawn: AtomicBool,
}

/// What is left of a key's rates.
#[derive(Debug)]
struct Usage {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Meter for Usage {
    fn count(&self, tokens: u64) {
        if let Some(bucket) = &self.tokens {
            bucket.charge(tokens, Instant::now());
        }
    }
}

impl Keys {
    /// Reads the file.
    ///
    /// Errors: a sentence that names the flag.
    pub(crate) fn load(path: PathBuf) -> std::result::Result<Self, String> {
        let seen = read(&path);
        let keys = Self { path, current: RwLock::new(Arc::new([])), seen: Mutex::new(Ok(vec![])) };
        keys.replace(&seen)?;
        *keys.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(keys)
    }

    /// Reads the file again; returns whether something new is in force.
    ///
    /// Errors: a new file that is wrong, told once; what was in force stays.
    pub(super) fn refresh(&self) -> std::result::Result<bool, String> {
        let file = read(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == file {
            return Ok(false);
        }
        let replaced = self.replace(&file);
        *seen = file;
        replaced.map(|()| true)
    }

    /// Puts the keys of a file in force. A key that stays with its limits keeps what it has used.
    fn replace(
        &self,
        file: &std::result::Result<Vec<u8>, String>,
    ) -> std::result::Result<(), String> {
        let fail = |why: &String| format!("--api-keys: {why}");
        let bytes = file.as_ref().map_err(fail)?;
        let entries = keyfile::parse(&self.path, bytes)
            .map_err(|why| format!("--api-keys: `{}`: {why}", self.path.display()))?;
        let old = self.all();
        let now = Instant::now();
        let make = |entry: Entry| {
            let before = old.iter().find(|key| {
                key.entry.name == entry.name
                    && key.entry.requests_per_minute == entry.requests_per_minute
                    && key.entry.tokens_per_minute == entry.tokens_per_minute
            });
            let usage = before.map(|key| key.usage.clone());
            Arc::new(Key::new(entry, usage, now))
        };
        let new: Arc<[Arc<Key>]> = entries.into_iter().map(make).collect();
        let digests: std::collections::HashSet<_> =
            new.iter().map(|key| key.entry.digest).collect();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        for key in old.iter().filter(|key| !digests.contains(&key.entry.digest)) {
            key.is_withdrawn.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn all(&self) -> Arc<[Arc<Key>]> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what the caller may do, if that is enough for the call. It does not count as a
    /// request yet: see [`Grant::admit`].
    ///
    /// Errors: `Unauthenticated` without a key that is in force, `PermissionDenied` with one that
    /// lacks the scope.
    pub(crate) fn check(&self, headers: &HeaderMap, need: Need) -> Result<Grant> {
        if need == Need::Nothing {
            return Ok(Grant::default());
        }
        let Some(given) = given(headers) else {
            let text = "no API key was given: expected `Authorization: Bearer KEY` or \
                        `x-api-key: KEY`";
            return Err(Error::new(ErrorKind::Unauthenticated, text).with_code("invalid_api_key"));
        };
        let digest = digest(&SHA256, given);
        let keys = self.all();
        let at = position(keys.iter().map(|key| &key.entry.digest), digest.as_ref());
        let key = at.and_then(|at| keys.get(at)).ok_or_else(invalid)?;
        key.is_in_force()?;
        if !need.is_met(&key.entry.scopes) {
            let text = format!(
                "API key `{}` has no scope for this: expected {}",
                key.entry.name,
                need.spelled()
            );
            return Err(denied(text));
        }
        Ok(Grant::of_key(key.clone()))
    }
}

impl Key {
    fn new(entry: Entry, usage: Option<Arc<Usage>>, now: Instant) -> Self {
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, now));
        let usage = usage.unwrap_or_else(|| {
            Arc::new(Usage {
                requests: bucket(entry.requests_per_minute),
                tokens: bucket(entry.tokens_per_minute),
            })
        });
        Self { entry, usage, is_withdrawn: AtomicBool::new(false) }
    }

    /// Refuses a key that was taken out of the file, or has expired.
    pub(super) fn is_in_force(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.is_withdrawn.load(Ordering::Relaxed) {
            return Err(invalid());
        }
        match self.entry.expires {
            Some(end) if i128::from(end) <= i128::from(now) => {
                let text = format!("API key `{}` has expired", self.entry.name);
                Err(Error::new(ErrorKind::Unauthenticated, text).with_code("invalid_api_key"))
            }
            _ => Ok(()),
        }
    }

    /// Takes a request of the key's rate, if there are tokens left too.
    pub(super) fn take_request(&self) -> Result<()> {
        let now = Instant::now();
        let limited = |what: &str, rate: Option<u64>, wait: std::time::Duration| {
            let name = &self.entry.name;
            let text = format!(
                "API key `{name}` is over its limit of {} {what} per minute: try again in {} s",
                rate.unwrap_or_default(),
                wait.as_secs_f64().ceil().max(1.0)
            );
            Error::new(ErrorKind::Overloaded, text)
                .with_code("rate_limit_exceeded")
                .with_retry_after(wait)
        };
        if let Some(bucket) = &self.usage.tokens {
            let rate = self.entry.tokens_per_minute;
            bucket.take(0.0, 1.0, now).map_err(|wait| limited("tokens", rate, wait))?;
        }
        if let Some(bucket) = &self.usage.requests {
            let rate = self.entry.requests_per_minute;
            bucket.take(1.0, 1.0, now).map_err(|wait| limited("requests", rate, wait))?;
        }
        Ok(())
    }

    /// Returns what counts the key's tokens.
    pub(super) fn meter(&self) -> Arc<dyn Meter> {
        self.usage.clone()
    }
}

fn invalid() -> Error {
    Error::new(ErrorKind::Unauthenticated, "the API key is not valid").with_code("invalid_api_key")
}

/// Makes the refusal of what a key may not do.
pub(super) fn denied(text: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, text).with_code("insufficient_permissions")
}

/// Returns the key that a call brings: the bearer's token, or else `x-api-key`.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.as_bytes().split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    let given = bearer.or_else(|| headers.get("x-api-key").map(http::HeaderValue::as_bytes));
    given.filter(|key| !key.is_empty())
}

/// Takes the key out of a request that passed, so that nothing behind the door can log or
/// forward it.
pub(crate) fn forget(headers: &mut HeaderMap) {
    headers.remove(header::AUTHORIZATION);
    headers.remove("x-api-key");
}

/// Returns where a digest stands among others, having compared it with every one of them.
fn position<'a>(digests: impl Iterator<Item = &'a [u8; 32]>, wanted: &[u8]) -> Option<usize> {
    const NOWHERE: u64 = u64::MAX;
    let mut found = NOWHERE;
    for (at, digest) in digests.enumerate() {
        found.conditional_assign(&(at as u64), digest.as_slice().ct_eq(wanted));
    }
    (found != NOWHERE).then_some(found as usize)
}

#[cfg(test)]
mod tests;
