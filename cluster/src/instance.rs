//! One running worker: where it is and what it serves.
//!
//! The record that lies in a store is [`Instance::to_json`]; what comes back is checked before
//! anyone sees it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use engine::{Error, Result};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::card::{Card, check_version};

/// The version of the record that this build writes, and the only one that it reads.
pub const INSTANCE_VERSION: u32 = 1;
/// The largest record, in bytes of JSON; etcd takes 1.5 MiB.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// The most models of one worker.
pub const MAX_CARDS: usize = 64;
/// The longest address, in bytes.
pub const MAX_ADDRESS_BYTES: usize = 1024;
/// The most addresses of one worker beside the first.
pub const MAX_MORE_ADDRESSES: usize = 8;
/// The longest namespace, in bytes.
pub const MAX_NAMESPACE_BYTES: usize = 128;

/// The number of one life of a worker: drawn at random when it starts and never used again.
///
/// It is 16 hexadecimal digits in JSON and in keys, since many readers of JSON lose digits of
/// large numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(pub u64);

/// A worker that registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The version of this JSON: [`INSTANCE_VERSION`].
    pub version: u32,
    /// The number of this life of the worker.
    pub id: InstanceId,
    /// The fleet it belongs to.
    pub namespace: Namespace,
    /// Where its request plane is, such as `grpc://127.0.0.1:7001`.
    pub address: String,
    /// Where else it answers or tells of itself, such as
    /// `nats://stator.default.worker.00c0ffee00c0ffee` or `unix://00c0ffee00c0ffee`. A reader uses
    /// what it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_addresses: Vec<String>,
    /// What it serves.
    pub cards: Vec<Card>,
    /// When it started, in milliseconds since 1970: of two workers with different cards under
    /// one name the older one has it. 0 says nothing, and who says nothing counts as the youngest.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// Whether it takes no new work and ends when its work is done.
    #[serde(default)]
    pub is_draining: bool,
}

/// The name of a fleet: letters, digits, `.`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(String);

impl InstanceId {
    /// Draws a number from the system's source, since workers all over a fleet must not meet.
    pub fn random() -> Self {
        let mut bytes = [0; 8];
        match SystemRandom::new().fill(&mut bytes) {
            Ok(()) => Self(u64::from_le_bytes(bytes)),
            Err(_) => Self(fastrand::u64(..)),
        }
    }
}

impl Instance {
    /// Makes an instance without models, with a new number.
    pub fn new(namespace: Namespace, address: impl Into<String>) -> Self {
        Self {
            version: INSTANCE_VERSION,
            id: InstanceId::random(),
            namespace,
            address: address.into(),
            more_addresses: Vec::new(),
            cards: Vec::new(),
            started_unix_ms: 0,
            is_draining: false,
        }
    }

    /// Checks sizes and all cards.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) names what is wrong.
    pub fn check(&self) -> Result<()> {
        check_version("instance", self.version, INSTANCE_VERSION)?;
        if self.more_addresses.len() > MAX_MORE_ADDRESSES {
            let count = self.more_addresses.len();
            return Err(Error::invalid(format!(
                "instance: expected at most {MAX_MORE_ADDRESSES} more addresses, got {count}"
            )));
        }
        self.more_addresses.iter().chain([&self.address]).try_for_each(|one| check_address(one))?;
        if self.cards.len() > MAX_CARDS {
            return Err(Error::invalid(format!(
                "instance: expected at most {MAX_CARDS} cards, got {}",
                self.cards.len()
            )));
        }
        let mut names = BTreeSet::new();
        for card in &self.cards {
            card.check()?;
            for name in card.aliases.iter().chain([&card.name]) {
                if !names.insert(name) {
                    return Err(Error::invalid(format!(
                        "instance: the name `{name}` stands in its cards more than once"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Returns the record for a store.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if it does not pass
    /// [`Instance::check`] or is larger than [`MAX_RECORD_BYTES`].
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.check()?;
        let json = serde_json::to_vec(self)
            .map_err(|error| Error::internal("instance: cannot be written").with_source(error))?;
        check_size(json.len())?;
        Ok(json)
    }

    /// Reads and checks a record.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) says what is wrong; a version of
    /// another build is named as such, whatever else the record holds.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        check_size(json.len())?;
        let wrong = |error| Error::invalid(format!("instance: {error}"));
        let Version { version } = serde_json::from_slice(json).map_err(wrong)?;
        check_version("instance", version, INSTANCE_VERSION)?;
        let instance: Self = serde_json::from_slice(json).map_err(wrong)?;
        instance.check()?;
        Ok(instance)
    }
}

fn check_address(address: &str) -> Result<()> {
    let has_scheme = address.split_once("://").is_some_and(|(_, rest)| !rest.is_empty());
    let has_control = address.chars().any(char::is_control);
    match has_scheme && !has_control && address.len() <= MAX_ADDRESS_BYTES {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "instance: address: expected `scheme://where` without control characters, of at most \
             {MAX_ADDRESS_BYTES} bytes, got {:?}",
            address.chars().take(80).collect::<String>()
        ))),
    }
}

fn check_size(bytes: usize) -> Result<()> {
    match bytes <= MAX_RECORD_BYTES {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "instance: expected at most {MAX_RECORD_BYTES} bytes of JSON, got {bytes}"
        ))),
    }
}

