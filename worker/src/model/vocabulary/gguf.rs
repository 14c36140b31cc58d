//! The tokenizer's tables out of a model file's metadata.

use engine::{TokenId, TokenKind, Vocabulary};

use super::Tokens;
use crate::Error;
use crate::weights::gguf::{Gguf, Value};

/// The pre-tokenizers whose models want a beginning token unless their file says otherwise, as
/// llama.cpp has it.
const ADDS_BOS: [&str; 10] = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
    "chameleon",
];

impl Tokens {
    /// Reads the vocabulary of a GGUF file.
    ///
    /// Errors: no tokens, or tables of other kinds or lengths than they should have.
    pub fn from_gguf(file: &Gguf) -> Result<Self, Error> {
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        if tokens.is_empty() {
            return Err(Error::Model("`tokenizer.ggml.tokens` is missing or empty".into()));
        }
        let text = |key: &str| Ok::<_, Error>(file.optional_string(key)?.map(str::to_owned));
        let id = |key: &str| match file.optional_number(key)? {
            None => Ok(None),
            Some(id) if id < tokens.len() as u64 => Ok(Some(id as TokenId)),
            Some(id) => {
                Err(Error::Model(format!("`{key}`: {id} is not one of {} tokens", tokens.len())))
            }
        };
        let model = text("tokenizer.ggml.model")?.unwrap_or_default();
        let pre_tokenizer = text("tokenizer.ggml.pre")?.unwrap_or_default();
        let is_sentence_piece = model == "llama";
        let adds_bos = is_sentence_piece || ADDS_BOS.contains(&pre_tokenizer.as_str());
        let eos = id("tokenizer.ggml.eos_token_id")?;
        let turn = id("tokenizer.ggml.eot_token_id")?;
        let mut ends: Vec<TokenId> = eos.into_iter().chain(turn).collect();
        ends.dedup();
        let vocabulary = Vocabulary {
            kinds: kinds(file, tokens.len())?,
            merges: strings(file, "tokenizer.ggml.merges")?,
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos,
            add_bos: flag(file, "tokenizer.ggml.add_bos_token", adds_bos)?,
            scores: scores(file, tokens.len())?,
            add_space_prefix: flag(file, "tokenizer.ggml.add_space_prefix", is_sentence_piece)?,
            json: text("tokenizer.huggingface.json")?,
            chat_template: text("tokenizer.chat_template")?,
            model,
            pre_tokenizer,
            tokens,
        };
        Ok(Self { vocabulary, eos: ends })
    }
}

fn flag(file: &Gguf, key: &str, default: bool) -> Result<bool, Error> {
    match file.get(key) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Error::Model(format!("`{key}`: expected a boolean"))),
    }
}

fn scores(file: &Gguf, tokens: usize) -> Result<Vec<f32>, Error> {
    let key = "tokenizer.ggml.scores";
    let wrong = || Error::Model(format!("`{key}`: expected an array of numbers"));
    let values = match file.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(wrong()),
    };
    if values.len() != tokens {
        let got = values.len();
        return Err(Error::Model(format!("`{key}`: expected {tokens} elements, got {got}")));
    }
    let score = |value: &Value| match value {
        Value::Float(score) => Ok(*score as f32),
        Value::Signed(score) => Ok(*score as f32),
        Value::Unsigned(score) => Ok(*score as f32),
        _ => Err(wrong()),
    };
    values.iter().map(score).collect()
}

fn strings(file: &Gguf, key: &str) -> Result<Vec<String>, Error> {
    let wrong = || Error::Model(format!("`{key}`: expected an array of strings"));
    match file.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                _ => Err(wrong()),
            })
            .collect(),
        Some(_) => Err(wrong()),
    }
}

fn kinds(file: &Gguf, tokens: usize) -> Result<Vec<TokenKind>, Error> {
    let key = "tokenizer.ggml.token_type";
    let Some(value) = file.get(key) else {
        return Ok(Vec::new());
    };
    let Value::Array(values) = value else {
        return Err(Error::Model(format!("`{key}`: expected an array")));
    };
    if values.len() != tokens {
        let got = values.len();
        return Err(Error::Model(format!("`{key}`: expected {tokens} elements, got {got}")));
    }
    let kind = |value: &Value| match value {
        Value::Signed(1) | Value::Unsigned(1) => Ok(TokenKind::Normal),
        Value::Signed(2) | Value::Unsigned(2) => Ok(TokenKind::Unknown),
        Value::Signed(3) | Value::Unsigned(3) => Ok(TokenKind::Control),
        Value::Signed(4) | Value::Unsigned(4) => Ok(TokenKind::UserDefined),
        Value::Signed(5) | Value::Unsigned(5) => Ok(TokenKind::Unused),
        Value::Signed(6) | Value::Unsigned(6) => Ok(TokenKind::Byte),
        _ => Err(Error::Model(format!("`{key}`: expected kinds from 1 to 6"))),
    };
    values.iter().map(kind).collect()
}
