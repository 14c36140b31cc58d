//! What a worker is started with.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use cluster::card::{Card, Input, Kind, Role};
use cluster::instance::Namespace;

use crate::args::{Part, WorkerArgs};
use crate::fleet::{Aliases, PlanesConfig, Store, namespace};
use crate::models::repository::ModelsConfig;
use crate::models::source::Builtin;
use crate::roles::metrics_address;
use crate::security::LinkConfig;
use crate::support::invalid::Invalid;
use crate::upstream::UpstreamConfig;

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
            role: role(args.role),
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
            metrics: metrics_address(&args.process)?,
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

fn role(part: Part) -> Role {
    match part {
        Part::Aggregated => Role::Aggregated,
        Part::Prefill => Role::Prefill,
        Part::Decode => Role::Decode,
    }
}
