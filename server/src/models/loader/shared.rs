//! What models need to read and write texts beside their engines, made once for all that are equal.
//!
//! A thousand mock workers in a process have a thousand schedulers and one tokenizer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine::{ModelCard, TokenId, Vocabulary};
use openai_bridge::{TextBridge, TextRules};
use worker::generate::Constraints;

use crate::models::tables::Tables;

/// What reads and writes the texts of a model.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    pub bridge: Arc<TextBridge>,
    /// What frontends need to know of it, in a worker.
    pub tables: Option<Arc<Tables>>,
    pub constraints: Constraints,
}

/// What distinguishes the texts of models that have one vocabulary: name, context length, block
/// size, the tokens that end a text, and the rules that it keeps to.
type Key = (String, u32, u32, Vec<TokenId>, TextRules);

/// The most texts that are kept for others; what comes above is made anew for each.
const MAX_SHARED: usize = 64;

/// The texts that the models of a process share. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedTexts {
    keeps_tables: bool,
    /// None: nobody else has such models.
    made: Option<Arc<Mutex<BTreeMap<Key, Texts>>>>,
}

impl SharedTexts {
    /// Makes the place of the texts of so many equal workers. They keep the tables of their
    /// tokenizers for frontends to fetch.
    pub(crate) fn of_workers(count: u32) -> Self {
        Self { keeps_tables: true, made: (count > 1).then(Arc::default) }
    }

    /// Returns the texts of a card whose vocabulary all callers know to be the same, with these
    /// rules; they are made by whoever comes first, and the others wait.
    pub(super) fn get(
        &self,
        card: &ModelCard,
        rules: TextRules,
        make: impl FnOnce() -> Result<Texts, String>,
    ) -> Result<Texts, String> {
        let Some(made) = &self.made else { return make() };
        let ModelCard { name, context_length, block_size, eos_tokens, .. } = card;
        let key = (name.clone(), *context_length, *block_size, eos_tokens.clone(), rules);
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(texts) = made.get(&key) {
            return Ok(texts.clone());
        }
        let texts = make()?;
        if made.len() < MAX_SHARED {
            made.insert(key, texts.clone());
        }
        Ok(texts)
    }

    /// Returns what frontends need to know of a text model, if there are any.
    pub(super) fn tables(&self, card: &ModelCard, vocabulary: &Vocabulary) -> Option<Arc<Tables>> {
        self.keeps_tables.then(|| Arc::new(Tables::new(card.clone(), vocabulary)))
    }
}

#[cfg(test)]
mod tests {
    use worker::runner::mock::{self, MockConfig};

    use super::*;

    #[test]
    fn texts_with_other_rules_are_others() {
        let (card, shared) = (mock::card("m", &MockConfig::default()), SharedTexts::of_workers(2));
        let get = |has_echo| {
            let make = || {
                let bridge = Arc::new(TextBridge::of_texts("m", 16, false));
                let constraints = Constraints::new(&mock::vocabulary(), &card.eos_tokens);
                Ok(Texts { bridge, tables: None, constraints })
            };
            let rules = TextRules { has_echo, ..TextRules::default() };
            shared.get(&card, rules, make).unwrap().bridge
        };
        assert!(Arc::ptr_eq(&get(true), &get(true)));
        assert!(!Arc::ptr_eq(&get(true), &get(false)));
    }
}
