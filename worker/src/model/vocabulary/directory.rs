//! The tokenizer's tables out of a directory: `tokenizer.json` says all of the text, the files
//! beside it name the tokens that begin and end one, and hold the chat template.

use std::collections::HashMap;
use std::path::Path;

use engine::{TokenId, TokenKind, Vocabulary};
use serde_json::Value;

use super::Tokens;
use crate::Error;
use crate::weights::{Json, text};

const TOKENIZER: &str = "tokenizer.json";

/// The highest number of a token; larger vocabularies are not known.
const MAX_TOKENS: u64 = 1 << 24;

impl Tokens {
    /// Reads the vocabulary of a directory; `config` is its `config.json`.
    ///
    /// Errors: a file that is missing or broken, more tokens than `vocab_size`, or tokens that
    /// begin or end a text and are none of the vocabulary; the text names file and field.
    pub fn from_directory(path: &Path, config: &Json) -> Result<Self, Error> {
        let json = text(&path.join(TOKENIZER))?;
        let file = Json::parse(TOKENIZER, json.as_bytes())
            .map_err(|why| Error::Model(format!("`{TOKENIZER}`: {why}")))?;
        let settings = Json::read_optional(&path.join("tokenizer_config.json"))?;
        let settings = settings.unwrap_or_default();
        let generation = Json::read_optional(&path.join("generation_config.json"))?;
        let generation = generation.unwrap_or_default();
        let rows = config.number("vocab_size")?.min(MAX_TOKENS) as usize;
        let table = Table::read(&file, rows)?;
        // Rows that stand for nothing have no text by which they could be named.
        let ids = table.tokens.iter().map(String::as_str).zip(0..);
        let ids: HashMap<&str, TokenId> = ids.filter(|(token, _)| !token.is_empty()).collect();
        let named = |key: &str| named(&settings, key, &ids);
        let ends = |json: &Json| numbers(json, "eos_token_id", rows);
        let mut eos = ends(&generation)?;
        if eos.is_empty() {
            eos = ends(config)?;
        }
        let end = named("eos_token")?;
        // The tokenizer's end comes first: it is what a chat template calls `eos_token`.
        eos.retain(|&id| Some(id) != end);
        eos.splice(..0, end);
        let mut seen = std::collections::HashSet::new();
        eos.retain(|id| seen.insert(*id));
        let templated = templated_bos(&file, rows)?;
        let bos = match templated.or(named("bos_token")?) {
            Some(bos) => Some(bos),
            None => numbers(config, "bos_token_id", rows)?.first().copied(),
        };
        let adds_bos = settings.optional_bool("add_bos_token")?.unwrap_or(templated.is_some());
        let vocabulary = Vocabulary {
            model: if is_pieces(&file) { "llama" } else { "gpt2" }.to_owned(),
            bos,
            eos: eos.first().copied(),
            add_bos: adds_bos,
            chat_template: chat_template(path, &settings)?,
            tokens: table.tokens,
            kinds: table.kinds,
            json: Some(json),
            ..Vocabulary::default()
        };
        Ok(Self { vocabulary, eos })
    }
}

/// The tokens of a `tokenizer.json` by number; numbers without a token are not in use.
struct Table {
    tokens: Vec<String>,
    kinds: Vec<TokenKind>,
}

impl Table {
    fn read(file: &Json, rows: usize) -> Result<Self, Error> {
        let mut table =
            Self { tokens: vec![String::new(); rows], kinds: vec![TokenKind::Unused; rows] };
        let model = file.object("model")?.ok_or_else(|| file.refusal("model", "is missing"))?;
        match model.get("vocab") {
            Some(Value::Object(vocabulary)) => {
                for (token, id) in vocabulary {
                    table.set(&model, "vocab", (token, id.as_u64(), TokenKind::Normal))?;
                }
            }
            // Unigram has a list of pairs.
            Some(Value::Array(vocabulary)) => {
                for (entry, id) in vocabulary.iter().zip(0..) {
                    let token = entry.get(0).and_then(Value::as_str);
                    let token = token.ok_or_else(|| {
                        model.refusal("vocab", "expected pairs of text and score")
                    })?;
                    table.set(&model, "vocab", (token, Some(id), TokenKind::Normal))?;
                }
            }
            _ => return Err(model.refusal("vocab", "expected an object or a list")),
        }
        for token in file.optional_list("added_tokens")?.unwrap_or_default() {
            let Some(text) = token["content"].as_str() else {
                return Err(file.refusal("added_tokens", "expected `content` to be a string"));
            };
            let is_special = token["special"].as_bool().unwrap_or_default();
            let kind = if is_special { TokenKind::Control } else { TokenKind::UserDefined };
            table.set(file, "added_tokens", (text, token["id"].as_u64(), kind))?;
        }
        let is_pieces = is_pieces(file);
        let unknown = model.get("unk_token").and_then(Value::as_str);
        for (token, kind) in table.tokens.iter().zip(&mut table.kinds) {
            if *kind == TokenKind::Normal && is_pieces && is_byte(token) {
                *kind = TokenKind::Byte;
            } else if *kind != TokenKind::Unused && is_pieces && Some(token.as_str()) == unknown {
                *kind = TokenKind::Unknown;
            }
        }
        Ok(table)
    }

