//! Makes models callable: from a definition to a stack of engines. Blocks; not for the async
//! runtime.

mod config;
mod shared;
mod stack;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{Engine, InferRequest, ModelCard, Vocabulary};
use openai_bridge::{TextBridge, TextRules};
use proto::inference as wire;
use tensor::ModelConfig;
use wire::model_config::SchedulingChoice;
use worker::cpu::Isa;
use worker::cpu::linear::Compute;
use worker::cpu::pool::Pool;
use worker::encode;
use worker::generate::{Constraints, DiskTierConfig, GenerateEngine, SchedulerConfig};
use worker::infer::{Accumulator, AddSub, Identity, MockImageModel, RepeatInt32, Square};
use worker::runner::Runner;
use worker::runner::cpu::{CpuOptions, CpuRunner, Loaded, start_pool};
use worker::runner::mock::{self, Cost, MockConfig, MockRunner};

use crate::models::definition::{Definition, WEIGHTS_FILE};
use crate::models::hub;
use crate::models::registry::{AdapterSupport, Base, Core, Model, Models};
use crate::models::source::{CONFIG_FILE, Place, sequences};
use crate::pipeline::{Deadline, Limits, Queued, SequenceOptions, Sequences, max_waiting};
use crate::support::metrics::{Metrics, ModelLabels};

pub use config::EngineConfig;
pub(crate) use shared::SharedTexts;
use shared::Texts;
pub(crate) use stack::{Engines, TextEngines, on_texts, on_tokens};

/// How long a sequence may be idle when its model does not say, as in Triton.
const DEFAULT_IDLE_US: u64 = 1_000_000;

/// The longest time that a parameter may set.
const MAX_TIME: Duration = Duration::from_secs(3600);

/// Most KV blocks of a mock.
const MAX_MOCK_BLOCKS: usize = 1 << 24;

/// What every model is made with.
#[derive(Debug)]
pub(crate) struct Backends {
    pub engine: EngineConfig,
    pub model_dir: PathBuf,
    pub hub_url: Option<String>,
    pub metrics: Arc<Metrics>,
    /// What reads and writes the texts of the models.
    pub texts: SharedTexts,
    /// What is served, where adapters find their base.
    pub models: Arc<Models>,
    /// The compute threads of all models, once there is a first.
    pub pool: Mutex<Option<Pool>>,
    /// When text models count as busy, until that is changed.
    pub limits: Limits,
}

