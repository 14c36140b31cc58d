//! Text to tokens and tokens to text.
//!
//! There are two encoders of a vocabulary: the library that models are published with, which is
//! always right, and our own, which is many times faster. Ours is compared with the library's on a
//! probe text when a model is loaded, and the library serves where ours differs or declines.

mod byte_level;
mod cache;
mod detokenizer;
mod fast;
mod gguf;
mod json;
mod merges;
mod pieces;
mod presets;
mod probe;
mod splitter;
mod words;

use std::sync::Arc;

use engine::{Error, ErrorKind, Result, TokenId, TokenKind, Vocabulary};
use tokenizers::PostProcessor;

use cache::Cache;
use fast::{Fast, Part};

use crate::controls::{MARK, unmarked};

pub(crate) use detokenizer::{Decoder, TokenTable};

/// The default bound on what a tokenizer remembers of earlier texts, in bytes.
pub const DEFAULT_CACHE_BYTES: usize = 32 << 20;

/// A model's tokenizer, made from the tables in its file.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    cache: Cache,
    table: Arc<TokenTable>,
    bos: Option<TokenId>,
    /// The longest token, which bounds how much text fits into a context.
    longest_token_bytes: usize,
}

#[derive(Debug)]
enum Encoder {
    Fast(Box<Fast>),
    Reference(Box<tokenizers::Tokenizer>),
    /// The library, which puts a text between the tokens that its model wants around it.
    Framing(Box<tokenizers::Tokenizer>),
    /// Somebody else has it.
    Absent,
}

