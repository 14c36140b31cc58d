//! What a frontend needs to know of a text model, as one artifact: the tokenizer's tables and the
//! chat template.
//!
//! JSON, so that workers in other languages can write it; scores are the bits of their numbers,
//! so that none is rounded.

use bytes::Bytes;
use cluster::card::{Artifact, Sha256};
use engine::{ModelCard, TokenId, TokenKind, Vocabulary};
use serde::{Deserialize, Serialize};

/// The artifact's name in cards.
pub(crate) const NAME: &str = "vocabulary";

/// The largest artifact that a frontend fetches, in bytes.
pub(crate) const MAX_BYTES: usize = 256 << 20;

/// The tables of one text model of this worker.
#[derive(Debug)]
pub(crate) struct Tables {
    pub card: ModelCard,
    /// The artifact's content.
    pub content: Bytes,
    pub artifact: Artifact,
    pub has_template: bool,
}

/// The artifact as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    model: String,
    pre_tokenizer: String,
    tokens: Vec<String>,
    /// One letter a token.
    kinds: String,
    merges: Vec<String>,
    score_bits: Vec<u32>,
    add_space_prefix: bool,
    json: Option<String>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
    chat_template: Option<String>,
}

/// The letters of the kinds of tokens.
const KINDS: [(TokenKind, char); 6] = [
    (TokenKind::Normal, 'n'),
    (TokenKind::Unknown, 'x'),
    (TokenKind::Control, 'c'),
    (TokenKind::UserDefined, 'd'),
    (TokenKind::Unused, 'u'),
    (TokenKind::Byte, 'b'),
];

impl Tables {
    /// Writes the tables of a model.
    pub(crate) fn new(card: ModelCard, vocabulary: &Vocabulary) -> Self {
        let content = Bytes::from(write(vocabulary));
        let (sha256, bytes) = (Sha256::of(&content), content.len() as u64);
        let artifact = Artifact { name: NAME.to_owned(), sha256, bytes };
        let has_template = vocabulary.chat_template.is_some();
        Self { card, content, artifact, has_template }
    }
}

fn write(vocabulary: &Vocabulary) -> Vec<u8> {
    let letter = |kind: &TokenKind| {
        KINDS.iter().find(|(known, _)| known == kind).map_or('n', |(_, letter)| *letter)
    };
    let Vocabulary { model, pre_tokenizer, tokens, kinds, merges, scores, .. } = vocabulary.clone();
    let written = Written {
        model,
        pre_tokenizer,
        tokens,
        kinds: kinds.iter().map(letter).collect(),
        merges,
        score_bits: scores.iter().map(|score| score.to_bits()).collect(),
        add_space_prefix: vocabulary.add_space_prefix,
        json: vocabulary.json.clone(),
        bos: vocabulary.bos,
        eos: vocabulary.eos,
        add_bos: vocabulary.add_bos,
        chat_template: vocabulary.chat_template.clone(),
    };
    serde_json::to_vec(&written).expect("strings and numbers are always JSON")
}

/// Reads what [`Tables::new`] wrote. Errors: what is wrong with it.
pub(crate) fn read(content: &[u8]) -> Result<Vocabulary, String> {
    let written: Written = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let kind = |letter: char| {
        let known = KINDS.iter().find(|(_, known)| *known == letter).map(|(kind, _)| *kind);
        known.ok_or_else(|| format!("`kinds`: no kind of tokens is called `{letter}`"))
    };
    Ok(Vocabulary {
        model: written.model,
        pre_tokenizer: written.pre_tokenizer,
        tokens: written.tokens,
        kinds: written.kinds.chars().map(kind).collect::<Result<_, _>>()?,
        merges: written.merges,
        scores: written.score_bits.into_iter().map(f32::from_bits).collect(),
        add_space_prefix: written.add_space_prefix,
        json: written.json,
        bos: written.bos,
        eos: written.eos,
        add_bos: written.add_bos,
        chat_template: written.chat_template,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_the_wire_to_the_last_bit() {
        let vocabulary = Vocabulary {
            model: "llama".into(),
            tokens: ["a", "é", "\u{0}", "\u{2581}x"].map(str::to_owned).to_vec(),
            kinds: KINDS.iter().map(|(kind, _)| *kind).collect(),
            merges: vec!["a é".into()],
            scores: vec![-0.0, 1.1e-30, f32::NEG_INFINITY, 0.1 + 0.2],
            bos: Some(1),
            add_bos: true,
            chat_template: Some("{{ messages }}".into()),
            ..Vocabulary::default()
        };
        let read = read(&write(&vocabulary)).unwrap();
        let bits = |scores: &[f32]| scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read.scores), bits(&vocabulary.scores));
        // Infinities print alike, and so does everything else.
        assert_eq!(format!("{read:?}"), format!("{vocabulary:?}"));
    }

    #[test]
    fn hostile_tables_are_refused() {
        for text in ["", "{}", "[]", "null"] {
            assert!(super::read(text.as_bytes()).is_err(), "{text}");
        }
        let text = String::from_utf8(write(&Vocabulary::default())).unwrap();
        let text = text.replace(r#""kinds":"""#, r#""kinds":"?""#);
        assert!(super::read(text.as_bytes()).unwrap_err().contains("`?`"));
    }
}
