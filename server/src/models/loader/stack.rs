//! Stacks text models: a base, the adapters on it, and encoders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::{
    Adapter, AdapterId, EmbedRequest, EmbedTextRequest, Engine, GenerateRequest, Salt, TextRequest,
    WorkerLoad,
};
use openai_bridge::TextBridge;
use proto::inference as wire;
use worker::encode::{self, EncodeConfig, EncodeEngine, Encoder, EncoderOptions};

use super::{Backends, bare};
use crate::models::definition::{BASE_MODEL, Definition};
use crate::models::loader::EngineConfig;
use crate::models::registry::{
    AdapterSupport, Base, Core, Model, Origin, ReadHealth, ReadLoad, TextModel,
};
use crate::models::source::Place;
use crate::models::text::{NoGeneration, TensorText, TextBackend, TextEngine};
use crate::pipeline::{
    Adapt, Deadline, EachLoad, Observe, PrefillTracker, Thresholds, TokenMetrics, max_waiting,
};
use crate::support::metrics::{Metrics, ModelLabels};

impl Backends {
    /// Stacks a model on its engine: bridge over deadline over observation over the scheduler.
    pub(super) fn based(
        &self,
        base: &Arc<Base>,
        adapter: Option<(&str, Adapter)>,
        declared: &wire::ModelConfig,
    ) -> Model {
        let (name, adapter) = match adapter {
            Some((name, adapter)) => (name, Some(adapter)),
            None => (base.name.as_str(), None),
        };
        let (load, health) = (base.generate.clone(), base.generate.clone());
        let number = adapter.as_ref().map(Adapter::id);
        let engine = Arc::new(Adapt { engine: base.generate.clone(), adapter });
        let engines = Engines {
            bridge: base.bridge.clone(),
            generate: Some(engine.clone()),
            embed: engine,
            thresholds: self.thresholds(move || load.load()),
            health: Arc::new(move || health.is_healthy()),
        };
        let mut model = on_tokens(engines, &self.metrics, name, declared);
        if let Some(core) = &mut model.core {
            core.tables.clone_from(&base.tables);
            // The blocks of all adapters are the base's, which tells of them.
            core.events = number.is_none().then(|| base.generate.events().clone());
            core.blocks = base.generate.store(number);
        }
        model.adapter = number;
        model.totals = Some(base.totals.clone());
        match number {
            None => model.base = Some(base.clone()),
            Some(_) => model.parent = Some(base.name.as_str().into()),
        }
        model
    }

    /// Loads an adapter and stacks the model that it makes of its base.
    pub(super) fn adapted(&self, definition: &Definition, version: u64) -> Result<Model, String> {
        let started = Instant::now();
        let base = self.base_of(definition)?;
        let name = &base.name;
        let on = base.adapters.files().map(Arc::downgrade).unwrap_or_default();
        let adapter = match &base.adapters {
            AdapterSupport::Files(adapters) => {
                // The one of this name and version goes when the new one is there, and makes room
                // for it if it stands on the same base.
                let is_here =
                    |old: &Arc<Model>| old.origin.as_ref().is_some_and(|o| o.adapters.ptr_eq(&on));
                let replaced = self.models.get(&definition.name, &version.to_string()).ok();
                let replaced = replaced.filter(is_here).and_then(|old| old.adapter);
                let adapter = adapters.load(&adapter_folder(definition, version)?, replaced);
                adapter.map_err(|error| error.to_string())?
            }
            AdapterSupport::Names if definition.source.is_none() && definition.folder.is_none() => {
                Adapter::new(AdapterId(Salt::of(&definition.name).0), Arc::new(()))
            }
            AdapterSupport::Names => return Err(format!("model `{name}` takes no adapters")),
        };
        let named = Some((definition.name.as_str(), adapter));
        let mut model = self.based(&base, named, &definition.declared);
        model.origin = Some(Origin { definition: definition.clone(), adapters: on });
        tracing::info!(
            model = definition.name,
            base = name,
            seconds = started.elapsed().as_secs_f64(),
            "adapter loaded"
        );
        Ok(model)
    }

