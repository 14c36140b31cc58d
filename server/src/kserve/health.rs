//! `grpc.health.v1`: one status for the server, one for the service, one for each model.

use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::models::{Models, State};

/// The KServe service's name, which load balancers may ask for.
const SERVICE: &str = "inference.GRPCInferenceService";

/// How often the engines are looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Tells health watchers what is served.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Makes the teller around the health service's reporter; nothing is served yet.
    pub(crate) async fn new(reporter: HealthReporter) -> Self {
        let health = Self { reporter };
        health.set("", false).await;
        health.set(SERVICE, false).await;
        health
    }

    /// Says whether a model can be called.
    pub(crate) async fn set_model(&self, name: &str, is_serving: bool) {
        self.set(name, is_serving).await;
    }

    /// Says whether the server and its service can be called.
    pub(crate) async fn set_server(&self, is_serving: bool) {
        self.set("", is_serving).await;
        self.set(SERVICE, is_serving).await;
    }

    /// Tells of models whose engine fails, for as long as the server accepts requests.
    pub(crate) async fn follow(&self, models: &Models) {
        loop {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            for (name, state) in models.list() {
                if matches!(state, State::Ready(model) if !model.is_ready()) {
                    self.set_model(&name, false).await;
                    self.set_server(false).await;
                }
            }
        }
    }

    async fn set(&self, name: &str, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }
}
