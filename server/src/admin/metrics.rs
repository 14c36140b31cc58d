//! `GET /metrics` in the OpenMetrics text format, which Prometheus scrapes.
//!
//! Gauges of engines are read at the scrape, so they cost nothing between scrapes.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::metrics::{Metrics, ModelLabels};
use crate::models::Models;

/// What a scrape reads.
pub(crate) struct Exporter {
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    pub models: Arc<Models>,
    pub started: Instant,
}

impl Exporter {
    /// Reads the gauges that are known only by asking.
    fn refresh(&self) {
        self.metrics.uptime.set(self.started.elapsed().as_secs_f64());
        // An adapter's engine is its base's, which tells of it.
        for model in self.models.ready().into_iter().filter(|model| model.parent.is_none()) {
            let Some(load) = &model.load else { continue };
            let load = load();
            let labels = ModelLabels { model: model.name.clone() };
            let gauges = [
                (&self.metrics.queue_depth, load.waiting_requests),
                (&self.metrics.running, load.running_sequences),
                (&self.metrics.kv_blocks_used, load.used_blocks),
                (&self.metrics.kv_blocks_cached, load.cached_blocks),
                (&self.metrics.kv_blocks, load.total_blocks),
            ];
            for (gauge, value) in gauges {
                gauge.get_or_create(&labels).set(i64::from(value));
            }
            if let Some(totals) = &model.totals {
                self.metrics.add_up(&labels, &totals());
            }
        }
    }

    fn render(&self) -> Response {
        self.refresh();
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => {
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

/// Makes the route at a path.
pub(crate) fn router(path: &str, exporter: Arc<Exporter>) -> Router {
    let scrape = |State(exporter): State<Arc<Exporter>>| async move { exporter.render() };
    Router::new().route(path, get(scrape)).with_state(exporter)
}