impl Tokenizer {
    /// Makes the tokenizer.
    ///
    /// Errors: a kind of tokenizer, or a pre-tokenizer, that is not known; tables that do not fit
    /// together.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self> {
        if let Some(json) = &vocabulary.json {
            // The model's own file says all; the tables beside it are a summary of it.
            let bos = vocabulary.bos.filter(|_| vocabulary.add_bos);
            return Ok(Self { bos, ..Self::from_json(json.as_bytes())? });
        }
        let encoder = match vocabulary.model.as_str() {
            // The library has no such model: it knows merges, not scores.
            "llama" => Encoder::Fast(Box::new(gguf::sentence_piece(vocabulary)?)),
            _ => {
                let preset = preset(vocabulary)?;
                let reference = gguf::reference(vocabulary, &preset)?;
                let fast = gguf::fast(vocabulary, &preset);
                Encoder::checked(reference, fast, &vocabulary.tokens)
            }
        };
        Ok(Self::with(encoder, vocabulary))
    }

    /// Makes the tokenizer of a `tokenizer.json`, as Hugging Face's library writes it.
    ///
    /// Errors: a file that the library refuses; a decoder that is not known, by its name.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let (reference, json) = library(bytes)?;
        let tokens = json::tokens(&json);
        let spelled: Vec<String> = tokens.iter().map(|(token, _)| token.clone()).collect();
        let encoder = Encoder::checked(reference, json::fast(&json), &spelled);
        Self::of_json(encoder, &json, &tokens)
    }

    fn of_json(
        encoder: Encoder,
        json: &serde_json::Value,
        tokens: &[(String, TokenKind)],
    ) -> Result<Self> {
        let failed = |error: String| Error::invalid(format!("`tokenizer.json`: {error}"));
        let longest = longest(tokens.iter().map(|(token, _)| token.as_str()));
        Ok(Self {
            encoder,
            cache: Cache::new(DEFAULT_CACHE_BYTES),
            table: Arc::new(json::table(json, tokens).map_err(failed)?),
            bos: json::bos(json),
            // Where it is not known what normalising leaves, no text is too long to try.
            longest_token_bytes: json::shrinkage(json)
                .map_or(usize::MAX, |shrinkage| longest.saturating_mul(shrinkage)),
        })
    }

    /// Makes the tokenizer of an encoder from its `tokenizer.json`: whole texts stand between the
    /// tokens that the model wants around them. The library does it, whatever the kind: a pass
    /// over a text takes an encoder far longer.
    ///
    /// Errors: as [`from_json`](Tokenizer::from_json).
    pub fn framing(bytes: &[u8]) -> Result<Self> {
        let (reference, json) = library(bytes)?;
        let encoder = Encoder::Framing(Box::new(reference));
        Ok(Self { bos: None, ..Self::of_json(encoder, &json, &json::tokens(&json))? })
    }

    /// Stands in the place of a tokenizer that somebody else has: it refuses every text.
    pub fn absent() -> Self {
        let vocabulary = Vocabulary::default();
        Self { longest_token_bytes: usize::MAX, ..Self::with(Encoder::Absent, &vocabulary) }
    }

    /// Makes the tokenizer of a byte-level vocabulary with the library's encoder alone, to compare
    /// with.
    ///
    /// Errors: as [`new`](Tokenizer::new).
    pub fn reference(vocabulary: &Vocabulary) -> Result<Self> {
        let reference = gguf::reference(vocabulary, &preset(vocabulary)?)?;
        Ok(Self::with(Encoder::Reference(Box::new(reference)), vocabulary))
    }

    fn with(encoder: Encoder, vocabulary: &Vocabulary) -> Self {
        Self {
            encoder,
            cache: Cache::new(DEFAULT_CACHE_BYTES),
            table: Arc::new(TokenTable::new(vocabulary)),
            bos: vocabulary.bos.filter(|_| vocabulary.add_bos),
            longest_token_bytes: longest(vocabulary.tokens.iter().map(String::as_str)),
        }
    }

    /// Bounds what the tokenizer remembers of earlier texts; 0 remembers nothing.
    #[must_use]
    pub fn with_cache_bytes(self, bytes: usize) -> Self {
        Self { cache: Cache::new(bytes), ..self }
    }

    /// Returns whether the fast encoder is in use.
    pub fn is_fast(&self) -> bool {
        matches!(self.encoder, Encoder::Fast(_))
    }

    /// Returns the tokens of a text. Control tokens that are spelled out in it are taken as such.
    ///
    /// Errors: the library's own, which a byte-level tokenizer does not have.
    pub fn encode(&self, text: &str, with_bos: bool) -> Result<Vec<TokenId>> {
        let mut tokens = self.begin(text, with_bos);
        match &self.encoder {
            Encoder::Fast(fast) => {
                for part in fast.parts(text) {
                    match part {
                        Part::Token(token) => tokens.push(token),
                        Part::Text(text, is_first) => {
                            self.encode_cached(fast, text, is_first, &mut tokens);
                        }
                    }
                }
            }
            Encoder::Reference(reference) => tokens.extend(encode(reference, text)?),
            Encoder::Framing(reference) => tokens.extend(frame(reference, text, with_bos, None)?),
            Encoder::Absent => return Err(absent()),
        }
        Ok(tokens)
    }

    /// Returns the tokens of a text with [marks](crate::controls::MARK): no control token lies
    /// across one, and they are no part of the text.
    ///
    /// Errors: as [`encode`](Tokenizer::encode).
    pub(crate) fn encode_marked(&self, text: &str, with_bos: bool) -> Result<Vec<TokenId>> {
        if !text.contains(MARK) {
            return self.encode(text, with_bos);
        }
        let mut tokens = self.begin(text, with_bos);
        match &self.encoder {
            Encoder::Fast(fast) => {
                for part in fast.parts(text) {
                    match part {
                        Part::Token(token) => tokens.push(token),
                        Part::Text(text, is_first) if text.contains(MARK) => {
                            fast.encode_marked(text, is_first, &mut tokens);
                        }
                        Part::Text(text, is_first) => {
                            self.encode_cached(fast, text, is_first, &mut tokens);
                        }
                    }
                }
            }
            // The library cannot be told where: it gets the pieces.
            Encoder::Reference(reference) => {
                for piece in text.split(MARK) {
                    tokens.extend(encode(reference, piece)?);
                }
            }
            Encoder::Framing(_) => return self.encode(&unmarked(text), with_bos),
            Encoder::Absent => return Err(absent()),
        }
        Ok(tokens)
    }

    fn begin(&self, text: &str, with_bos: bool) -> Vec<TokenId> {
        // English has four or five bytes a token.
        let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
        tokens.extend(self.bos.filter(|_| with_bos));
        tokens
    }

    fn encode_cached(&self, fast: &Fast, text: &str, is_first: bool, tokens: &mut Vec<TokenId>) {
        let encode = |tokens: &mut _| fast.encode(text, is_first, tokens);
        self.cache.encode(text, is_first, tokens, encode);
    }

    /// Returns the tokens of a text cut to at most so many: of an encoder the first ones, with
    /// those around them, else the last ones.
    ///
    /// Errors: as [`encode`](Tokenizer::encode).
    pub fn encode_cut(&self, text: &str, most: usize) -> Result<Vec<TokenId>> {
        if let Encoder::Framing(reference) = &self.encoder {
            return frame(reference, text, true, Some(most));
        }
        let mut tokens = self.encode(text, true)?;
        tokens.drain(..tokens.len().saturating_sub(most));
        Ok(tokens)
    }

    /// Returns the text of tokens. Control tokens are part of it if they are shown.
    pub fn detokenize(&self, tokens: &[TokenId], shows_control: bool) -> String {
        self.table.text(tokens, shows_control)
    }

    /// Returns the bytes of every token.
    pub(crate) fn table(&self) -> Arc<TokenTable> {
        self.table.clone()
    }

    /// Returns the least number of tokens that a text of so many bytes has.
    pub(crate) fn least_tokens(&self, bytes: usize) -> usize {
        bytes / self.longest_token_bytes
    }
}

