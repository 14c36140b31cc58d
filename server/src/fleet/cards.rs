//! What a worker tells of its models, and what it hands out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use cluster::card::{Artifact, Card, Input, Kind, Role, Sha256};
use cluster::instance::MAX_CARDS;
use cluster::request::{Artifacts, Served};
use engine::{Error, Result};
use prost_reflect::prost::Message;

use crate::models::registry::{Core, Model, Models};

/// The artifact that has the labels of outputs.
pub(crate) const LABELS: &str = "labels";

/// The artifact that has the number of an adapter.
const ADAPTER: &str = "adapter";

/// The other names of models.
pub(crate) type Aliases = BTreeMap<String, Vec<String>>;

/// What a worker's command line says of its models: its part of the texts, their formats, and other
/// names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Formats {
    pub role: Role,
    pub aliases: Aliases,
    pub tool_calls: Option<String>,
    pub reasoning: Option<String>,
}

/// The artifacts of the models that are served, by the hash of their content.
#[derive(Default)]
pub(crate) struct Files(RwLock<BTreeMap<String, Bytes>>);

impl Files {
    fn replace(&self, files: BTreeMap<String, Bytes>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = files;
    }
}

impl Artifacts for Files {
    fn artifact(&self, hash: &str) -> Result<Bytes> {
        let files = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = files.get(hash).cloned();
        found.ok_or_else(|| Error::not_found(format!("the worker has no file `{hash}`")))
    }
}

/// A model as it is handed out.
pub(crate) struct Offer {
    pub card: Card,
    pub served: Served,
}

/// Returns what is handed out of the models that can be called, and the number of older versions
/// for which a registration has no room; puts artifacts where they are fetched.
///
/// The latest version of a name has its name; others are told apart by theirs.
pub(crate) fn offers(models: &Models, formats: &Formats, files: &Files) -> (Vec<Offer>, usize) {
    let ready = models.ready();
    // They come in the order of their versions, so the latest stays.
    let latest: BTreeMap<&str, &Arc<Model>> =
        ready.iter().map(|model| (&*model.name, model)).collect();
    let mut adapters = BTreeMap::<&str, Vec<String>>::new();
    for model in latest.values() {
        if let Some(parent) = &model.parent {
            adapters.entry(parent).or_default().push(model.name.to_string());
        }
    }
    let is_latest = |model: &Arc<Model>| {
        latest.get(&*model.name).is_some_and(|latest| Arc::ptr_eq(latest, model))
    };
    // The latest ones come first; of the others, those with the highest numbers.
    let mut sorted: Vec<&Arc<Model>> = ready.iter().collect();
    sorted.sort_by_key(|model| Reverse((is_latest(model), number(model))));
    let mut contents = BTreeMap::new();
    let (mut offers, mut left_out) = (Vec::new(), 0);
    for model in sorted {
        let name = &*model.name;
        let Some(core) = model.core.as_ref().filter(|_| model.is_ready()) else { continue };
        if !is_latest(model) && offers.len() >= MAX_CARDS {
            left_out += 1;
            continue;
        }
        let mut card = card(model, core, formats);
        // 1 is left out, as workers do that know no versions.
        card.model_version = Some(number(model)).filter(|one| *one != 1).unwrap_or_default();
        if is_latest(model) {
            card.adapters = adapters.remove(name).unwrap_or_default();
        } else {
            card.name = format!("{name}/versions/{}", model.version);
            card.version_of = name.to_owned();
            card.aliases.clear();
        }
        if let Some(tables) = &core.tables {
            contents.insert(tables.artifact.sha256.to_string(), tables.content.clone());
        }
        if let Some((artifact, content)) = labels(&model.labels) {
            contents.insert(artifact.sha256.to_string(), content);
            card.artifacts.push(artifact);
        }
        if let Some(adapter) = model.adapter {
            // Its number stands for its content, which has to be the same on all workers.
            let (artifact, content) = file(ADAPTER, format!("{:016x}", adapter.0).into());
            contents.insert(artifact.sha256.to_string(), content);
            card.artifacts.push(artifact);
        }
        if let Err(error) = card.check() {
            tracing::warn!(model = name, %error, "a model cannot be offered to frontends");
            continue;
        }
        let served = served(model, core, &card);
        offers.push(Offer { card, served });
    }
    files.replace(contents);
    (offers, left_out)
}

