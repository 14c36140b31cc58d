//! Makes models callable: finds the file, loads it, stacks the engines. Blocks; not for the
//! async runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use engine::{Engine, GenerateRequest, InferRequest, ModelCard, Vocabulary};
use openai_bridge::TextBridge;
use tensor::ModelConfig;
use worker::generate::{GenerateEngine, SchedulerConfig};
use worker::infer::{AddSub, Identity, RepeatInt32};
use worker::runner::Runner;
use worker::runner::cpu::{CpuOptions, CpuRunner, Loaded};
use worker::runner::mock::{self, MockConfig, MockRunner};

use crate::config::{Config, EngineConfig};
use crate::hub;
use crate::metrics::{Metrics, ModelLabels};
use crate::models::Model;
use crate::pipeline::{Deadline, Observe, TokenMetrics};
use crate::source::{Builtin, BuiltinKind, Place, Source};
use crate::text::TextEngine;

/// A model that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("model `{name}`: {why}")]
pub struct LoadError {
    name: String,
    why: String,
}

/// Loads a text model.
pub(crate) fn text(
    source: &Source,
    config: &Config,
    metrics: &Metrics,
) -> Result<Arc<Model>, LoadError> {
    let fail = |why: String| LoadError { name: source.name.clone(), why };
    let started = Instant::now();
    let path = find(source, config).map_err(fail)?;
    let options = CpuOptions {
        threads: config.engine.threads,
        context_length: config.engine.context_length,
        kv_cache_bytes: config.engine.kv_cache_bytes,
        batch_tokens: config.engine.batch_tokens,
    };
    let loaded = CpuRunner::load(&path, &options).map_err(|error| fail(error.to_string()))?;
    let Loaded { runner, mut card, vocabulary } = loaded;
    card.name.clone_from(&source.name);
    let model = generating(Box::new(runner), &card, &vocabulary, &config.engine, metrics);
    let model = model.map_err(fail)?;
    tracing::info!(
        model = source.name,
        architecture = card.architecture,
        context_length = card.context_length,
        seconds = started.elapsed().as_secs_f64(),
        "model loaded"
    );
    Ok(model)
}

fn find(source: &Source, config: &Config) -> Result<PathBuf, String> {
    match &source.place {
        Place::File(path) => Ok(path.clone()),
        Place::Default(path) if path.is_file() => Ok(path.clone()),
        Place::Default(path) => Err(format!(
            "the default model is not at `{}`; the script `./serve` puts it there, \
             or name a model: `stator serve FILE.gguf`",
            path.display()
        )),
        Place::Hub { repository, file } => {
            let url = config.hub_url.as_deref();
            hub::fetch(repository, file.as_deref(), &config.model_dir, url)
                .map_err(|error| error.to_string())
        }
    }
}

/// Stacks a text model: bridge over deadline over observation over the scheduler.
fn generating(
    runner: Box<dyn Runner>,
    card: &ModelCard,
    vocabulary: &Vocabulary,
    config: &EngineConfig,
    metrics: &Metrics,
) -> Result<Arc<Model>, String> {
    let bridge = TextBridge::new(card, vocabulary).map_err(|error| error.to_string())?;
    let scheduler = SchedulerConfig {
        max_waiting_requests: config.max_waiting_requests,
        max_running_sequences: config.max_running_sequences,
        batch_tokens: config.batch_tokens,
    };
    let generate = GenerateEngine::start(runner, card.eos_tokens.clone(), scheduler)
        .map_err(|error| error.to_string())?;
    let generate = Arc::new(generate);
    let labels = ModelLabels { model: card.name.as_str().into() };
    let tokens = TokenMetrics {
        first_token: metrics.first_token.get_or_create(&labels).clone(),
        inter_token: metrics.inter_token.get_or_create(&labels).clone(),
        prompt_tokens: metrics.prompt_tokens.get_or_create(&labels).clone(),
        generated_tokens: metrics.generated_tokens.get_or_create(&labels).clone(),
    };
    let observed: Arc<dyn Engine<GenerateRequest>> =
        Arc::new(Observe { engine: Shared(generate.clone()), metrics: tokens });
    let bridge = Arc::new(bridge);
    let engine = Deadline(TextEngine::new(bridge.clone(), observed));
    Ok(Arc::new(Model {
        name: labels.model,
        config: bridge.config(),
        engine: Arc::new(engine),
        text: Some(bridge),
        health: Some(Box::new({
            let generate = generate.clone();
            move || generate.is_healthy()
        })),
        load: Some(Box::new(move || generate.load())),
        statistics: Default::default(),
    }))
}

/// A shared engine is an engine.
struct Shared(Arc<GenerateEngine>);

#[async_trait::async_trait]
impl Engine<GenerateRequest> for Shared {
    async fn call(
        &self,
        request: GenerateRequest,
        context: engine::Context,
    ) -> engine::Result<engine::OutputStream<GenerateRequest>> {
        self.0.call(request, context).await
    }
}

/// Makes a built-in model.
pub(crate) fn builtin(
    builtin: &Builtin,
    config: &EngineConfig,
    metrics: &Metrics,
) -> Result<Arc<Model>, LoadError> {
    let name = builtin.name.as_str();
    match &builtin.kind {
        BuiltinKind::Identity { datatype, dims, max_batch_size, delay } => {
            let declared = Identity::config(name, *datatype, dims.clone(), *max_batch_size);
            Ok(inferring(declared, Identity::new(*delay)))
        }
        BuiltinKind::AddSub => Ok(inferring(AddSub::config(name), AddSub)),
        BuiltinKind::RepeatInt32 => Ok(inferring(RepeatInt32::config(name), RepeatInt32)),
        BuiltinKind::Mock { pace, context_length } => {
            let mut mock = MockConfig { pace: *pace, ..MockConfig::default() };
            mock.batch_tokens = config.batch_tokens;
            if let Some(tokens) = context_length {
                mock.context_length = *tokens as usize;
            }
            let card = mock::card(name, &mock);
            let runner = Box::new(MockRunner::new(mock));
            generating(runner, &card, &mock::vocabulary(), config, metrics)
                .map_err(|why| LoadError { name: name.to_owned(), why })
        }
    }
}

fn inferring(config: ModelConfig, engine: impl Engine<InferRequest>) -> Arc<Model> {
    Arc::new(Model {
        name: config.name.as_str().into(),
        config,
        engine: Arc::new(Deadline(engine)),
        text: None,
        load: None,
        health: None,
        statistics: Default::default(),
    })
}
