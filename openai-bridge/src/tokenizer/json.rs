//! Reads `tokenizer.json`, as Hugging Face's library writes it, for the fast path.
//!
//! Whatever is not understood here declines with a reason, and the library serves instead.

use ahash::AHashMap;
use engine::{TokenId, TokenKind};
use serde_json::Value as Json;

use super::byte_level::{self, ByteLevel, ByteLevelParts};
use super::detokenizer::{self, Spelling, TokenTable};
use super::fast::{Fast, Model, Parts};
use super::pieces::{Pieces, PiecesParts, Prefix};
use super::presets::GPT2;

type Outcome<T> = Result<T, String>;

/// The highest id that a table is made for; larger vocabularies are not known.
const MAX_ID: u64 = 1 << 24;

/// What the file says of text before it is merged.
#[derive(Debug, Default)]
struct Steps {
    composes: bool,
    /// Whether the normaliser writes spaces as `▁`, and puts one in front.
    spells_spaces: bool,
    prepends: bool,
    /// `Metaspace`, which does the same as a pre-tokenizer.
    metaspace: Option<Prefix>,
    splits: Vec<String>,
    /// `ByteLevel`, and whether it puts a space in front.
    byte_level: Option<bool>,
}

/// Makes the fast encoder, or says why it cannot.
pub(super) fn fast(json: &Json) -> Outcome<Fast> {
    let model = &json["model"];
    let is_bpe = model["type"].as_str().map_or(model["merges"].is_array(), |kind| kind == "BPE");
    let affixes = ["continuing_subword_prefix", "end_of_word_suffix"];
    let has_affix = affixes.iter().any(|key| model[*key].as_str().is_some_and(|a| !a.is_empty()));
    if !is_bpe || has_affix || !model["dropout"].is_null() {
        return Err("model: expected plain BPE".into());
    }
    let mut steps = Steps::default();
    steps.normalizer(&json["normalizer"])?;
    steps.pre_tokenizer(&json["pre_tokenizer"])?;
    let (raw, normalized) = added(json)?;
    if !normalized.is_empty() && (steps.composes || steps.spells_spaces) {
        return Err("added_tokens: expected none that are normalized".into());
    }
    let vocabulary = model["vocab"].as_object().ok_or("model.vocab: expected an object")?;
    let ids = vocabulary.iter().filter_map(|(token, id)| Some((token.as_str(), number(id)?)));
    let ids: AHashMap<&str, TokenId> = ids.collect();
    let rules = model["merges"].as_array().ok_or("model.merges: expected an array")?;
    let rules: Option<Vec<(&str, &str)>> = rules.iter().map(rule).collect();
    let rules = rules.ok_or("model.merges: expected pairs")?;
    let model = match steps.byte_level {
        Some(adds_space) => Model::Bytes(ByteLevel::new(&ByteLevelParts {
            ids: &ids,
            merges: &rules,
            splits: &steps.splits,
            ignores_merges: model["ignore_merges"].as_bool().unwrap_or_default(),
            adds_space,
        })?),
        None => Model::Pieces(pieces(model, &steps, &ids, &rules)?),
    };
    Fast::new(Parts { raw, normalized, composes: steps.composes, model })
}

fn pieces(
    model: &Json,
    steps: &Steps,
    ids: &AHashMap<&str, TokenId>,
    rules: &[(&str, &str)],
) -> Outcome<Pieces> {
    let is_known = steps.splits.is_empty() && !model["ignore_merges"].as_bool().unwrap_or_default();
    let prefix = match (steps.spells_spaces, steps.prepends, steps.metaspace) {
        (true, true, None) => Prefix::Always,
        (true, false, None) => Prefix::Never,
        (false, false, Some(prefix)) => prefix,
        _ => return Err("pre_tokenizer: expected byte-level or `▁` for spaces".into()),
    };
    let bytes: AHashMap<u8, TokenId> =
        ids.iter().filter_map(|(token, id)| Some((detokenizer::byte(token)?, *id))).collect();
    let merges_bytes =
        rules.iter().any(|(a, b)| [a, b].iter().any(|part| detokenizer::byte(part).is_some()));
    let falls_back = model["byte_fallback"].as_bool().unwrap_or_default();
    if !is_known || merges_bytes || falls_back && bytes.len() != 256 {
        return Err("model: expected plain BPE over characters".into());
    }
    let unknown = model["unk_token"].as_str();
    Ok(Pieces::new(PiecesParts {
        ids,
        merges: byte_level::merges(ids, rules)?,
        prefix,
        bytes: falls_back.then(|| {
            let mut all = Box::new([0; 256]);
            bytes.iter().for_each(|(byte, id)| all[usize::from(*byte)] = *id);
            all
        }),
        unknown: unknown.and_then(|token| ids.get(token).copied()),
        fuses_unknown: model["fuse_unk"].as_bool().unwrap_or_default(),
    }))
}

