//! `grpc.health.v1`: one status for the server, one for the service, one for each model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::models::registry::{Models, State};

/// The KServe service's name, which load balancers may ask for.
const SERVICE: &str = "inference.GRPCInferenceService";

/// Names of models that are gone which are remembered, so that one which comes again is told of once.
const MAX_GONE: usize = 1000;

/// How often the engines are looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Returns whether a health check is of the server or its service; other names are those of models.
pub(super) fn is_of_server(name: &str) -> bool {
    ["", SERVICE].contains(&name)
}

/// Tells health watchers what is served.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    /// Set when the server shuts down: nothing is served from then on.
    is_over: Arc<AtomicBool>,
}

impl Health {
    /// Makes the teller around the health service's reporter; nothing is served yet.
    pub(crate) async fn new(reporter: HealthReporter) -> Self {
        let health = Self { reporter, is_over: Arc::default() };
        health.set("", false).await;
        health.set(SERVICE, false).await;
        health
    }

    /// Says whether the server and its service can be called.
    async fn set_server(&self, is_serving: bool) {
        self.set("", is_serving).await;
        self.set(SERVICE, is_serving).await;
    }

    /// Tells of models that come, go or fail, until the future is dropped.
    pub(crate) async fn follow(&self, models: &Models) {
        let mut changes = models.changes();
        let mut told = BTreeMap::<String, bool>::new();
        loop {
            let mut serving = BTreeMap::<String, bool>::new();
            for (name, _, state) in models.list() {
                let is_serving = matches!(state, State::Ready(model) if model.is_ready());
                *serving.entry(name).or_default() |= is_serving;
            }
            serving.insert(String::new(), models.are_ready());
            // A model that is gone was known to whoever watches it, which is told of that once.
            let gone = told.iter().filter(|(name, _)| !serving.contains_key(*name));
            let gone: Vec<(String, bool)> = gone.map(|(name, was)| (name.clone(), *was)).collect();
            for (count, (name, was)) in gone.into_iter().enumerate() {
                if was || count < MAX_GONE {
                    serving.insert(name, false);
                }
            }
            // Watchers are told of changes only.
            for (name, is_serving) in &serving {
                if told.get(name) == Some(is_serving) {
                    continue;
                }
                match name.as_str() {
                    "" => self.set_server(*is_serving).await,
                    name => self.set(name, *is_serving).await,
                }
            }
            told = serving;
            // Changes are told at once; an engine that fails is seen at the next look.
            let _ = tokio::time::timeout(FOLLOW_INTERVAL, changes.changed()).await;
        }
    }

    /// Says that nothing is served any more.
    pub(crate) async fn close(&self, models: &Models) {
        self.is_over.store(true, Relaxed);
        self.set_server(false).await;
        for (name, ..) in models.list() {
            self.set(&name, false).await;
        }
    }

    async fn set(&self, name: &str, is_serving: bool) {
        let is_serving = is_serving && !self.is_over.load(Relaxed);
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }
}
