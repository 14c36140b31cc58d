//! How workers and frontends find and choose one another.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use cluster::card::{Card, Input, Kind, Role};
use cluster::discovery::Query;
use cluster::instance::Namespace;
use openai_bridge::TextRules;
use router::KvConfig;

use super::cards::Aliases;
use super::planes::PlanesConfig;
use super::store::Store;
use crate::args::{FrontendArgs, RouterArgs, WorkerArgs};
use crate::config::{Invalid, ModelsConfig, limits, metrics};
use crate::pipeline::{Limits, RetryAccepted, RouteConfig, RouterMode};
use crate::security::LinkConfig;
use crate::source::Builtin;
use crate::upstream::UpstreamConfig;

/// The schemes of workers' addresses: in the clear, and by TLS.
pub(super) const PLAIN: &str = "grpc://";
pub(super) const SECURE: &str = "grpcs://";

/// Which of a model's workers gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Routing {
    /// One after the other
    RoundRobin,
    /// Any one
    Random,
    /// The one of two drawn at random that has fewer requests
    PowerOfTwo,
    /// The one with the fewest requests
    LeastLoaded,
    /// The one where the prompt costs least: by the KV blocks that it has cached, and by its load
    Kv,
}

/// Which part of the texts a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// All of a text
    Aggregated,
    /// Computes prompts and hands their KV blocks on
    Prefill,
    /// Continues prompts that others computed
    Decode,
}

impl Part {
    fn role(self) -> Role {
        match self {
            Self::Aggregated => Role::Aggregated,
            Self::Prefill => Role::Prefill,
            Self::Decode => Role::Decode,
        }
    }
}

/// Which tensor requests may be given to a second worker when the first may have begun them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Repeated {
    /// None
    Never,
    /// Those that are not part of a sequence
    Stateless,
    /// All
    Always,
}

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

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// What it computes.
    pub models: ModelsConfig,
    /// Other names of what it computes.
    pub(crate) aliases: Aliases,
    /// How many workers this process is, each with its own address and engines.
    pub instances: u32,
    /// A server whose models it offers.
    pub upstream: Option<UpstreamConfig>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Open connections of frontends.
    pub max_connections: usize,
    /// Memory for requests in bytes.
    pub max_buffered: usize,
    /// Where frontends reach it; none: where it listens.
    pub advertise: Option<String>,
    /// Its part of the texts.
    pub role: Role,
    /// How long the KV blocks of a prompt may take to come from a prefill worker.
    pub transfer_timeout: Duration,
    /// TLS towards frontends; none serves in the clear.
    pub tls: Option<LinkConfig>,
    /// TLS towards prefill workers; none calls those that speak in the clear.
    pub peers_tls: Option<LinkConfig>,
    /// The fleet it belongs to.
    pub namespace: Namespace,
    /// Where it is registered.
    pub store: Store,
    /// What else carries requests, and events.
    pub planes: PlanesConfig,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What the names of metrics begin with.
    pub metrics_prefix: String,
    /// What requests under way get to finish at shutdown.
    pub shutdown_grace: Duration,
    /// How long threads look for the next request before they sleep.
    pub busy_poll: Duration,
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
            limits: limits(&args.busy),
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

