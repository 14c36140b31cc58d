//! Makes a model of a card: its engines on the workers' pool, its bridge, its decorators.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::card::{Card, Checksum, Input, Kind};
use cluster::request::RemoteWorker;
use engine::ModelCard;
use openai_bridge::{TextBridge, TextRules};
use prost_reflect::prost::Message;
use proto::inference as wire;

use super::bridges::Fetched;
use super::canary::Canary;
use super::cards::LABELS;
use super::config::{FleetConfig, PrefixSource};
use super::pool::{Pool, Prompts};
use crate::models::loader::{Engines, TextEngines, on_tensors, on_texts, on_tokens, rules_of};
use crate::models::registry::Model;
use crate::models::tables;
use crate::pipeline::{
    Counts, Disaggregate, Migrate, Prefixes, Route, RouteConfig, RouteMetrics, SplitConfig,
    Thresholds,
};
use crate::support::metrics::{Metrics, ModelLabels};

/// What models are made with.
pub(super) struct Maker {
    pub(super) config: FleetConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) fetched: Fetched,
}

/// A model to be made.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) card: Arc<Card>,
    pub(super) checksum: Checksum,
    pub(super) pool: Arc<Pool>,
    pub(super) workers: Vec<RemoteWorker>,
    /// The name and aliases that it may be called by.
    pub(super) names: Vec<String>,
    /// The base of an adapter.
    pub(super) parent: Option<Arc<str>>,
}

impl Maker {
    /// Returns how the workers of a model are asked whether they are well.
    pub(super) fn canary(&self, name: &str) -> Canary {
        let (interval, timeout) = self.config.canary;
        let labels = ModelLabels { model: name.into() };
        let failed = self.metrics.failed_canaries.get_or_create(&labels).clone();
        Canary { interval, timeout, failed }
    }

    /// Makes the models of a card, one for each of its names.
    pub(super) async fn make(self: &Arc<Self>, order: &Order) -> Result<Vec<Model>, String> {
        let card = &order.card;
        let workers = &order.workers;
        let tables = match card.input {
            Input::Tensor | Input::Text => None,
            Input::Token => {
                let found = self.fetched.get(card, tables::NAME, workers).await?;
                Some(found.ok_or_else(|| format!("its card has no `{}`", tables::NAME))?)
            }
        };
        let labels = self.fetched.get(card, LABELS, workers).await?;
        let (maker, order) = (self.clone(), order.clone());
        let make = move || maker.stack(&order, tables, labels);
        let made = tokio::task::spawn_blocking(make).await;
        made.unwrap_or_else(|error| Err(format!("the loader failed: {error}")))
    }

    /// Stacks the models of a card; blocks.
    fn stack(
        &self,
        order: &Order,
        tables: Option<Bytes>,
        labels: Option<Bytes>,
    ) -> Result<Vec<Model>, String> {
        let card = &*order.card;
        let declared = match &card.tensor_config {
            Some(bytes) => {
                wire::ModelConfig::decode(&**bytes).map_err(|error| error.to_string())?
            }
            None => wire::ModelConfig { name: card.name.clone(), ..Default::default() },
        };
        let settings = self.config.route();
        let prefixes = self.prefixes(order);
        let route = Route::new(&*card.name, order.pool.clone(), settings, self.route_metrics())
            .with_prefixes(prefixes);
        let rules = rules_of(self.config.text_rules, &declared)?;
        let bridge = tables.map(|tables| bridge(card, &tables, rules)).transpose()?;
        let labels: HashMap<String, Vec<String>> = match labels {
            Some(labels) => serde_json::from_slice(&labels).map_err(|error| error.to_string())?,
            None => HashMap::new(),
        };
        let thresholds = self.thresholds(order);
        let mut models = Vec::new();
        for name in &order.names {
            let declared = wire::ModelConfig { name: name.clone(), ..declared.clone() };
            let mut model = match &bridge {
                None if card.input == Input::Text => {
                    self.on_texts(order, &route, (&thresholds, rules), &declared)
                }
                None => self.on_tensors(&order.pool, route.clone(), declared)?,
                Some(bridge) => self.on_tokens(order, &route, &thresholds, bridge, &declared),
            };
            model.version = card.number().to_string().into();
            model.parent.clone_from(&order.parent);
            model.labels.clone_from(&labels);
            models.push(model);
        }
        Ok(models)
    }

    /// Returns when a model is busy, by all of its names together.
    fn thresholds(&self, order: &Order) -> Arc<Thresholds> {
        let limits = match order.card.input {
            Input::Text => self.config.limits.of_texts(),
            Input::Token | Input::Tensor => self.config.limits,
        };
        let pool = order.pool.clone();
        Arc::new(Thresholds::new(limits, Arc::new(move |visit| pool.each_load(visit))))
    }