impl Backends {
    /// Returns what all models compute on, so that several do not take each other's cores.
    ///
    /// Errors: the system gives no thread.
    fn compute(&self) -> Result<Compute, worker::Error> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match &*pool {
            Some(pool) => pool.clone(),
            None => {
                let EngineConfig { threads, pin_threads, .. } = self.engine;
                pool.insert(start_pool(threads, pin_threads)?).clone()
            }
        };
        Ok(Compute { pool, isa: Isa::best() })
    }

    /// Makes one version of a model. Errors say what is wrong with its definition or files.
    pub(crate) fn make(&self, definition: &Definition, version: u64) -> Result<Model, String> {
        let declared = &definition.declared;
        if matches!(declared.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
            return Err("ensembles are not served".into());
        }
        let mut model = match declared.backend.as_str() {
            "text" => self.text(definition, version)?,
            "mock" => self.mock(definition)?,
            "lora" => self.adapted(definition, version)?,
            backend => tensors(backend, definition)?,
        };
        model.version = version.to_string().into();
        model.files.clone_from(&definition.files);
        for output in &model.declared.output {
            if !output.label_filename.is_empty() {
                let labels = definition.labels(&output.label_filename)?;
                model.labels.insert(output.name.clone(), labels);
            }
        }
        Ok(model)
    }

    fn text(&self, definition: &Definition, version: u64) -> Result<Model, String> {
        let started = Instant::now();
        let path = self.weights(definition, version)?;
        if path.is_dir() && encode::is_encoder(&path).map_err(|error| error.to_string())? {
            return self.encoder(&path, definition, version);
        }
        let options = CpuOptions {
            threads: self.engine.threads,
            context_length: self.engine.context_length,
            kv_cache_bytes: self.engine.kv_cache_bytes,
            batch_tokens: self.engine.batch_tokens,
        };
        let loaded = self.compute().and_then(|on| CpuRunner::load_on(&path, &options, on));
        let loaded = loaded.map_err(|error| error.to_string())?;
        let Loaded { mut runner, mut card, vocabulary } = loaded;
        card.name.clone_from(&definition.name);
        let adapters = AdapterSupport::Files(runner.take_adapters(self.engine.adapters));
        let rules = rules_of(self.engine.text_rules, &definition.declared)?;
        let texts = self.read(&card, &vocabulary, rules)?;
        let runner = Box::new(runner);
        let model =
            self.generating(runner, adapters, (card.clone(), texts), &definition.declared)?;
        tracing::info!(
            model = definition.name,
            version,
            architecture = card.architecture,
            context_length = card.context_length,
            instructions = Isa::best().name(),
            seconds = started.elapsed().as_secs_f64(),
            "model loaded"
        );
        Ok(model)
    }

    /// Returns the file with the weights of a text model, which a hub may have to give first.
    fn weights(&self, definition: &Definition, version: u64) -> Result<PathBuf, String> {
        let Some(source) = &definition.source else {
            let folder = definition.folder.as_ref().ok_or("a text model needs a file")?;
            let version = folder.join(version.to_string());
            let is_directory = version.join(CONFIG_FILE).is_file();
            let file = match definition.declared.default_model_filename.as_str() {
                "" if is_directory && !version.join(WEIGHTS_FILE).exists() => return Ok(version),
                "" => WEIGHTS_FILE,
                file if !file.contains(['/', '\\']) => file,
                file => return Err(format!("`default_model_filename`: `{file}` is not a name")),
            };
            return Ok(version.join(file));
        };
        match &source.place {
            Place::File(path) => Ok(path.clone()),
            Place::Default(path) if path.is_file() => Ok(path.clone()),
            Place::Default(path) => Err(format!(
                "the default model is not at `{}`; the script `./serve` puts it there, \
                 or name a model: `stator serve FILE.gguf`",
                path.display()
            )),
            Place::Hub { repository, file } => {
                let url = self.hub_url.as_deref();
                hub::fetch(repository, file.as_deref(), &self.model_dir, url)
                    .map_err(|error| error.to_string())
            }
        }
    }

    fn mock(&self, definition: &Definition) -> Result<Model, String> {
        let mut mock =
            MockConfig { pace: milliseconds(definition, "pace_ms")?, ..MockConfig::default() };
        mock.batch_tokens = self.engine.batch_tokens;
        if let Some(tokens) = definition.parameter("context_length") {
            mock.context_length =
                tokens.parse().map_err(|_| format!("`context_length`: `{tokens}` is no number"))?;
        }
        if let Some(blocks) = definition.parameter("blocks") {
            let blocks =
                blocks.parse().ok().filter(|blocks| (1..=MAX_MOCK_BLOCKS).contains(blocks));
            let why = || format!("`blocks`: expected a number from 1 to {MAX_MOCK_BLOCKS}");
            mock.blocks = blocks.ok_or_else(why)?;
        }
        mock.cost = cost(definition)?;
        mock.reply = definition.parameter("reply").map(str::to_owned);
        let card = mock::card(&definition.name, &mock);
        let runner = Box::new(MockRunner::new(mock));
        // A mock's vocabulary is always the same, so its card says which texts are its own.
        let rules = rules_of(self.engine.text_rules, &definition.declared)?;
        let read = || self.read(&card, &mock::vocabulary(), rules);
        let texts = self.texts.get(&card, rules, read)?;
        self.generating(runner, AdapterSupport::Names, (card, texts), &definition.declared)
    }

    fn scheduler(&self, declared: &wire::ModelConfig) -> Result<SchedulerConfig, String> {
        let engine = &self.engine;
        let disk_tier = engine.kv_disk.clone();
        Ok(SchedulerConfig {
            max_waiting_requests: max_waiting(declared)?.unwrap_or(engine.max_waiting_requests),
            max_running_sequences: engine.max_running_sequences,
            batch_tokens: engine.batch_tokens,
            mixed_prompt_tokens: engine.mixed_prompt_tokens,
            mixed_pass_stretch: engine.mixed_pass_stretch,
            has_prefix_cache: engine.has_prefix_cache,
            watermark: engine.kv_watermark,
            draft_tokens: engine.draft_tokens,
            host_tier_bytes: engine.kv_host_bytes,
            disk_tier: disk_tier.map(|(folder, max_bytes)| DiskTierConfig { folder, max_bytes }),
            ..SchedulerConfig::default()
        })
    }

    /// Stacks a text model: bridge over deadline over observation over the scheduler.
    fn generating(
        &self,
        runner: Box<dyn Runner>,
        adapters: AdapterSupport,
        (card, texts): (ModelCard, Texts),
        declared: &wire::ModelConfig,
    ) -> Result<Model, String> {
        let Texts { bridge, tables, constraints } = texts;
        let config = self.scheduler(declared)?;
        let generate =
            GenerateEngine::start_with(runner, constraints, card.eos_tokens.clone(), config)
                .map_err(|error| error.to_string())?;
        let generate = Arc::new(generate);
        let (labels, engine) = (ModelLabels { model: card.name.as_str().into() }, generate.clone());
        let totals = Arc::new(self.metrics.totals(&labels, move || engine.totals()));
        let base = Base { name: card.name, bridge, generate, adapters, tables, totals };
        Ok(self.based(&Arc::new(base), None, declared))
    }

    /// Makes what reads and writes the texts of a model that generates.
    fn read(
        &self,
        card: &ModelCard,
        vocabulary: &Vocabulary,
        rules: TextRules,
    ) -> Result<Texts, String> {
        let (tools, reasoning) = (&self.engine.tool_call_parser, &self.engine.reasoning_parser);
        let bridge = TextBridge::new(card, vocabulary)
            .and_then(|bridge| {
                bridge.with_formats(tools.as_deref(), reasoning.as_deref(), vocabulary)
            })
            .map_err(|error| error.to_string())?;
        Ok(Texts {
            bridge: Arc::new(bridge.with_rules(rules)),
            tables: self.texts.tables(card, vocabulary),
            constraints: Constraints::new(vocabulary, &card.eos_tokens),
        })
    }
}