impl Namespace {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether all of a text may stand in a namespace.
    pub(crate) fn is_spelled_with(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    }
}

impl FromStr for Namespace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > MAX_NAMESPACE_BYTES || !Self::is_spelled_with(text) {
            return Err(Error::invalid(format!(
                "namespace: expected 1 to {MAX_NAMESPACE_BYTES} letters, digits, `.`, `_` or `-`, \
                 got {:?}",
                text.chars().take(80).collect::<String>()
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Namespace {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        namespace.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl FromStr for InstanceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(Self).ok_or_else(|| {
            Error::invalid(format!("instance: id: expected 16 hex digits, got {text:?}"))
        })
    }
}

impl TryFrom<String> for InstanceId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::{Input, Kind};

    fn instance() -> Instance {
        Instance {
            id: InstanceId(0xab),
            cards: vec![Card::new("m", Kind::Text, Input::Token)],
            ..Instance::new("fleet-1".parse().unwrap(), "grpc://127.0.0.1:7001")
        }
    }

    #[test]
    fn a_record_survives_its_store_and_fields_of_newer_builds_are_ignored() {
        let json = String::from_utf8(instance().to_json().unwrap()).unwrap();
        assert_eq!(Instance::from_json(json.as_bytes()).unwrap(), instance());
        assert!(json.contains(r#""id":"00000000000000ab""#), "{json}");
        let newer = json.replacen('{', r#"{"zone":{"name":"a"},"#, 1);
        assert_eq!(Instance::from_json(newer.as_bytes()).unwrap(), instance());
    }

    #[test]
    fn hostile_and_foreign_records_are_refused_by_name() {
        let text = String::from_utf8(instance().to_json().unwrap()).unwrap();
        let cases = [
            (text.replacen(r#""version":1"#, r#""version":2"#, 1), "version 2 is not supported"),
            (r#"{"version":7,"id":[]}"#.into(), "version 7 is not supported"),
            ("{}".into(), "version"),
            (String::new(), "EOF"),
            (text.replace("00000000000000ab", "ab"), "16 hex digits"),
            (text.replace("00000000000000ab", "+0000000000000ab"), "16 hex digits"),
            (text.replace("fleet-1", "a/b"), "namespace"),
            (text.replace("grpc://127.0.0.1:7001", "127.0.0.1:7001"), "scheme"),
            (text.replace("grpc://127.0.0.1:7001", "grpc://a\\u0000b"), "control"),
            (text.replace(r#""cards""#, r#""more_addresses":["grpc://a","b"],"cards""#), "scheme"),
            (text.replace(r#""kind":"text""#, r#""kind":"smell""#), "smell"),
            (text.replace(r#""name":"m""#, r#""name":"""#), "name"),
            (" ".repeat(MAX_RECORD_BYTES + 1), "bytes of JSON"),
        ];
        for (text, word) in cases {
            let error = Instance::from_json(text.as_bytes()).unwrap_err();
            assert!(error.message().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_name_stands_for_one_card_of_an_instance() {
        let mut twice = instance();
        twice.cards.push(twice.cards[0].clone());
        assert!(twice.to_json().unwrap_err().message().contains("more than once"));
        twice.cards[1].name = "n".into();
        twice.check().unwrap();
        twice.cards[1].aliases.push("m".into());
        assert!(twice.to_json().unwrap_err().message().contains("`m` stands"));
    }
}
