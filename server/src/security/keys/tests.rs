//! Whose key a call brings, what it is refused, and what a new file changes.

use std::cell::Cell;

use super::super::scope::Scope;
use super::*;

const INFERENCE: Need = Need::One(Scope::Inference);

fn hex(key: &str) -> String {
    digest(&SHA256, key.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn toml(keys: &[(&str, &str, &str)]) -> String {
    let one = |(name, key, rest): &(&str, &str, &str)| {
        format!("[[keys]]\nname = \"{name}\"\nsha256 = \"{}\"\n{rest}\n", hex(key))
    };
    keys.iter().map(one).collect()
}

struct File(tempfile::TempDir);

impl File {
    fn new(keys: &[(&str, &str, &str)]) -> (Self, Keys) {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(&toml(keys));
        let keys = Keys::load(file.0.path().join("keys.toml")).unwrap();
        (file, keys)
    }

    fn write(&self, text: &str) {
        std::fs::write(self.0.path().join("keys.toml"), text).unwrap();
    }
}

fn headers(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
}

fn bearer(key: &str) -> HeaderMap {
    headers("authorization", &format!("Bearer {key}"))
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_digest_is_compared_with_all_others_wherever_it_stands() {
    let digests: Vec<[u8; 32]> = (0..100).map(|n| [n; 32]).collect();
    for (wanted, expected) in [(0, Some(0)), (50, Some(50)), (99, Some(99)), (200, None)] {
        let compared = Cell::new(0);
        let all = digests.iter().inspect(|_| compared.set(compared.get() + 1));
        assert_eq!(position(all, &[wanted; 32]), expected);
        assert_eq!(compared.get(), digests.len(), "{wanted}");
    }
    assert_eq!(position(std::iter::empty(), &[0; 32]), None);
    assert_eq!(position(digests.iter(), &[0; 31]), None);
}

#[test]
fn a_key_comes_as_a_bearers_token_or_by_itself() {
    let (_file, keys) = File::new(&[("a", "key-a", "")]);
    let table = [
        (bearer("key-a"), None),
        (headers("authorization", "bEARER  key-a "), None),
        (headers("x-api-key", "key-a"), None),
        (HeaderMap::new(), Some(ErrorKind::Unauthenticated)),
        (bearer("key-b"), Some(ErrorKind::Unauthenticated)),
        (bearer(""), Some(ErrorKind::Unauthenticated)),
        (headers("authorization", "key-a"), Some(ErrorKind::Unauthenticated)),
        (headers("authorization", "Basic key-a"), Some(ErrorKind::Unauthenticated)),
        (headers("x-api-key", &hex("key-a")), Some(ErrorKind::Unauthenticated)),
    ];
    for (headers, expected) in table {
        assert_eq!(kind(keys.check(&headers, INFERENCE)), expected, "{headers:?}");
        assert!(keys.check(&headers, Need::Nothing).is_ok());
    }
}

#[test]
fn a_key_needs_the_scope_and_the_model_and_a_date_to_come() {
    let (_file, keys) = File::new(&[
        ("reader", "r", "scopes = [\"metadata\"]"),
        ("caller", "c", "models = [\"chat-*\", \"add\"]"),
        ("old", "o", "expires = 2001-01-01"),
        ("new", "n", "expires = 2999-01-01T00:00:00Z\nscopes = [\"*\"]"),
    ]);
    let of = |key: &str| keys.check(&bearer(key), INFERENCE);
    assert_eq!(kind(of("r")), Some(ErrorKind::PermissionDenied));
    assert_eq!(kind(of("o")), Some(ErrorKind::Unauthenticated));
    let grant = of("c").unwrap();
    for (model, is_allowed) in
        [("chat-1", true), ("add", true), ("adder", false), ("a-chat-", false), ("", false)]
    {
        assert_eq!(grant.allows_model(model).is_ok(), is_allowed, "{model}");
    }
    let error = grant.allows_model("x").unwrap_err();
    assert_eq!(error.message(), "model 'x' is not allowed for this key");
    assert!(of("n").unwrap().allows_model("anything").is_ok());
}

#[test]
fn a_key_over_its_requests_is_told_when_to_come_back() {
    let (_file, keys) = File::new(&[("a", "a", "requests_per_minute = 2")]);
    let grant = keys.check(&bearer("a"), INFERENCE).unwrap();
    assert!(grant.admit().is_ok() && grant.admit().is_ok());
    let error = grant.admit().unwrap_err();
    assert_eq!(error.code(), Some("rate_limit_exceeded"));
    let wait = error.retry_after().unwrap().as_secs_f64();
    assert!((29.0..=30.0).contains(&wait), "{wait}");
}

#[test]
fn a_key_over_its_tokens_is_refused_at_the_next_request() {
    let (_file, keys) = File::new(&[("a", "a", "tokens_per_minute = 10")]);
    let grant = keys.check(&bearer("a"), INFERENCE).unwrap();
    assert!(grant.admit().is_ok());
    grant.meter().unwrap().count(25);
    let error = grant.admit().unwrap_err();
    assert!(error.message().contains("10 tokens per minute"), "{error}");
    assert!(error.retry_after().unwrap().as_secs() >= 90);
}

#[test]
fn a_new_file_takes_keys_away_and_a_broken_one_changes_nothing() {
    let limit = "requests_per_minute = 1";
    let (file, keys) = File::new(&[("a", "a", limit), ("b", "b", "")]);
    let (a, b) = (keys.check(&bearer("a"), INFERENCE), keys.check(&bearer("b"), INFERENCE));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.admit().is_ok() && b.admit().is_ok());
    assert_eq!(keys.refresh(), Ok(false));

    file.write("[[keys]]\nname = 1\n");
    assert!(keys.refresh().unwrap_err().contains("--api-keys"));
    assert_eq!(keys.refresh(), Ok(false), "a wrong file is told of once");
    assert!(keys.check(&bearer("b"), INFERENCE).is_ok());

    file.write(&toml(&[("a", "a", limit), ("c", "c", "")]));
    assert_eq!(keys.refresh(), Ok(true));
    assert!(keys.check(&bearer("c"), INFERENCE).is_ok());
    assert_eq!(kind(keys.check(&bearer("b"), INFERENCE)), Some(ErrorKind::Unauthenticated));
    // A stream that is open brings its grant again for every request.
    assert_eq!(kind(b.admit()), Some(ErrorKind::Unauthenticated));
    let again = keys.check(&bearer("a"), INFERENCE).unwrap();
    assert_eq!(kind(again.admit()), Some(ErrorKind::Overloaded), "what was used stays used");
}
