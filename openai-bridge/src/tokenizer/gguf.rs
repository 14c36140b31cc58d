//! Encoders from the tables of a GGUF file.

use ahash::AHashMap;
use engine::{Error, Result, TokenId, TokenKind, Vocabulary};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::byte_level::{ByteLevel, ByteLevelParts};
use super::detokenizer;
use super::fast::{Fast, Model, Parts};
use super::pieces::{self, Pieces, PiecesParts, Prefix, SPACE};
use super::presets::{GPT2, Preset};

/// Makes the fast encoder of a byte-level vocabulary, or says why it cannot.
pub(super) fn fast(vocabulary: &Vocabulary, preset: &Preset) -> std::result::Result<Fast, String> {
    let ids = vocabulary.tokens.iter().map(String::as_str).zip(0..).collect();
    let merges: Vec<(&str, &str)> =
        vocabulary.merges.iter().filter_map(|merge| merge.split_once(' ')).collect();
    let model = ByteLevel::new(&ByteLevelParts {
        ids: &ids,
        merges: &merges,
        splits: preset.splits,
        ignores_merges: preset.ignores_merges,
        adds_space: false,
    })?;
    Fast::new(Parts {
        raw: added(vocabulary, &[TokenKind::Control, TokenKind::UserDefined]),
        normalized: Vec::new(),
        composes: preset.composes,
        model: Model::Bytes(model),
    })
}

/// Makes the encoder of a SentencePiece vocabulary.
///
/// Errors: no scores; neither a token for each byte nor one for what is unknown.
pub(super) fn sentence_piece(vocabulary: &Vocabulary) -> Result<Fast> {
    let count = vocabulary.tokens.len();
    if vocabulary.scores.len() != count {
        let got = vocabulary.scores.len();
        return Err(Error::invalid(format!("tokenizer: expected {count} scores, got {got}")));
    }
    let kind = |id: TokenId| vocabulary.kinds.get(id as usize).copied().unwrap_or_default();
    let tokens = || vocabulary.tokens.iter().map(String::as_str).zip(0..);
    let is_byte = |token: &str, id| {
        let byte = detokenizer::byte(token);
        byte.filter(|_| matches!(kind(id), TokenKind::Byte | TokenKind::Normal))
    };
    let found: AHashMap<u8, TokenId> =
        tokens().filter_map(|(token, id)| Some((is_byte(token, id)?, id))).collect();
    let bytes = (found.len() == 256).then(|| {
        let mut bytes = Box::new([0; 256]);
        found.iter().for_each(|(byte, id)| bytes[usize::from(*byte)] = *id);
        bytes
    });
    let unknown = tokens().map(|(_, id)| id).find(|&id| kind(id) == TokenKind::Unknown);
    if bytes.is_none() && unknown.is_none() {
        let text = "tokenizer: expected a token for each byte or one for unknown text, got neither";
        return Err(Error::invalid(text));
    }
    let is_text = |id| matches!(kind(id), TokenKind::Normal | TokenKind::Unused);
    let ids = tokens().filter(|(token, id)| is_text(*id) && is_byte(token, *id).is_none());
    let ids = ids.collect::<AHashMap<_, _>>();
    let model = Pieces::new(PiecesParts {
        ids: &ids,
        merges: pieces::merges(&ids, &vocabulary.scores),
        prefix: if vocabulary.add_space_prefix { Prefix::Always } else { Prefix::Never },
        bytes,
        unknown,
        fuses_unknown: true,
    });
    let kinds = [TokenKind::Control, TokenKind::UserDefined, TokenKind::Unknown];
    let raw = added(vocabulary, &kinds).into_iter();
    let parts = Parts {
        raw: raw.map(|(token, id)| (token.replace(SPACE, " "), id)).collect(),
        normalized: Vec::new(),
        composes: false,
        model: Model::Pieces(model),
    };
    Fast::new(parts).map_err(|error| Error::invalid(format!("tokenizer: {error}")))
}

fn added(vocabulary: &Vocabulary, kinds: &[TokenKind]) -> Vec<(String, TokenId)> {
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0..);
    let tokens = tokens.filter(|((_, kind), _)| kinds.contains(kind));
    tokens.map(|((token, _), id)| (token.clone(), id)).collect()
}

/// Makes the reference's encoder of a byte-level vocabulary.
///
/// Errors: what the library refuses; a merge that is not two parts.
pub(super) fn reference(vocabulary: &Vocabulary, preset: &Preset) -> Result<tokenizers::Tokenizer> {
    let failed =
        |error: tokenizers::Error| Error::invalid(format!("the tokenizer cannot be made: {error}"));
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for merge in &vocabulary.merges {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            Error::invalid(format!("merge `{merge}`: expected two parts and a space"))
        })?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let ids: AHashMap<String, TokenId> = vocabulary.tokens.iter().cloned().zip(0..).collect();
    let builder = BPE::builder().vocab_and_merges(ids, merges);
    let model = builder.ignore_merges(preset.ignores_merges).build().map_err(failed)?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    if preset.composes {
        encoder.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    encoder.with_pre_tokenizer(Some(pre_tokenizer(preset).map_err(failed)?));
    let added = |kind| added(vocabulary, &[kind]).into_iter();
    let token = |special: bool| move |(text, _)| AddedToken::from(text, special).normalized(false);
    let special = added(TokenKind::Control).map(token(true));
    encoder.add_special_tokens(special).map_err(failed)?;
    let defined = added(TokenKind::UserDefined).map(token(false));
    encoder.add_tokens(defined).map_err(failed)?;
    Ok(encoder)
}

fn pre_tokenizer(preset: &Preset) -> tokenizers::Result<PreTokenizerWrapper> {
    let bytes =
        |splits| PreTokenizerWrapper::ByteLevel(byte_level::ByteLevel::new(false, true, splits));
    // Where the library has an expression of its own, its is the one that models were made with.
    let own = match preset.splits {
        [GPT2] => Some(vec![bytes(true)]),
        [r"\p{N}", GPT2] => Some(vec![PreTokenizerWrapper::Digits(Digits::new(true)), bytes(true)]),
        _ => None,
    };
    let steps = match own {
        Some(steps) => steps,
        None => {
            let isolated = SplitDelimiterBehavior::Isolated;
            let split = |expression: &&str| {
                let pattern = SplitPattern::Regex((*expression).to_owned());
                Split::new(pattern, isolated, false).map(PreTokenizerWrapper::Split)
            };
            let mut steps =
                preset.splits.iter().map(split).collect::<tokenizers::Result<Vec<_>>>()?;
            steps.push(bytes(false));
            steps
        }
    };
    Ok(Sequence::new(steps).into())
}
