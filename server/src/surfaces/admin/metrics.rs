//! `GET /metrics` in the OpenMetrics text format, which Prometheus scrapes.
//!
//! Gauges of engines are read at the scrape, so they cost nothing between scrapes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cluster::request::WorkerServer;
use engine::{Tasks, WorkerLoad};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::triton::{self, Processor};
use crate::models::registry::Models;
use crate::support::buffers::Buffers;
use crate::support::metrics::{Metrics, ModelLabels};
use crate::support::telemetry;

/// What a scrape reads.
pub(crate) struct Exporter {
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    pub models: Arc<Models>,
    /// The memory for what clients send, where there are any.
    pub buffers: Option<Arc<Buffers>>,
    pub started: Instant,
    /// The groups of background tasks.
    pub tasks: Vec<Tasks>,
    /// What has frontends' calls, in a worker.
    pub worker: Option<WorkerServer>,
    /// Measures the processor between scrapes.
    pub processor: Processor,
}

impl Exporter {
    /// Reads the gauges that are known only by asking.
    fn refresh(&self) {
        self.metrics.uptime.set(self.started.elapsed().as_secs_f64());
        self.metrics.tasks.set(self.tasks.iter().map(|group| group.count() as i64).sum());
        if let Some(buffers) = &self.buffers {
            self.metrics.buffered.set(buffers.held_bytes() as i64);
        }
        self.metrics.dropped_log_lines.inner().store(telemetry::dropped_lines(), Relaxed);
        if let Some(worker) = &self.worker {
            self.metrics.open_calls.set(worker.open_calls() as i64);
            self.metrics.buffered.set(worker.buffered_bytes() as i64);
            self.metrics.buffer_refusals.inner().store(worker.buffer_refusals(), Relaxed);
            let waited = self.metrics.waited("worker");
            waited.inner().store(worker.connections_waited(), Relaxed);
        }
        let names = self.models.list().into_iter().map(|(name, ..)| (Arc::from(name), None));
        let mut loads: BTreeMap<Arc<str>, Option<WorkerLoad>> = names.collect();
        for model in self.models.ready() {
            if let Some(totals) = &model.totals {
                totals.add_up();
            }
            // An adapter's engine is its base's, which tells of it.
            if let Some(load) = model.load.as_ref().filter(|_| model.parent.is_none()) {
                // Each version has an engine of its own.
                let all = loads.entry(model.name.clone()).or_default().get_or_insert_default();
                all.add(&load());
            }
        }
        for (model, load) in loads {
            self.metrics.set_load(&ModelLabels { model }, load.as_ref());
        }
    }

    fn render(&self) -> Response {
        self.refresh();
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => {
                triton::add(&mut text, &self.models.ready(), &self.processor);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Err(error) => {
                tracing::error!(%error, "cannot encode the metrics");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// Makes the routes of probes, for the listener of metrics: a worker has no other.
pub(crate) fn probes(exporter: Arc<Exporter>) -> Router {
    let json = |status: StatusCode, word: &str| {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (status, kind, format!("{{\"status\":\"{word}\"}}")).into_response()
    };
    let health = move |State(exporter): State<Arc<Exporter>>| async move {
        let models = &exporter.models;
        // The first group ends when the process is told to.
        let is_ending = exporter.tasks.first().is_some_and(Tasks::is_cancelled);
        match models.are_ready() && !is_ending && !models.ready().is_empty() {
            true => json(StatusCode::OK, "healthy"),
            false => json(StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        }
    };
    let live = move || async move { json(StatusCode::OK, "live") };
    Router::new().route("/health", get(health)).route("/live", get(live)).with_state(exporter)
}

/// Makes the route at a path.
pub(crate) fn router(path: &str, exporter: Arc<Exporter>) -> Router {
    let scrape = |State(exporter): State<Arc<Exporter>>| async move { exporter.render() };
    Router::new().route(path, get(scrape)).with_state(exporter)
}