fn number(model: &Model) -> u64 {
    model.version.parse().unwrap_or_default()
}

fn card(model: &Model, core: &Core, formats: &Formats) -> Card {
    let (kind, input) = match &core.tables {
        None if core.text.is_some() => (Kind::Chat, Input::Text),
        None => (Kind::Tensor, Input::Tensor),
        Some(_) if core.generate.is_none() => (Kind::Embedding, Input::Token),
        Some(tables) if tables.has_template => (Kind::Chat, Input::Token),
        Some(_) => (Kind::Text, Input::Token),
    };
    let mut card = Card::new(&*model.name, kind, input);
    if core.blocks.is_some() {
        // Others do all of their work.
        card.role = formats.role;
    }
    card.aliases = formats.aliases.get(&*model.name).cloned().unwrap_or_default();
    card.tensor_config = Some(model.declared.encode_to_vec());
    if let Some(text) = model.text.as_ref().filter(|_| input == Input::Text) {
        card.context_length = text.texts.bridge.context_length();
    }
    if let Some(tables) = &core.tables {
        card.context_length = tables.card.context_length;
        card.block_size = tables.card.block_size;
        card.eos_tokens.clone_from(&tables.card.eos_tokens);
        card.artifacts.push(tables.artifact.clone());
        if kind != Kind::Embedding {
            card.tool_call_parser.clone_from(&formats.tool_calls);
            card.reasoning_parser.clone_from(&formats.reasoning);
        }
    }
    card
}

fn labels(labels: &HashMap<String, Vec<String>>) -> Option<(Artifact, Bytes)> {
    if labels.is_empty() {
        return None;
    }
    let sorted: BTreeMap<_, _> = labels.iter().collect();
    let content = Bytes::from(serde_json::to_vec(&sorted).ok()?);
    Some(file(LABELS, content))
}

fn file(name: &str, content: Bytes) -> (Artifact, Bytes) {
    let (sha256, bytes) = (Sha256::of(&content), content.len() as u64);
    (Artifact { name: name.to_owned(), sha256, bytes }, content)
}

fn served(model: &Arc<Model>, core: &Core, card: &Card) -> Served {
    Served {
        card: serde_json::to_vec(card).unwrap_or_default().into(),
        generate: core.generate.clone(),
        infer: core.infer.clone(),
        embed: core.embed.clone(),
        text: core.text.clone(),
        embed_text: core.embed_text.clone(),
        // Each adapter is a model of its own, with its name.
        adapters: None,
        load: model.load.clone(),
        events: core.events.clone(),
        blocks: core.blocks.clone(),
    }
}

#[cfg(test)]
mod tests {
    use engine::testing::Scripted;
    use proto::inference::{ModelConfig, ModelParameter};

    use super::*;
    use crate::models::loader::on_tensors;

    #[tokio::test]
    async fn older_versions_are_left_out_where_there_is_no_room() {
        let models = Models::default();
        let model = |name: &str, version: u64| {
            let config = tensor::ModelConfig::new(name, 0, Vec::new(), Vec::new());
            let made = on_tensors(config, Default::default(), Arc::new(Scripted::new(Vec::new())));
            let model = Model { version: version.to_string().into(), ..made.unwrap() };
            (version, Arc::new(model))
        };
        models.replace("many", (1..=100).map(|version| model("many", version)).collect());
        models.replace("one", vec![model("one", 1)]);
        let (offers, left_out) = offers(&models, &Formats::default(), &Files::default());
        let names: Vec<&str> = offers.iter().map(|offer| &*offer.card.name).collect();
        assert_eq!(names[..3], ["many", "one", "many/versions/99"]);
        assert_eq!((names.len(), left_out), (MAX_CARDS, 101 - MAX_CARDS));
        assert_eq!(names[MAX_CARDS - 1], "many/versions/38");
    }

    #[test]
    fn equal_configurations_are_equal_bytes() {
        let written = || {
            let mut config = ModelConfig::default();
            for key in 0..64 {
                let value = ModelParameter { string_value: key.to_string() };
                config.parameters.insert(key.to_string(), value);
            }
            config.encode_to_vec()
        };
        assert_eq!(written(), written());
    }
}