    /// Returns the base of an adapter: the one that is named, or the only one there is.
    fn base_of(&self, definition: &Definition) -> Result<Arc<Base>, String> {
        if let Some(name) = definition.parameter(BASE_MODEL) {
            let model = self.models.get(name, "").map_err(|error| format!("its base: {error}"))?;
            let base = model.base.clone();
            return base.ok_or_else(|| format!("model `{name}` is no base of adapters"));
        }
        let ready = self.models.ready();
        let takes = |model: &Arc<Model>| {
            let is_real = |base: &Arc<Base>| matches!(base.adapters, AdapterSupport::Files(_));
            model.base.clone().filter(is_real)
        };
        // Of several versions of a model the latest comes last, and is the one to call.
        let bases = ready.iter().filter_map(takes).map(|base| (base.name.clone(), base));
        let bases: BTreeMap<String, Arc<Base>> = bases.collect();
        match &bases.values().collect::<Vec<_>>()[..] {
            [base] => Ok(Arc::clone(base)),
            [] => Err("no model that takes adapters is loaded".into()),
            several => {
                let names: Vec<&str> = several.iter().map(|base| base.name.as_str()).collect();
                let names = names.join(", ");
                Err(format!("its base has to be named, by `{BASE_MODEL}`: there are {names}"))
            }
        }
    }

    /// Loads and stacks a model that makes vectors and no texts.
    pub(super) fn encoder(
        &self,
        path: &Path,
        definition: &Definition,
        version: u64,
    ) -> Result<Model, String> {
        let started = Instant::now();
        let EngineConfig { threads, context_length, batch_tokens, .. } = self.engine;
        let max_waiting_requests =
            max_waiting(&definition.declared)?.unwrap_or(self.engine.max_waiting_requests);
        let mixed_pass_stretch = self.engine.mixed_pass_stretch;
        let options = EncoderOptions { threads, context_length };
        let loaded = self.compute().and_then(|on| Encoder::load_on(path, &options, on));
        let encode::Loaded { encoder, mut card, vocabulary } =
            loaded.map_err(|error| error.to_string())?;
        card.name.clone_from(&definition.name);
        let bridge = TextBridge::encoder(&card, &vocabulary).map_err(|error| error.to_string())?;
        let bridge = Arc::new(bridge);
        let limits = EncodeConfig { max_waiting_requests, batch_tokens, mixed_pass_stretch };
        let engine = EncodeEngine::start(encoder, limits).map_err(|error| error.to_string())?;
        let engine = Arc::new(engine);
        let (load, health) = (engine.clone(), engine.clone());
        let engines = Engines {
            bridge,
            generate: None,
            embed: engine,
            thresholds: self.thresholds(move || load.load()),
            health: Arc::new(move || health.is_healthy()),
        };
        let tables = self.texts.tables(&card, &vocabulary);
        let (name, declared) = (&definition.name, &definition.declared);
        let mut model = on_tokens(engines, &self.metrics, name, declared);
        if let Some(core) = &mut model.core {
            core.tables = tables;
        }
        tracing::info!(
            model = definition.name,
            version,
            architecture = card.architecture,
            context_length = card.context_length,
            seconds = started.elapsed().as_secs_f64(),
            "encoder loaded"
        );
        Ok(model)
    }

    /// Returns when a model with one engine is busy.
    fn thresholds(&self, load: impl Fn() -> WorkerLoad + Send + Sync + 'static) -> Arc<Thresholds> {
        Arc::new(Thresholds::new(self.limits, Arc::new(move |visit| visit(load()))))
    }
}

/// Returns the folder of an adapter's files.
fn adapter_folder(definition: &Definition, version: u64) -> Result<PathBuf, String> {
    match (&definition.source, &definition.folder) {
        (Some(source), _) => match &source.place {
            Place::File(path) => Ok(path.clone()),
            _ => Err("an adapter needs a folder".into()),
        },
        (None, Some(folder)) => Ok(folder.join(version.to_string())),
        (None, None) => Err("an adapter needs a folder".into()),
    }
}

/// What a text model is stacked on, wherever its engines are.
pub(crate) struct Engines {
    pub bridge: Arc<TextBridge>,
    /// None: the model makes vectors and no texts.
    pub generate: Option<Arc<dyn Engine<GenerateRequest>>>,
    pub embed: Arc<dyn Engine<EmbedRequest>>,
    /// When it is busy, which all of its names share.
    pub thresholds: Arc<Thresholds>,
    pub health: ReadHealth,
}