impl WorkerConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &WorkerArgs) -> Result<Self, Invalid> {
        let address = worker_address(args)?;
        let store = Store::from_args(&args.discovery)?;
        if matches!(store, Store::Static(_)) {
            let text = "--discovery: static:// is for frontends, which know their workers";
            return Err(Invalid(text.into()));
        }
        let upstream = UpstreamConfig::from_args(&args.upstream, args.engine.context_length)?;
        let mut models = ModelsConfig::from_args(&args.models, &args.engine, &args.formats)?;
        if let Some(settings) = &args.mock.mock {
            let comma = if settings.is_empty() { "" } else { "," };
            models.builtins.push(Builtin::parse(&format!("mock{comma}{settings}"))?);
        }
        // Many need not be fast.
        let is_many = args.mock.mock_workers > 1;
        if is_many && (address.port() > 0 || args.advertise.is_some()) {
            let text = "--mock-workers: several workers need ports of their own; leave \
                        --worker-address at port 0 and --advertise out";
            return Err(Invalid(text.into()));
        }
        let has_others = upstream.is_some() || args.mock.mock.is_some();
        if has_others && args.models.models.is_empty() {
            models.models.clear();
        }
        if args.role != Part::Aggregated && args.engine.no_prefix_cache {
            let text =
                "--role: what is handed over is the prefix cache; leave --no-prefix-cache out";
            return Err(Invalid(text.into()));
        }
        let shown = args.worker_tls_cert.clone().zip(args.worker_tls_key.clone());
        let authorities = args.worker_tls_client_ca.clone();
        let peers = args.worker_tls_ca.clone();
        let planes = PlanesConfig::from_args(&args.planes, shown.is_some() || peers.is_some())?;
        let peers_tls = peers.map(|ca| LinkConfig { shown: shown.clone(), authorities: Some(ca) });
        Ok(Self {
            role: args.role.role(),
            transfer_timeout: Duration::from_millis(args.kv_transfer_timeout_ms.into()),
            peers_tls,
            tls: shown.map(|shown| LinkConfig { shown: Some(shown), authorities }),
            models,
            aliases: aliases(&args.aliases.alias)?,
            instances: args.mock.mock_workers,
            upstream,
            address,
            max_connections: args.worker_max_connections as usize,
            max_buffered: (args.max_buffered_mib as usize) << 20,
            advertise: args.advertise.clone(),
            namespace: namespace(&args.namespace)?,
            store,
            // Who says where to be called is called there.
            planes: match args.advertise.is_some() || is_many {
                true => planes.without_sockets(),
                false => planes,
            },
            metrics: metrics(&args.process)?,
            metrics_prefix: args.process.metrics_prefix.clone(),
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
            busy_poll: Duration::from_micros(if is_many { 0 } else { args.process.busy_poll_us }),
        })
    }
}

/// Returns where a worker listens; checks where frontends reach it, too.
fn worker_address(args: &WorkerArgs) -> Result<SocketAddr, Invalid> {
    let given = &args.worker_address;
    let wrong = || Invalid(format!("--worker-address: expected HOST:PORT, got `{given}`"));
    let address = given.to_socket_addrs().map_err(|_| wrong())?.next().ok_or_else(wrong)?;
    if address.ip().is_unspecified() && args.advertise.is_none() {
        return Err(Invalid(format!(
            "--worker-address: `{given}` is every address of this machine; say by --advertise \
             which one frontends call"
        )));
    }
    let has_port = |text: &String| {
        text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    match args.advertise.as_ref().filter(|text| !has_port(text)) {
        Some(text) => Err(Invalid(format!("--advertise: expected HOST:PORT, got `{text}`"))),
        None => Ok(address),
    }
}

/// Reads other names of models, ALIAS=MODEL each.
fn aliases(given: &[String]) -> Result<Aliases, Invalid> {
    let (mut aliases, mut seen) = (Aliases::new(), BTreeSet::new());
    for text in given {
        let wrong = || Invalid(format!("--alias: expected ALIAS=MODEL, got `{text}`"));
        let (alias, model) = text.split_once('=').ok_or_else(wrong)?;
        if alias.is_empty() || model.is_empty() || alias == model {
            return Err(wrong());
        }
        if !seen.insert(alias) {
            return Err(Invalid(format!("--alias: `{alias}` is given twice")));
        }
        aliases.entry(model.to_owned()).or_default().push(alias.to_owned());
    }
    for (model, aliases) in &aliases {
        let mut card = Card::new(model, Kind::Text, Input::Text);
        card.aliases.clone_from(aliases);
        card.check().map_err(|error| Invalid(format!("--alias: {}", error.message())))?;
    }
    Ok(aliases)
}

fn namespace(text: &str) -> Result<Namespace, Invalid> {
    text.parse()
        .map_err(|error: engine::Error| Invalid(format!("--namespace: {}", error.message())))
}
