//! Keeps the worker's models as the server's are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use engine::{Context, KvEvents, Result, WorkerLoad};
use openai_bridge::TextBridge;
use proto::inference as wire;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::client::{Client, UNREACHABLE, silent};
use super::config::UpstreamConfig;
use super::engine::{LINGER, Remote, listed};
use crate::models::loader::{TextEngines, on_texts};
use crate::models::registry::Models;
use crate::pipeline::{Limits, Thresholds};
use crate::support::metrics::Metrics;

/// How often the server is asked for its models.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long it may take to answer that; some answer nothing while they compute, and are asked for
/// one token then.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long that may take. One that does not answer it either, and has nothing to say in answers
/// that it has begun, counts as gone.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// How often it may fail to answer one after the other before it counts as gone. One that refuses
/// connections is gone at once.
const PATIENCE: u32 = 3;

/// Events of KV blocks that wait for a slow reader.
const KV_EVENTS: usize = 1 << 14;

/// Most models that are taken from a server.
const MAX_MODELS: usize = cluster::instance::MAX_CARDS;

/// A server whose models are offered.
pub(crate) struct Upstream {
    client: Arc<Client>,
    context_length: Option<u32>,
    /// What becomes of the KV blocks of its first model.
    events: Option<KvEvents>,
    /// That model.
    base: String,
    models: Arc<Models>,
    metrics: Arc<Metrics>,
    lost: Arc<Notify>,
    /// Ends requests at a server that hangs.
    hung: Arc<Notify>,
    /// Counts what came of answers.
    heard: Arc<AtomicU64>,
    /// Whether the server is there; read by its models.
    is_there: Arc<AtomicBool>,
    /// The models and their contexts.
    known: BTreeMap<String, u32>,
    failures: u32,
}

impl Upstream {
    /// Makes the follower of a server; its models come with the first [`look`](Self::look).
    ///
    /// Errors: settings that cannot be used.
    pub(crate) fn new(
        config: &UpstreamConfig,
        models: &Arc<Models>,
        metrics: &Arc<Metrics>,
    ) -> std::result::Result<Self, String> {
        Ok(Self {
            client: Arc::new(Client::new(config)?),
            context_length: config.context_length,
            events: config.kv_events.as_ref().map(|_| KvEvents::new(KV_EVENTS)),
            base: String::new(),
            models: models.clone(),
            metrics: metrics.clone(),
            lost: Arc::default(),
            hung: Arc::default(),
            heard: Arc::default(),
            is_there: Arc::default(),
            known: BTreeMap::new(),
            failures: 0,
        })
    }

    /// Returns where the events of KV blocks are told, if there are any.
    pub(crate) fn events(&self) -> Option<KvEvents> {
        self.events.clone()
    }

    /// Follows the server until the future is dropped.
    pub(crate) async fn follow(mut self) {
        let lost = self.lost.clone();
        loop {
            let _ = timeout(LOOK_INTERVAL, lost.notified()).await;
            self.look().await;
        }
    }

    /// Looks which models the server has.
    pub(crate) async fn look(&mut self) {
        let before = self.heard.load(Relaxed);
        let asked = timeout(LOOK_TIMEOUT, self.client.get("/models")).await;
        let Ok(asked) = asked else {
            if !self.answers().await && self.heard.load(Relaxed) == before {
                self.failures = PATIENCE;
                self.turn(Err(silent(LOOK_TIMEOUT + PROBE_TIMEOUT)));
                // Others may answer what waits there.
                self.hung.notify_waiters();
            }
            return;
        };
        match asked.and_then(|list| listed(&list)) {
            Ok(list) => {
                self.failures = 0;
                self.take(&list);
                self.turn(Ok(()));
            }
            Err(error) => {
                self.failures += 1;
                if self.failures >= PATIENCE || error.code() == Some(UNREACHABLE) {
                    self.turn(Err(error));
                }
            }
        }
    }

    /// Asks for one token; returns whether anything comes back.
    async fn answers(&self) -> bool {
        let body = json!({"model": self.base, "prompt": "a", "max_tokens": 1}).to_string();
        let context = Context::new("probe");
        let asked = self.client.post("/completions", body.into(), &context);
        timeout(PROBE_TIMEOUT, asked).await.is_ok_and(|answer| match answer {
            Ok(_) => true,
            Err(error) => error.code() != Some(UNREACHABLE),
        })
    }

    /// Notes whether the server is there, and says so when that changes.
    fn turn(&self, state: Result<()>) {
        let (is_there, server) = (state.is_ok(), self.client.base());
        if self.is_there.swap(is_there, Relaxed) != is_there {
            match state {
                Ok(()) => tracing::info!(server, models = self.known.len(), "upstream is there"),
                Err(error) => tracing::warn!(server, %error, "upstream is gone"),
            }
            self.models.touch();
        } else if [1, PATIENCE].contains(&self.failures)
            && let Err(error) = state
        {
            tracing::warn!(server, %error, "upstream is not there yet");
        }
    }

    /// Takes the models that the server has now, and lets go of others.
    fn take(&mut self, list: &[(String, u32)]) {
        if list.len() > MAX_MODELS {
            tracing::warn!(got = list.len(), taken = MAX_MODELS, "upstream has too many models");
        }
        // Engines have one base, which they list before its adapters.
        if let Some((first, _)) = list.first() {
            self.base.clone_from(first);
        }
        let own =
            |(name, length): &(String, u32)| (name.clone(), self.context_length.unwrap_or(*length));
        let list: BTreeMap<String, u32> = list.iter().take(MAX_MODELS).map(own).collect();
        for name in self.known.keys().filter(|name| !list.contains_key(*name)) {
            self.models.forget(name);
        }
        for (name, length) in &list {
            if self.known.get(name) != Some(length) {
                let model = self.model(name, *length);
                self.models.replace(name, vec![(1, Arc::new(model))]);
            }
        }
        self.known = list;
    }

    fn model(&self, name: &str, context_length: u32) -> crate::models::registry::Model {
        let remote = Arc::new(Remote {
            client: self.client.clone(),
            model: name.into(),
            in_flight: Arc::new(AtomicU32::new(0)),
            lost: self.lost.clone(),
            hung: self.hung.clone(),
            heard: self.heard.clone(),
            linger: LINGER,
        });
        let (in_flight, is_there) = (remote.in_flight.clone(), self.is_there.clone());
        let load = move || WorkerLoad {
            running_sequences: in_flight.load(Relaxed),
            ..WorkerLoad::default()
        };
        let each_load = Arc::new(move |visit: &mut dyn FnMut(_)| visit(load()));
        let engines = TextEngines {
            bridge: Arc::new(TextBridge::of_texts(name, context_length, false)),
            generate: remote.clone(),
            embed: remote,
            thresholds: Arc::new(Thresholds::new(Limits::default(), each_load)),
            health: Arc::new(move || is_there.load(Relaxed)),
        };
        let declared = wire::ModelConfig {
            name: name.to_owned(),
            platform: "openai".to_owned(),
            backend: "upstream".to_owned(),
            ..wire::ModelConfig::default()
        };
        let mut model = on_texts(engines, &self.metrics, name, &declared);
        if let Some(core) = model.core.as_mut().filter(|_| *name == self.base) {
            core.events.clone_from(&self.events);
        }
        model
    }
}
