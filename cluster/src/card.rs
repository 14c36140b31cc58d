//! What a worker registers for one model, and what makes two workers serve the same one.
//!
//! A card is JSON to the world: unknown fields are ignored, so that newer workers may say more,
//! a version that this build does not know is refused, and every size is bounded.

use std::fmt;

use engine::{Error, Result, TokenId};
use ring::digest;
use serde::{Deserialize, Serialize};

mod sha256;
mod triton_config;

pub use sha256::Sha256;

/// The version of the card's JSON that this build writes, and the only one that it reads.
pub const CARD_VERSION: u32 = 1;
/// The longest name of a model, an alias, a parser, an adapter or an artifact, in bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// The most other names of one model.
pub const MAX_ALIASES: usize = 64;
/// The most adapters of one model on one worker.
pub const MAX_ADAPTERS: usize = 4096;
/// The most artifacts of one model.
pub const MAX_ARTIFACTS: usize = 64;
/// The most tokens that end a continuation.
pub const MAX_EOS_TOKENS: usize = 64;
/// The largest serialized tensor configuration, in bytes.
pub const MAX_TENSOR_CONFIG_BYTES: usize = 256 << 10;

/// One model as a worker offers it.
///
/// ```
/// use cluster::card::{Card, Input, Kind};
/// let card = Card::new("smollm", Kind::Chat, Input::Token);
/// let json = serde_json::to_string(&card).unwrap();
/// assert_eq!(serde_json::from_str::<Card>(&json).unwrap(), card);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The version of this JSON: [`CARD_VERSION`].
    pub version: u32,
    /// The name that clients use.
    pub name: String,
    /// The number of the version that clients call it by; 0 is 1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub model_version: u64,
    /// The name that clients use for a version that is not the latest of its worker; this card's own
    /// name tells the two apart. Empty for the latest one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version_of: String,
    /// Other names of the same model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What the model is for.
    pub kind: Kind,
    /// What the worker takes.
    pub input: Input,
    /// Which part of the work the worker does.
    #[serde(default)]
    pub role: Role,
    /// A serialized Triton `ModelConfig`, base64 in JSON, which says what tensors go in and out.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "triton_config")]
    pub tensor_config: Option<Vec<u8>>,
    /// The most tokens of prompt and continuation together; 0 for a tensor model.
    #[serde(default)]
    pub context_length: u32,
    /// Tokens of one KV block; 0 where there is no KV cache.
    #[serde(default)]
    pub block_size: u32,
    /// Tokens that end a continuation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eos_tokens: Vec<TokenId>,
    /// The parser of tool calls, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_parser: Option<String>,
    /// The parser of reasoning, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_parser: Option<String>,
    /// LoRA adapters that are loaded; they may differ between workers of one name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
    /// What a frontend needs of the model, by content: the tokenizer's tables, the chat template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Continues a text.
    Text,
    /// Continues a text and answers conversations, by its chat template.
    Chat,
    /// Makes vectors of texts.
    Embedding,
    /// Makes tensors of tensors.
    Tensor,
}

/// What a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Texts and messages: the worker has the template and the tokenizer.
    Text,
    /// Tokens: the frontend has them, from the artifacts.
    Token,
    /// Tensors as the configuration declares them.
    Tensor,
}

/// Which part of the work a worker does.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// All of it.
    #[default]
    Aggregated,
    /// Computes prompts and hands their KV blocks on.
    Prefill,
    /// Continues prompts that others computed.
    Decode,
}

/// Bytes that belong to a model and are fetched by their content.
///
/// The hash is SHA-256 and not the faster XXH3, because a frontend keeps artifacts of many workers
/// in one cache: nobody may be able to make a second content for a hash. They are hashed once, at
/// load.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is: `tokenizer.json`, `vocabulary`, `chat_template`, …
    pub name: String,
    /// The hash of its content.
    pub sha256: Sha256,
    /// Its size in bytes, so that a reader can refuse it before it is fetched.
    pub bytes: u64,
}

/// What is equal between two cards exactly when workers of both may serve one name.
pub type Checksum = Sha256;

impl Card {
    /// Makes the card of an aggregated model that has nothing but a name and a kind.
    pub fn new(name: impl Into<String>, kind: Kind, input: Input) -> Self {
        Self {
            version: CARD_VERSION,
            name: name.into(),
            model_version: 0,
            version_of: String::new(),
            aliases: Vec::new(),
            kind,
            input,
            role: Role::default(),
            tensor_config: None,
            context_length: 0,
            block_size: 0,
            eos_tokens: Vec::new(),
            tool_call_parser: None,
            reasoning_parser: None,
            adapters: Vec::new(),
            artifacts: Vec::new(),
        }
    }

    /// Returns the number of the version that clients call it by.
    pub fn number(&self) -> u64 {
        self.model_version.max(1)
    }

    /// Returns what clients call the model that workers know by one of this card's names.
    pub fn public<'a>(&'a self, name: &'a str) -> &'a str {
        if self.version_of.is_empty() { name } else { &self.version_of }
    }