/// Stacks a text model on its engines: bridge over deadline over admission over observation.
pub(crate) fn on_tokens(
    engines: Engines,
    metrics: &Metrics,
    name: &str,
    declared: &wire::ModelConfig,
) -> Model {
    let Engines { bridge, generate, embed, thresholds, health } = engines;
    let core = Core { generate: generate.clone(), embed: Some(embed.clone()), ..Core::default() };
    let load = sum(thresholds.each_load());
    let generate: Arc<dyn Engine<GenerateRequest>> = match generate {
        None => Arc::new(NoGeneration(bridge.clone())),
        Some(engine) => {
            let engine = Observe { engine, metrics: token_metrics(metrics, name) };
            Arc::new(PrefillTracker { engine, thresholds: thresholds.clone() })
        }
    };
    let below = TextBackend::Tokens { generate, embed };
    let texts = TextEngine::new(bridge, below, thresholds.clone());
    let model = with_texts(texts, thresholds, name, declared);
    Model { load: Some(load), health: Some(health), core: Some(core), ..model }
}

/// What a model is stacked on whose engine takes texts.
pub(crate) struct TextEngines {
    /// Made for texts.
    pub bridge: Arc<TextBridge>,
    pub generate: Arc<dyn Engine<TextRequest>>,
    pub embed: Arc<dyn Engine<EmbedTextRequest>>,
    /// When it is busy, by limits [of texts](crate::pipeline::Limits::of_texts).
    pub thresholds: Arc<Thresholds>,
    pub health: ReadHealth,
}

/// Returns what adds up the loads of all workers of a model.
fn sum(each_load: &EachLoad) -> ReadLoad {
    let each_load = each_load.clone();
    Arc::new(move || {
        let mut all = WorkerLoad::default();
        each_load(&mut |one| all.add(&one));
        all
    })
}

/// Stacks a text model on engines that take texts.
pub(crate) fn on_texts(
    engines: TextEngines,
    metrics: &Metrics,
    name: &str,
    declared: &wire::ModelConfig,
) -> Model {
    let TextEngines { bridge, generate, embed, thresholds, health } = engines;
    let core =
        Core { text: Some(generate.clone()), embed_text: Some(embed.clone()), ..Core::default() };
    let load = sum(thresholds.each_load());
    let generate = Arc::new(Observe { engine: generate, metrics: token_metrics(metrics, name) });
    let below = TextBackend::Texts { generate, embed };
    let texts = TextEngine::new(bridge, below, thresholds.clone());
    let model = with_texts(texts, thresholds, name, declared);
    Model { load: Some(load), health: Some(health), core: Some(core), ..model }
}

/// Puts both faces of a text model, tensors and texts, around its engine.
fn with_texts(
    texts: TextEngine,
    thresholds: Arc<Thresholds>,
    name: &str,
    declared: &wire::ModelConfig,
) -> Model {
    let texts = Arc::new(texts);
    let mut config = texts.bridge.config();
    config.name = name.into();
    config.backend.clone_from(&declared.backend);
    let own = tensor::metadata::config(&config);
    let declared = wire::ModelConfig {
        input: own.input,
        output: own.output,
        max_batch_size: own.max_batch_size,
        platform: own.platform,
        model_transaction_policy: own.model_transaction_policy,
        ..declared.clone()
    };
    let mut model = bare(config, declared, Arc::new(Deadline(TensorText(texts.clone()))));
    let engine = Arc::new(Deadline(texts.clone()));
    model.text = Some(TextModel { engine, texts, thresholds });
    model
}

fn token_metrics(metrics: &Metrics, name: &str) -> TokenMetrics {
    let labels = ModelLabels { model: name.into() };
    TokenMetrics {
        first_token: metrics.first_token.get_or_create(&labels).clone(),
        inter_token: metrics.inter_token.get_or_create(&labels).clone(),
        prompt_tokens: metrics.prompt_tokens.get_or_create(&labels).clone(),
        generated_tokens: metrics.generated_tokens.get_or_create(&labels).clone(),
    }
}