/// Returns what the texts of a model keep to, which its declaration may change.
pub(crate) fn rules_of(
    rules: TextRules,
    declared: &wire::ModelConfig,
) -> Result<TextRules, String> {
    let told = declared.parameters.get("text_output").map(|value| value.string_value.as_str());
    match told {
        None => Ok(rules),
        Some("text") => Ok(TextRules { has_echo: false, ..rules }),
        Some("echo") => Ok(TextRules { has_echo: true, ..rules }),
        Some(other) => Err(format!("`text_output`: expected `text` or `echo`, got `{other}`")),
    }
}

/// Makes a tensor model.
fn tensors(backend: &str, definition: &Definition) -> Result<Model, String> {
    let name = definition.name.as_str();
    let mut declared = definition.declared.clone();
    let default = match backend {
        "identity" => None,
        "add_sub" => Some(AddSub::config(name)),
        "image" => Some(MockImageModel::images().config(name)),
        "video" => Some(MockImageModel::videos().config(name)),
        "repeat" => Some(RepeatInt32::config(name)),
        "square" => Some(Square::config(name)),
        "sequence" => Some(Accumulator::config(name)),
        other => {
            let shown = [other, declared.platform.as_str()].into_iter().find(|s| !s.is_empty());
            let why = match shown {
                Some(name) => format!("no backend is called `{name}`"),
                None => "the configuration names no `backend`".to_owned(),
            };
            return Err(format!(
                "{why}; there are text, lora, mock, identity, add_sub, repeat, square, sequence, \
                 image, video"
            ));
        }
    };
    if let Some(own) = default.filter(|_| declared.input.is_empty() && declared.output.is_empty()) {
        let own = tensor::metadata::config(&own);
        (declared.input, declared.output) = (own.input, own.output);
        declared.model_transaction_policy = own.model_transaction_policy;
        if declared.max_batch_size == 0 {
            declared.max_batch_size = own.max_batch_size;
        }
    }
    if backend == "sequence" {
        let scheduling = declared.scheduling_choice.get_or_insert(sequences(DEFAULT_IDLE_US));
        if !matches!(scheduling, SchedulingChoice::SequenceBatching(_)) {
            return Err("backend `sequence` needs `sequence_batching`".into());
        }
    }
    if declared.platform.is_empty() {
        declared.platform = "stator".into();
    }
    let config = tensor::metadata::read(&declared).map_err(|error| error.to_string())?;
    let delay = || milliseconds(definition, "delay_ms");
    let why = |error: worker::Error| error.to_string();
    match backend {
        "add_sub" => {
            let engine = AddSub::new(&config).map_err(why)?;
            inferring(config, declared, engine)
        }
        "image" => inferring(config, declared, MockImageModel::images()),
        "video" => inferring(config, declared, MockImageModel::videos()),
        "repeat" => {
            let engine = RepeatInt32::new(&config).map_err(why)?;
            inferring(config, declared, engine)
        }
        "square" => {
            let engine = Square::new(&config).map_err(why)?;
            inferring(config, declared, engine)
        }
        "sequence" => {
            let engine = Accumulator::new(&config, delay()?).map_err(why)?;
            inferring(config, declared, engine)
        }
        _ => {
            let has_echo = definition.parameter("echo_parameters") == Some("true");
            let engine = Identity::new(&config, delay()?, has_echo).map_err(why)?;
            inferring(config, declared, engine)
        }
    }
}