    fn set(
        &mut self,
        file: &Json,
        key: &str,
        (token, id, kind): (&str, Option<u64>, TokenKind),
    ) -> Result<(), Error> {
        let rows = self.tokens.len();
        match id {
            Some(id) if id < rows as u64 => {
                self.tokens[id as usize] = token.to_owned();
                self.kinds[id as usize] = kind;
                Ok(())
            }
            Some(id) => {
                let why = format!("token {id} is not one of the {rows} of `vocab_size`");
                Err(file.refusal(key, &why))
            }
            None => Err(file.refusal(key, "expected a number for each token")),
        }
    }
}

/// Returns whether text is spelled as SentencePiece does, with `▁` for spaces, and not in letters
/// for bytes.
fn is_pieces(file: &Json) -> bool {
    let steps = |key: &str, list: &str| {
        let step = file.get(key);
        let nested = step.and_then(|step| step[list].as_array()).map(|steps| steps.iter());
        let kinds = step.into_iter().chain(nested.into_iter().flatten());
        kinds.filter_map(|step| step["type"].as_str()).collect::<Vec<_>>()
    };
    let decoders = steps("decoder", "decoders");
    let is_bytes = decoders.contains(&"ByteLevel");
    !is_bytes && decoders.iter().any(|kind| ["Metaspace", "ByteFallback"].contains(kind))
}

/// Returns whether a token is a single byte, as `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Reads a token that the tokenizer's settings name, as a text or as an object with its text.
fn named(
    settings: &Json,
    key: &str,
    ids: &HashMap<&str, TokenId>,
) -> Result<Option<TokenId>, Error> {
    let text = match settings.get(key) {
        None => return Ok(None),
        Some(Value::String(text)) => Some(text.as_str()),
        Some(token) => token["content"].as_str(),
    };
    match text.and_then(|text| ids.get(text)) {
        Some(id) => Ok(Some(*id)),
        None => Err(settings.refusal(key, "is no token of `tokenizer.json`")),
    }
}

/// Reads the number of a token, or a list of such.
fn numbers(json: &Json, key: &str, rows: usize) -> Result<Vec<TokenId>, Error> {
    let one = |value: &Value| match value.as_u64() {
        Some(id) if id < rows as u64 => Ok(id as TokenId),
        _ => Err(json.refusal(key, &format!("expected numbers of tokens below {rows}"))),
    };
    match json.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(one).collect(),
        Some(value) => one(value).map(|id| vec![id]),
    }
}

/// Returns the token that `tokenizer.json` puts in front of a text.
fn templated_bos(file: &Json, rows: usize) -> Result<Option<TokenId>, Error> {
    const KEY: &str = "post_processor";
    match file.get(KEY).and_then(first_of_template) {
        None => Ok(None),
        Some(id) if id < rows as u64 => Ok(Some(id as TokenId)),
        Some(id) => {
            let why = format!("token {id} is not one of the {rows} of `vocab_size`");
            Err(file.refusal(KEY, &why))
        }
    }
}

fn first_of_template(processor: &Value) -> Option<u64> {
    let nested = processor["processors"].as_array().map(|steps| steps.iter());
    let mut steps = std::iter::once(processor).chain(nested.into_iter().flatten());
    let template = steps.find(|step| step["type"] == "TemplateProcessing")?;
    let name = template["single"][0]["SpecialToken"]["id"].as_str()?;
    template["special_tokens"][name]["ids"][0].as_u64()
}

/// Reads the chat template: newer directories have a file of its own.
fn chat_template(path: &Path, settings: &Json) -> Result<Option<String>, Error> {
    let own = path.join("chat_template.jinja");
    if own.exists() {
        return text(&own).map(Some);
    }
    let key = "chat_template";
    if let Some(file) = Json::read_optional(&path.join("chat_template.json"))? {
        return Ok(file.optional_string(key)?.map(str::to_owned));
    }
    match settings.get(key) {
        Some(Value::Array(templates)) => {
            let default = templates.iter().find(|template| template["name"] == "default");
            let template = default.and_then(|template| template["template"].as_str());
            let missing = || settings.refusal(key, "expected a template called `default`");
            template.map(|template| Some(template.to_owned())).ok_or_else(missing)
        }
        _ => Ok(settings.optional_string(key)?.map(str::to_owned)),
    }
}
