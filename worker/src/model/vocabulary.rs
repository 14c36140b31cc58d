//! The tokenizer's tables out of a model file's metadata.

use engine::{TokenId, TokenKind, Vocabulary};

use crate::Error;
use crate::gguf::{Gguf, Value};

/// Reads the vocabulary.
///
/// Errors: no tokens, or tables of other kinds or lengths than they should have.
pub fn vocabulary(file: &Gguf) -> Result<Vocabulary, Error> {
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
    Ok(Vocabulary {
        model: text("tokenizer.ggml.model")?.unwrap_or_default(),
        pre_tokenizer: text("tokenizer.ggml.pre")?.unwrap_or_default(),
        kinds: kinds(file, tokens.len())?,
        merges: strings(file, "tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        add_bos: matches!(file.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true))),
        chat_template: text("tokenizer.chat_template")?,
        tokens,
    })
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