impl Encoder {
    /// Chooses the fast encoder if it is as the reference on a probe text.
    fn checked(
        reference: tokenizers::Tokenizer,
        fast: std::result::Result<Fast, String>,
        tokens: &[String],
    ) -> Self {
        match fast {
            Ok(fast) if probe::agrees(&reference, &fast, tokens) => Self::Fast(Box::new(fast)),
            _ => Self::Reference(Box::new(reference)),
        }
    }
}

/// Encodes by the library, as one whole text, cut to `most` tokens.
fn frame(
    reference: &tokenizers::Tokenizer,
    text: &str,
    with_frame: bool,
    most: Option<usize>,
) -> Result<Vec<TokenId>> {
    let failed = |error: tokenizers::Error| {
        Error::internal(format!("the text cannot be tokenized: {error}"))
    };
    let mut encoding = reference.encode_fast(text, false).map_err(failed)?;
    let frame = reference.get_post_processor().map_or(0, |frame| frame.added_tokens(false));
    if let Some(most) = most {
        let left = most.saturating_sub(if with_frame { frame } else { 0 });
        encoding.truncate(left, 0, tokenizers::TruncationDirection::Right);
    }
    let encoding = reference.post_process(encoding, None, with_frame).map_err(failed)?;
    let mut tokens = encoding.get_ids().to_vec();
    tokens.truncate(most.unwrap_or(usize::MAX));
    Ok(tokens)
}

/// Reads `tokenizer.json` by the library and as JSON.
fn library(bytes: &[u8]) -> Result<(tokenizers::Tokenizer, serde_json::Value)> {
    let failed = |error: String| Error::invalid(format!("`tokenizer.json`: {error}"));
    let mut reference =
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| failed(error.to_string()))?;
    // Texts are neither cut nor padded, whatever the file was made for.
    reference.with_truncation(None).map_err(|error| failed(error.to_string()))?;
    reference.with_padding(None);
    let json = serde_json::from_slice(bytes).map_err(|error| failed(error.to_string()))?;
    Ok((reference, json))
}

/// Encodes by the library.
fn absent() -> Error {
    let text = "the model's tokens are not known here: its workers have the tokenizer";
    Error::new(ErrorKind::Unimplemented, text)
}

fn encode(reference: &tokenizers::Tokenizer, text: &str) -> Result<Vec<TokenId>> {
    let encoding = reference
        .encode_fast(text, false)
        .map_err(|error| Error::internal(format!("the prompt cannot be tokenized: {error}")))?;
    Ok(encoding.get_ids().to_vec())
}

fn preset(vocabulary: &Vocabulary) -> Result<presets::Preset> {
    match vocabulary.model.as_str() {
        "gpt2" => presets::preset(&vocabulary.pre_tokenizer),
        kind => Err(Error::invalid(format!(
            "tokenizer `{kind}` is not known; known are `gpt2`, byte-level BPE, and `llama`, \
             SentencePiece"
        ))),
    }
}

fn longest<'a>(tokens: impl Iterator<Item = &'a str>) -> usize {
    tokens.map(str::len).max().unwrap_or(1).max(1)
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