    /// Returns the hash of everything that has to be equal between workers of one name.
    ///
    /// Adapters and the role may differ. A tensor configuration is compared by its bytes.
    pub fn checksum(&self) -> Checksum {
        let mut context = digest::Context::new(&digest::SHA256);
        for (field, value) in self.identity() {
            // Lengths make the sequence of fields readable in one way only.
            for part in [field.as_bytes(), value.as_slice()] {
                context.update(&(part.len() as u64).to_le_bytes());
                context.update(part);
            }
        }
        Sha256::from_digest(&context.finish())
    }

    /// Returns the names of the fields that keep two cards from serving one name.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let pairs = self.identity().into_iter().zip(other.identity());
        pairs.filter(|(mine, theirs)| mine.1 != theirs.1).map(|(mine, _)| mine.0).collect()
    }

    /// Returns the fields that have to be equal, in an order that never changes, as bytes that
    /// do not depend on the order in which lists were given.
    fn identity(&self) -> [(&'static str, Vec<u8>); 13] {
        let sorted = |list: &[String]| {
            let mut list = list.to_vec();
            list.sort();
            list
        };
        let mut eos = self.eos_tokens.clone();
        eos.sort_unstable();
        let mut artifacts = self.artifacts.clone();
        artifacts.sort();
        [
            ("name", json(&self.name)),
            ("model_version", json(&self.number())),
            ("version_of", json(&self.version_of)),
            ("aliases", json(&sorted(&self.aliases))),
            ("kind", json(&self.kind)),
            ("input", json(&self.input)),
            ("tensor_config", self.tensor_config.clone().unwrap_or_default()),
            ("context_length", json(&self.context_length)),
            ("block_size", json(&self.block_size)),
            ("eos_tokens", json(&eos)),
            ("tool_call_parser", json(&self.tool_call_parser)),
            ("reasoning_parser", json(&self.reasoning_parser)),
            ("artifacts", json(&artifacts)),
        ]
    }

    /// Checks sizes, and that the parts fit together.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) names the field that is wrong.
    pub fn check(&self) -> Result<()> {
        check_version("card", self.version, CARD_VERSION)?;
        check_name("name", &self.name)?;
        let model = &self.name;
        if !self.version_of.is_empty() {
            check_name("version_of", &self.version_of)?;
            let name = format!("{}/versions/{}", self.version_of, self.number());
            if *model != name {
                return Err(Error::invalid(format!(
                    "card `{model}`: `version_of`: expected the name `{name}`, got `{model}`"
                )));
            }
            check_count(model, "aliases", self.aliases.len(), 0)?;
        }
        check_list(model, "aliases", &self.aliases, MAX_ALIASES)?;
        check_list(model, "adapters", &self.adapters, MAX_ADAPTERS)?;
        check_count(model, "eos_tokens", self.eos_tokens.len(), MAX_EOS_TOKENS)?;
        check_count(model, "artifacts", self.artifacts.len(), MAX_ARTIFACTS)?;
        for artifact in &self.artifacts {
            check_name("artifact", &artifact.name)?;
        }
        for parser in [&self.tool_call_parser, &self.reasoning_parser].into_iter().flatten() {
            check_name("parser", parser)?;
        }
        let config_bytes = self.tensor_config.as_ref().map_or(0, Vec::len);
        check_count(model, "tensor_config", config_bytes, MAX_TENSOR_CONFIG_BYTES)?;
        let is_tensor = self.kind == Kind::Tensor;
        if is_tensor != (self.input == Input::Tensor) {
            return Err(Error::invalid(format!(
                "card `{model}`: kind `{:?}` cannot take input `{:?}`",
                self.kind, self.input
            )));
        }
        if is_tensor && self.tensor_config.is_none() {
            return Err(Error::invalid(format!(
                "card `{model}`: a tensor model needs a `tensor_config`, got none"
            )));
        }
        if self.role != Role::Aggregated && !matches!(self.kind, Kind::Text | Kind::Chat) {
            return Err(Error::invalid(format!(
                "card `{model}`: role `{:?}` is for models that generate, got kind `{:?}`",
                self.role, self.kind
            )));
        }
        Ok(())
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Tensor => "tensor",
        })
    }
}

/// Returns plain data as JSON.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and lists are always JSON")
}

/// Refuses a version that this build does not read.
pub(crate) fn check_version(what: &str, came: u32, expected: u32) -> Result<()> {
    match came == expected {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{what}: version {came} is not supported, this build reads version {expected}"
        ))),
    }
}

/// Refuses a name that is empty, too long or holds control characters.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Error::invalid(format!(
            "{what}: expected 1 to {MAX_NAME_BYTES} bytes, got {}",
            name.len()
        )));
    }
    match name.chars().any(char::is_control) {
        true => Err(Error::invalid(format!("{what} {name:?}: holds control characters"))),
        false => Ok(()),
    }
}

fn check_count(model: &str, field: &str, count: usize, most: usize) -> Result<()> {
    match count <= most {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "card `{model}`: `{field}`: expected at most {most}, got {count}"
        ))),
    }
}

fn check_list(model: &str, field: &str, list: &[String], most: usize) -> Result<()> {
    check_count(model, field, list.len(), most)?;
    list.iter().try_for_each(|name| check_name(field, name))
}

#[cfg(test)]
mod tests;
