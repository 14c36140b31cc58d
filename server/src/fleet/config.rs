//! How workers and frontends find and choose one another.

use std::time::Duration;

use cluster::discovery::Query;
use cluster::instance::Namespace;
use openai_bridge::TextRules;
use router::KvConfig;

use super::planes::PlanesConfig;
use super::store::Store;
use crate::args::{FrontendArgs, Repeated, RouterArgs, Routing};
use crate::pipeline::{Limits, RetryAccepted, RouteConfig, RouterMode};
use crate::security::LinkConfig;
use crate::support::invalid::Invalid;

/// How a frontend finds workers and chooses among them.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// Where workers are registered.
    pub store: Store,
    /// What carries requests and events.
    pub planes: PlanesConfig,
    /// Whose workers are called.
    pub query: Query,
    /// How workers are chosen.
    pub(crate) mode: RouterMode,
    /// Where what workers have cached is known from.
    pub(crate) prefix_source: PrefixSource,
    /// The most workers that one request is given to before its first output.
    pub max_attempts: u32,
    /// What all texts keep to.
    pub text_rules: TextRules,
    /// Which tensor requests may be begun twice.
    pub retry_accepted: Repeated,
    /// How often one text may go on elsewhere.
    pub migration_limit: u32,
    /// The fewest tokens of a prompt that a prefill worker computes.
    pub prefill_min_tokens: u32,
    /// TLS towards workers; none calls those that speak in the clear.
    pub tls: Option<LinkConfig>,
    /// When a text model counts as busy, until that is changed.
    pub(crate) limits: Limits,
    /// How long a starting frontend waits for the models of workers before it is ready.
    pub startup_wait: Duration,
    /// How long a request waits for a worker when there is none.
    pub worker_wait: Duration,
    /// The most requests of one model that wait so.
    pub max_waiting: u32,
    /// How long after its last worker left a model is expected to come again.
    pub model_grace: Duration,
    /// The silence after which a worker is asked whether it is well, zero for never, and how long
    /// its answer may take.
    pub canary: (Duration, Duration),
}

impl FleetConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &FrontendArgs) -> Result<Self, Invalid> {
        let namespaces: Vec<Namespace> =
            args.namespace.iter().map(|text| namespace(text)).collect::<Result<_, _>>()?;
        let query = match &args.namespace_prefix {
            Some(prefix) => Query::prefix(prefix)
                .map_err(|error| Invalid(format!("--namespace-prefix: {}", error.message())))?,
            None if namespaces.is_empty() => Query::All,
            None => Query::Namespaces(namespaces),
        };
        let shown = args.worker_tls_cert.clone().zip(args.worker_tls_key.clone());
        let authorities = args.worker_tls_ca.clone();
        let tls = authorities.map(|ca| LinkConfig { shown, authorities: Some(ca) });
        let store = Store::from_args(&args.discovery)?;
        let route = &args.route;
        Ok(Self {
            store: if tls.is_some() { store.secured() } else { store },
            planes: PlanesConfig::from_args(&args.planes, tls.is_some())?,
            tls,
            query,
            mode: router_mode(&args.router),
            prefix_source: PrefixSource::from_args(&args.router),
            max_attempts: route.max_attempts,
            retry_accepted: route.retry_accepted,
            migration_limit: route.migration_limit,
            prefill_min_tokens: route.prefill_min_tokens,
            limits: Limits::from_args(&args.busy),
            text_rules: args.openai.text_rules(),
            startup_wait: Duration::from_millis(route.startup_wait_ms.into()),
            worker_wait: Duration::from_millis(route.worker_wait_ms.into()),
            max_waiting: route.max_worker_waits,
            model_grace: Duration::from_millis(route.model_grace_ms.into()),
            canary: (
                Duration::from_millis(route.canary_interval_ms.into()),
                Duration::from_millis(route.canary_timeout_ms.into()),
            ),
        })
    }

    /// Returns how requests are routed.
    pub(crate) fn route(&self) -> RouteConfig {
        let retry_accepted = match self.retry_accepted {
            Repeated::Never => RetryAccepted::Never,
            Repeated::Stateless => RetryAccepted::Stateless,
            Repeated::Always => RetryAccepted::Always,
        };
        RouteConfig {
            mode: self.mode,
            max_attempts: self.max_attempts,
            retry_accepted,
            worker_wait: self.worker_wait,
            max_waiting: self.max_waiting,
        }
    }
}

/// How a frontend knows what its workers have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrefixSource {
    /// Workers publish KV events.
    Events,
    /// A prompt counts as cached for this time after it was routed.
    Predicted(Duration),
    /// Nothing is known.
    None,
}

impl PrefixSource {
    fn from_args(args: &RouterArgs) -> Self {
        match (args.load_aware, args.no_router_kv_events) {
            (true, _) => Self::None,
            (false, true) => Self::Predicted(Duration::from_secs(args.router_ttl_secs.into())),
            (false, false) => Self::Events,
        }
    }
}

/// Returns how workers are chosen.
fn router_mode(args: &RouterArgs) -> RouterMode {
    let config = KvConfig {
        overlap_credit: if args.load_aware { 0.0 } else { args.router_kv_overlap_score_credit },
        prefill_scale: args.router_prefill_load_scale,
        request_weight: args.router_decode_active_request_weight,
        temperature: args.router_temperature,
        max_load_ratio: args.router_max_load_ratio,
        ..KvConfig::default()
    };
    match args.router_mode {
        _ if args.load_aware => RouterMode::Kv(config),
        Routing::RoundRobin => RouterMode::RoundRobin,
        Routing::Random => RouterMode::Random,
        Routing::PowerOfTwo => RouterMode::PowerOfTwo,
        Routing::LeastLoaded => RouterMode::LeastLoaded,
        Routing::Kv => RouterMode::Kv(config),
    }
}

/// Reads the name of a namespace.
///
/// Errors: [`Invalid`], naming the flag.
pub(crate) fn namespace(text: &str) -> Result<Namespace, Invalid> {
    text.parse()
        .map_err(|error: engine::Error| Invalid(format!("--namespace: {}", error.message())))
}
