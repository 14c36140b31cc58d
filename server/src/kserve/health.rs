//! `grpc.health.v1`: one status for the server, one for the service, one for each model.

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The KServe service's name, which load balancers may ask for.
const SERVICE: &str = "inference.GRPCInferenceService";

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

    async fn set(&self, name: &str, is_serving: bool) {
        let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(name, status).await;
    }
}