/// A text with its token's id.
type Added = (String, TokenId);

/// Returns the added tokens that are found in the text as it comes, and those that are found once
/// it is normalised.
fn added(json: &Json) -> Outcome<(Vec<Added>, Vec<Added>)> {
    let (mut raw, mut normalized) = (Vec::new(), Vec::new());
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let flag = |key: &str| token[key].as_bool().unwrap_or_default();
        if flag("single_word") || flag("lstrip") || flag("rstrip") {
            return Err("added_tokens: expected none that take spaces or stand alone".into());
        }
        let (Some(text), Some(id)) = (token["content"].as_str(), number(&token["id"])) else {
            return Err("added_tokens: expected texts and ids".into());
        };
        let tokens = if flag("normalized") { &mut normalized } else { &mut raw };
        tokens.push((text.to_owned(), id));
    }
    Ok((raw, normalized))
}

fn number(id: &Json) -> Option<TokenId> {
    id.as_u64().filter(|&id| id < MAX_ID).map(|id| id as TokenId)
}

fn rule(rule: &Json) -> Option<(&str, &str)> {
    match rule {
        Json::String(rule) => rule.split_once(' '),
        rule => Some((rule[0].as_str()?, rule[1].as_str()?)),
    }
}

impl Steps {
    fn normalizer(&mut self, json: &Json) -> Outcome<()> {
        let kind = json["type"].as_str().unwrap_or_default();
        match kind {
            "" if json.is_null() => {}
            "Sequence" => {
                for step in json["normalizers"].as_array().into_iter().flatten() {
                    self.normalizer(step)?;
                }
            }
            "NFC" if !self.spells_spaces => self.composes = true,
            "Prepend" if json["prepend"] == "▁" && !self.spells_spaces => self.prepends = true,
            "Replace" if json["pattern"]["String"] == " " && json["content"] == "▁" => {
                self.spells_spaces = true;
            }
            _ => return Err(format!("normalizer `{kind}` is not known")),
        }
        Ok(())
    }

    fn pre_tokenizer(&mut self, json: &Json) -> Outcome<()> {
        let kind = json["type"].as_str().unwrap_or_default();
        let flag = |key: &str, default| json[key].as_bool().unwrap_or(default);
        if self.byte_level.is_some() || self.metaspace.is_some() {
            return Err(format!("pre_tokenizer `{kind}`: expected none after the last"));
        }
        match kind {
            "" if json.is_null() => {}
            "Sequence" => {
                for step in json["pretokenizers"].as_array().into_iter().flatten() {
                    self.pre_tokenizer(step)?;
                }
            }
            "ByteLevel" => {
                let adds_space = flag("add_prefix_space", true);
                if adds_space && !self.splits.is_empty() {
                    return Err("ByteLevel: expected no space in front of each word".into());
                }
                if flag("use_regex", true) {
                    self.splits.push(GPT2.to_owned());
                }
                self.byte_level = Some(adds_space);
            }
            "Digits" => {
                let one_by_one = flag("individual_digits", false);
                self.splits.push(if one_by_one { r"\p{N}" } else { r"\p{N}+" }.to_owned());
            }
            "Split" if json["behavior"] == "Isolated" && !flag("invert", false) => {
                self.splits.push(match &json["pattern"] {
                    Json::Object(pattern) if pattern.contains_key("Regex") => {
                        pattern["Regex"].as_str().unwrap_or_default().to_owned()
                    }
                    pattern => {
                        let text = pattern["String"].as_str().unwrap_or_default();
                        regex_syntax::escape(text)
                    }
                });
            }
            "Metaspace" if json["replacement"] == "▁" && !flag("split", true) => {
                self.metaspace = Some(match json["prepend_scheme"].as_str() {
                    Some("never") => Prefix::Never,
                    Some("first") => Prefix::FirstIfMissing,
                    _ => Prefix::IfMissing,
                });
            }
            _ => return Err(format!("pre_tokenizer `{kind}` is not known")),
        }
        Ok(())
    }
}

