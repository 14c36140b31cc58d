//! How workers and frontends find and choose one another.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use cluster::discovery::Query;
use cluster::instance::Namespace;

use super::store::Store;
use crate::args::{FrontendArgs, WorkerArgs};
use crate::config::{Invalid, ModelsConfig, metrics};
use crate::pipeline::{Policy, RetryAccepted, RouteConfig};

/// Who of a model's workers gets a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Routing {
    /// One after the other
    RoundRobin,
    /// The one with the fewest requests
    LeastLoaded,
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
    /// Whose workers are called.
    pub query: Query,
    /// How workers are chosen.
    pub routing: Routing,
    /// The most workers that one request is given to before its first output.
    pub max_attempts: u32,
    /// Which tensor requests may be begun twice.
    pub retry_accepted: Repeated,
    /// How often one text may go on elsewhere.
    pub migration_limit: u32,
}

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// What it computes.
    pub models: ModelsConfig,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where frontends reach it; none: where it listens.
    pub advertise: Option<String>,
    /// The fleet it belongs to.
    pub namespace: Namespace,
    /// Where it is registered.
    pub store: Store,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// What requests under way get to finish at shutdown.
    pub shutdown_grace: Duration,
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
        Ok(Self {
            store: Store::from_args(&args.discovery)?,
            query,
            routing: args.routing,
            max_attempts: args.max_attempts,
            retry_accepted: args.retry_accepted,
            migration_limit: args.migration_limit,
        })
    }

    /// Returns how requests are routed.
    pub(crate) fn route(&self) -> RouteConfig {
        let policy = match self.routing {
            Routing::RoundRobin => Policy::RoundRobin,
            Routing::LeastLoaded => Policy::LeastLoaded,
        };
        let retry_accepted = match self.retry_accepted {
            Repeated::Never => RetryAccepted::Never,
            Repeated::Stateless => RetryAccepted::Stateless,
            Repeated::Always => RetryAccepted::Always,
        };
        RouteConfig { policy, max_attempts: self.max_attempts, retry_accepted }
    }
}

impl WorkerConfig {
    /// Checks the arguments and makes the configuration.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &WorkerArgs) -> Result<Self, Invalid> {
        let given = &args.worker_address;
        let wrong = || Invalid(format!("--worker-address: expected HOST:PORT, got `{given}`"));
        let mut found = given.to_socket_addrs().map_err(|_| wrong())?;
        let address = found.next().ok_or_else(wrong)?;
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
        if let Some(text) = args.advertise.as_ref().filter(|text| !has_port(text)) {
            return Err(Invalid(format!("--advertise: expected HOST:PORT, got `{text}`")));
        }
        let store = Store::from_args(&args.discovery)?;
        if matches!(store, Store::Static(_)) {
            let text = "--discovery: static:// is for frontends, which know their workers";
            return Err(Invalid(text.into()));
        }
        Ok(Self {
            models: ModelsConfig::from_args(&args.models, &args.engine, &args.formats)?,
            address,
            advertise: args.advertise.clone(),
            namespace: namespace(&args.namespace)?,
            store,
            metrics: metrics(&args.process)?,
            shutdown_grace: Duration::from_millis(args.process.shutdown_grace_ms),
        })
    }
}

fn namespace(text: &str) -> Result<Namespace, Invalid> {
    text.parse()
        .map_err(|error: engine::Error| Invalid(format!("--namespace: {}", error.message())))
}