    /// Returns what is known of the prompts that a model's workers have cached.
    fn prefixes(&self, order: &Order) -> Option<Arc<Prefixes>> {
        let block_tokens = order.card.block_size;
        let (exact, ttl) = match self.config.prefix_source {
            PrefixSource::Events => (Some(order.pool.index()), None),
            PrefixSource::Predicted(ttl) => (None, Some(ttl)),
            PrefixSource::None => (None, None),
        };
        (block_tokens > 0).then(|| Arc::new(Prefixes::new(block_tokens, exact, ttl)))
    }

    fn route_metrics(&self) -> RouteMetrics {
        let (calls, waiting) = (&self.metrics.worker_calls, &self.metrics.worker_waits);
        RouteMetrics { calls: calls.clone(), waiting: waiting.clone() }
    }

    /// Puts the prefill workers of a model, as soon as there are some, beside the others.
    fn disaggregate(
        &self,
        order: &Order,
        route: &Route,
        labels: &ModelLabels,
    ) -> Disaggregate<Route> {
        // The others do it all where there is no prefill worker, so none is waited for.
        let settings = RouteConfig { worker_wait: Duration::ZERO, ..self.config.route() };
        let workers = Arc::new(Prompts(order.pool.clone()));
        let prompts = Route::new(&*order.card.name, workers, settings, self.route_metrics())
            .with_prefixes(self.prefixes(order));
        let min_tokens = self.config.prefill_min_tokens;
        let config = SplitConfig { min_tokens, context_length: order.card.context_length };
        let family = self.metrics.disaggregated.clone();
        let counts = Counts { model: labels.model.clone(), family };
        Disaggregate { prompts, rest: route.clone(), config, counts }
    }

    fn on_tensors(
        &self,
        pool: &Arc<Pool>,
        route: Route,
        declared: wire::ModelConfig,
    ) -> Result<Model, String> {
        let config = tensor::metadata::read(&declared).map_err(|error| error.to_string())?;
        let mut model = on_tensors(config, declared, Arc::new(route))?;
        let pool = pool.clone();
        model.health = Some(Arc::new(move || pool.is_ready()));
        Ok(model)
    }

    /// Texts are not continued elsewhere once they have begun: nobody here knows their tokens.
    fn on_texts(
        &self,
        order: &Order,
        route: &Route,
        (thresholds, rules): (&Arc<Thresholds>, TextRules),
        declared: &wire::ModelConfig,
    ) -> Model {
        let card = &order.card;
        let is_encoder = card.kind == Kind::Embedding;
        let bridge = TextBridge::of_texts(&card.name, card.context_length, is_encoder);
        let bridge = if card.kind == Kind::Text { bridge.without_chats() } else { bridge };
        let health = order.pool.clone();
        let engines = TextEngines {
            bridge: Arc::new(bridge.with_rules(rules)),
            generate: Arc::new(route.clone()),
            embed: Arc::new(route.clone()),
            thresholds: thresholds.clone(),
            health: Arc::new(move || health.is_ready()),
        };
        on_texts(engines, &self.metrics, &declared.name, declared)
    }

    fn on_tokens(
        &self,
        order: &Order,
        route: &Route,
        thresholds: &Arc<Thresholds>,
        bridge: &Arc<TextBridge>,
        declared: &wire::ModelConfig,
    ) -> Model {
        let health = order.pool.clone();
        let generates = order.card.kind != Kind::Embedding;
        let limit = self.config.migration_limit;
        let labels = ModelLabels { model: declared.name.as_str().into() };
        let count = self.metrics.migrations.get_or_create(&labels).clone();
        let parts = self.disaggregate(order, route, &labels);
        let engines = Engines {
            bridge: bridge.clone(),
            generate: match generates {
                true => Some(Arc::new(Migrate { engine: parts.clone(), limit, count })),
                false => None,
            },
            embed: Arc::new(parts),
            thresholds: thresholds.clone(),
            health: Arc::new(move || health.is_ready()),
        };
        on_tokens(engines, &self.metrics, &declared.name, declared)
    }
}

/// Makes the bridge of a model from its card and tables.
fn bridge(card: &Card, content: &[u8], rules: TextRules) -> Result<Arc<TextBridge>, String> {
    let vocabulary = tables::read(content)?;
    let about = ModelCard {
        name: card.name.clone(),
        architecture: String::new(),
        context_length: card.context_length,
        block_size: card.block_size,
        eos_tokens: card.eos_tokens.clone(),
    };
    let (tools, reasoning) = (card.tool_call_parser.as_deref(), card.reasoning_parser.as_deref());
    let bridge = match card.kind {
        Kind::Embedding => TextBridge::encoder(&about, &vocabulary),
        _ => TextBridge::new(&about, &vocabulary)
            .and_then(|bridge| bridge.with_formats(tools, reasoning, &vocabulary)),
    };
    let bridge = bridge.map_err(|error| error.to_string())?;
    Ok(Arc::new(bridge.with_rules(rules)))
}