fn inferring(
    config: ModelConfig,
    declared: wire::ModelConfig,
    engine: impl Engine<InferRequest>,
) -> Result<Model, String> {
    match max_waiting(&declared)? {
        None => on_tensors(config, declared, Arc::new(engine)),
        Some(most) => {
            let engine = Queued::new(engine, &declared, most);
            on_tensors(config, declared, Arc::new(engine))
        }
    }
}

/// Stacks a tensor model: deadline over sequences, if it has them, over its engine, which may be
/// anywhere.
pub(crate) fn on_tensors(
    config: ModelConfig,
    declared: wire::ModelConfig,
    core: Arc<dyn Engine<InferRequest>>,
) -> Result<Model, String> {
    let engine: Arc<dyn Engine<InferRequest>> = match &declared.scheduling_choice {
        Some(SchedulingChoice::SequenceBatching(batching)) => {
            let options = SequenceOptions::new(&config, batching)?;
            Arc::new(Deadline(Sequences::new(core.clone(), options)))
        }
        _ => Arc::new(Deadline(core.clone())),
    };
    let core = Core { infer: Some(core), ..Core::default() };
    let mut model = bare(config, declared, engine);
    model.core = Some(core);
    Ok(model)
}

fn bare(
    config: ModelConfig,
    declared: wire::ModelConfig,
    engine: Arc<dyn Engine<InferRequest>>,
) -> Model {
    Model {
        name: config.name.as_str().into(),
        version: "1".into(),
        config,
        declared: tensor::metadata::complete(declared),
        labels: HashMap::new(),
        engine,
        text: None,
        base: None,
        parent: None,
        adapter: None,
        origin: None,
        load: None,
        totals: None,
        health: None,
        statistics: Default::default(),
        core: None,
        files: None,
    }
}

/// Reads a time in milliseconds from a custom parameter; none is no time.
fn milliseconds(definition: &Definition, key: &str) -> Result<Duration, String> {
    time(definition, key, 1e3)
}

/// Reads a time from a custom parameter, in so many parts of a second; none is no time.
fn time(definition: &Definition, key: &str, parts: f64) -> Result<Duration, String> {
    let Some(text) = definition.parameter(key) else {
        return Ok(Duration::ZERO);
    };
    let time = text.parse::<f64>().ok().and_then(|t| Duration::try_from_secs_f64(t / parts).ok());
    let time = time.filter(|time| *time <= MAX_TIME);
    time.ok_or_else(|| format!("`{key}`: `{text}` is not a time"))
}

/// Reads what the passes of a mock cost.
fn cost(definition: &Definition) -> Result<Cost, String> {
    let speedup = definition.parameter("speedup").unwrap_or("1");
    let wrong = || format!("`speedup`: expected a number from 0.001 to 1000000, got `{speedup}`");
    let factor = speedup.parse().ok().filter(|factor| (1e-3..=1e6).contains(factor));
    Ok(Cost {
        prefill: time(definition, "prefill_us", 1e6)?,
        decode: time(definition, "decode_us", 1e6)?,
        speedup: factor.ok_or_else(wrong)?,
    })
}
