//! Text to tokens and tokens to text.

mod detokenizer;

use ahash::AHashMap;
use engine::{Error, Result, TokenId, TokenKind, Vocabulary};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper};

pub(crate) use detokenizer::{Decoder, TokenTable};

/// A model's tokenizer, made from the tables in its file.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    bos: Option<TokenId>,
    /// The longest token, which bounds how much text fits into a context.
    longest_token_bytes: usize,
}

impl Tokenizer {
    /// Makes the tokenizer.
    ///
    /// Errors: a kind of tokenizer, or a pre-tokenizer, that is not known.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self> {
        if vocabulary.model != "gpt2" {
            let kind = &vocabulary.model;
            let text = format!("tokenizer `{kind}` is not known; known is `gpt2`, byte-level BPE");
            return Err(Error::invalid(text));
        }
        let failed = |error: tokenizers::Error| {
            Error::invalid(format!("the tokenizer cannot be made: {error}"))
        };
        let mut merges = Vec::with_capacity(vocabulary.merges.len());
        for merge in &vocabulary.merges {
            let (left, right) = merge.split_once(' ').ok_or_else(|| {
                Error::invalid(format!("merge `{merge}`: expected two parts and a space"))
            })?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let ids: AHashMap<String, TokenId> = vocabulary.tokens.iter().cloned().zip(0..).collect();
        let model = BPE::builder().vocab_and_merges(ids, merges).build().map_err(failed)?;
        let mut encoder = tokenizers::Tokenizer::new(model);
        encoder.with_pre_tokenizer(Some(pre_tokenizer(&vocabulary.pre_tokenizer)?));
        let (special, added): (Vec<_>, Vec<_>) = vocabulary
            .kinds
            .iter()
            .zip(&vocabulary.tokens)
            .filter(|(kind, _)| matches!(kind, TokenKind::Control | TokenKind::UserDefined))
            .map(|(kind, token)| (*kind == TokenKind::Control, token.clone()))
            .partition(|(is_special, _)| *is_special);
        let token = |special: bool| move |(_, text)| AddedToken::from(text, special);
        encoder.add_special_tokens(special.into_iter().map(token(true))).map_err(failed)?;
        encoder.add_tokens(added.into_iter().map(token(false))).map_err(failed)?;
        let longest = vocabulary.tokens.iter().map(String::len).max().unwrap_or(1);
        Ok(Self {
            encoder,
            bos: vocabulary.bos.filter(|_| vocabulary.add_bos),
            longest_token_bytes: longest,
        })
    }

    /// Returns the tokens of a text. Control tokens that are spelled out in it are taken as such.
    ///
    /// Errors: the tokenizer's own, which a byte-level one does not have.
    pub fn encode(&self, text: &str, with_bos: bool) -> Result<Vec<TokenId>> {
        let encoding = self
            .encoder
            .encode_fast(text, false)
            .map_err(|error| Error::internal(format!("the prompt cannot be tokenized: {error}")))?;
        let bos = self.bos.filter(|_| with_bos);
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Returns the least number of tokens that a text of so many bytes has.
    pub(crate) fn least_tokens(&self, bytes: usize) -> usize {
        bytes / self.longest_token_bytes
    }
}

fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper> {
    let byte_level = || PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true));
    match name {
        "smollm" => {
            let digits = PreTokenizerWrapper::Digits(Digits::new(true));
            Ok(Sequence::new(vec![digits, byte_level()]).into())
        }
        "gpt-2" | "default" | "" => Ok(byte_level()),
        other => Err(Error::invalid(format!(
            "pre-tokenizer `{other}` is not known; known are `smollm`, `gpt-2` and `default`"
        ))),
    }
}

#[cfg(test)]
mod tests;