/// Returns the token that the file puts in front of every text.
pub(super) fn bos(json: &Json) -> Option<TokenId> {
    let processor = &json["post_processor"];
    let one = [processor];
    let processors = match processor["processors"].as_array() {
        Some(processors) => processors.iter().collect(),
        None => one.to_vec(),
    };
    let template = processors.into_iter().find(|step| step["type"] == "TemplateProcessing")?;
    let name = template["single"][0]["SpecialToken"]["id"].as_str()?;
    number(&template["special_tokens"][name]["ids"][0])
}

/// Returns the tokens of the file in the order of their ids; ids that are not used have no text.
pub(super) fn tokens(json: &Json) -> Vec<(String, TokenKind)> {
    let vocabulary = &json["model"]["vocab"];
    // Unigram and others have a list of pairs instead.
    let listed = vocabulary.as_array().into_iter().flatten().enumerate();
    let listed = listed.filter_map(|(id, entry)| Some((entry[0].as_str()?, id as TokenId)));
    let named = vocabulary.as_object().into_iter().flatten();
    let named = named.filter_map(|(token, id)| Some((token.as_str(), number(id)?)));
    let mut tokens: Vec<(String, TokenKind)> = Vec::new();
    let mut set = |id: TokenId, token: &str, kind| {
        let unused = (String::new(), TokenKind::Unused);
        tokens.resize(tokens.len().max(id as usize + 1), unused);
        tokens[id as usize] = (token.to_owned(), kind);
    };
    for (token, id) in listed.chain(named) {
        set(id, token, TokenKind::Normal);
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(text), Some(id)) = (token["content"].as_str(), number(&token["id"])) {
            let is_special = token["special"].as_bool().unwrap_or_default();
            set(id, text, if is_special { TokenKind::Control } else { TokenKind::UserDefined });
        }
    }
    tokens
}

/// Makes the table of token bytes, or says which decoder is not known.
pub(super) fn table(json: &Json, tokens: &[(String, TokenKind)]) -> Outcome<TokenTable> {
    let spelling = spelling(&json["decoder"])?;
    let tokens = tokens.iter().map(|(token, kind)| (token.as_str(), *kind));
    Ok(TokenTable::spelled(spelling, tokens))
}

fn spelling(decoder: &Json) -> Outcome<Spelling> {
    let kind = |step: &Json| step["type"].as_str().unwrap_or("null").to_owned();
    let steps = match decoder["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let (mut spells_spaces, mut strips_space) = (false, false);
    for (index, step) in steps.iter().enumerate() {
        match kind(step).as_str() {
            "ByteLevel" if index == 0 => return Ok(Spelling::Letters),
            "WordPiece" if index == 0 && step["prefix"] == "##" => {
                return Ok(Spelling::Words { cleans: step["cleanup"] != false });
            }
            "ByteFallback" | "Fuse" => {}
            "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {
                spells_spaces = true;
            }
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                strips_space = true;
            }
            "Metaspace" if step["replacement"] == "▁" => {
                spells_spaces = true;
                strips_space = step["prepend_scheme"] != "never";
            }
            unknown => return Err(format!("decoder `{unknown}` is not known")),
        }
    }
    match spells_spaces {
        true => Ok(Spelling::Pieces { strips_space }),
        false => Err(format!("decoder `{}` is not known", kind(decoder))),
    }
}

/// Returns the least part of a text's bytes that is left after it was normalised, as a divisor:
/// none if nothing is known of the normaliser.
pub(super) fn shrinkage(json: &Json) -> Option<usize> {
    let mut steps = Steps::default();
    steps.normalizer(&json["normalizer"]).ok()?;
    // Composing makes three Hangul letters, of nine bytes, one of three.
    Some(if steps.composes { 3 } else { 1 })
}
