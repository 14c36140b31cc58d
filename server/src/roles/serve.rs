//! The roles that serve clients: listeners, models, and their engines here or in workers, wired
//! and ended in order.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::middleware;
use engine::{BusyPoll, Tasks};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::args::{ControlMode, TlsListener};
use crate::fleet::Fleet;
use crate::models::definition::Definition;
use crate::models::loader::{Backends, SharedTexts};
use crate::models::registry::Models;
use crate::models::repository::{ModelsConfig, Repository, RepositoryConfig};
use crate::roles::{Config, Origin, banner, shutdown};
use crate::security::Security;
use crate::serving::shared::Shared;
use crate::support::buffers::Buffers;
use crate::support::metrics::Metrics;
use crate::support::preparing;
use crate::support::shared_memory::Regions;
use crate::support::telemetry::Logging;
use crate::support::trace::Traces;
use crate::surfaces::admin::{self, Exporter, Processor};
use crate::surfaces::grpc::{Door, Grpc, Health, KserveService};
use crate::surfaces::http::{protect, refusing};
use crate::surfaces::listener::{Ends, HEADER_TIMEOUT, Http, Listener, accept};
use crate::surfaces::paths::Paths;
use crate::surfaces::{openai, pages, rest};

/// Open connections of the metrics listener; more wait in the listen queue.
const MAX_METRICS_CONNECTIONS: usize = 64;

/// How long a connection for metrics may be idle before a request, and the request's headers take.
const METRICS_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port could not be opened.
    #[error("cannot listen on {address} ({flag}): {source}")]
    Listen {
        /// The flag that changes the port.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A model could not be loaded.
    #[error("model `{name}`: {why}")]
    Load {
        /// The model.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A part of the server could not be put together.
    #[error("cannot start: {0}")]
    Start(String),
}

/// A server whose listeners are open.
pub struct Server {
    config: Config,
    models: Arc<Models>,
    repository: Arc<Repository>,
    shared: Arc<Shared>,
    health: Health,
    /// What accepts connections and works on requests, and what tells of it; they end in this
    /// order.
    tasks: (Ends, Tasks),
    grpc_address: SocketAddr,
    http_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
}

impl Server {
    /// Opens the listeners: live at once, ready after [`load`](Self::load).
    pub async fn open(config: Config, logging: Logging) -> Result<Self, ServeError> {
        let started = Instant::now();
        preparing::configure(config.security.max_preparing);
        let security = Security::load(&config.security).map_err(ServeError::Start)?;
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::named(&mut registry, &config.metrics_prefix));
        let (ends, admin) = (Ends::default(), Tasks::new());
        let (accepting, work) = (ends.accepting.clone(), ends.work.clone());
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let health = Health::new(reporter).await;
        let (models, repository) = origin(&config.origin, &metrics, (&accepting, &admin)).await?;
        let served = (models.clone(), repository.clone());
        let shared = share(&config, logging, served, (&metrics, &ends))?;
        // Before the HTTP door, whose page tells the port.
        let listener = bind("--grpc-port", config.grpc.address).await?;
        let grpc_address = address("--grpc-port", &listener, config.grpc.address)?;
        let exporter = Arc::new(Exporter {
            registry,
            metrics: metrics.clone(),
            models: models.clone(),
            buffers: Some(shared.buffers.clone()),
            started,
            tasks: vec![accepting.clone(), work.clone(), admin.clone()],
            worker: None,
            processor: Processor::default(),
        });
        let door = (&security, grpc_address.port(), &exporter);
        let http_address = open_http(&config, &shared, door, ends.clone()).await?;
        let others = with_reflection(Routes::new(health_service))?;
        let door = Door::new(
            KserveService::new(shared.clone(), config.grpc.forwarding.clone()),
            others,
            &config.grpc,
            security.keys.clone(),
            accepting.clone(),
        );
        let listener = Listener {
            socket: listener,
            tls: security.acceptor(TlsListener::Grpc),
            name: "grpc",
            waited: metrics.waited("grpc"),
            max_connections: config.grpc.max_connections,
            has_nodelay: config.grpc.has_nodelay,
        };
        let grpc = Grpc { door, config: config.grpc.clone(), metrics: metrics.clone() };
        accepting.spawn("grpc listener", accept(listener, grpc, ends.clone()));

        let metrics_address = match config.metrics {
            Some(wanted) => Some(open_metrics(wanted, exporter, &security, &admin).await?),
            None => None,
        };
        security.follow(&config.security, &accepting);
        let (followed, follower) = (models.clone(), health.clone());
        accepting.spawn("health", async move { follower.follow(&followed).await });
        Ok(Self {
            config,
            models,
            repository,
            shared,
            health,
            tasks: (ends, admin),
            grpc_address,
            http_address,
            metrics_address,
        })
    }

    /// Loads the models one after the other; each can be called as soon as it is loaded. Those of
    /// workers are waited for a moment: they may come at any time.
    pub async fn load(&self) -> Result<(), ServeError> {
        match &self.config.origin {
            Origin::Own(config) => {
                load_initial(&self.repository, config, &self.tasks.0.accepting).await.map(drop)
            }
            Origin::Fleet(config) => {
                let mut changes = self.models.changes();
                let settled = async {
                    while !self.models.are_settled() && changes.changed().await.is_ok() {}
                };
                let _ = tokio::time::timeout(config.startup_wait, settled).await;
                Ok(())
            }
        }
    }

    /// Returns where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc_address
    }

    /// Returns where REST is served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Returns where metrics are served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Prints how to call the server, and logs that it is ready.
    fn announce(&self) {
        let mut out = std::io::stdout();
        let _ = out.write_all(
            banner::text(self.grpc_address, self.http_address, &self.models, &self.config.security)
                .as_bytes(),
        );
        let _ = out.flush();
        tracing::info!(
            grpc = %self.grpc_address,
            http = self.http_address.map(tracing::field::display),
            metrics = self.metrics_address.map(tracing::field::display),
            "ready"
        );
    }

    /// Ends the server: not ready, drain, cancel. Returns whether all requests finished in time.
    pub async fn shut_down(self) -> bool {
        self.health.close(&self.models).await;
        let (ends, admin) = &self.tasks;
        let (grace, admitting) = (self.config.shutdown_grace, &self.shared.admitting);
        let is_finished = shutdown::drain(ends, admitting, grace).await;
        admin.cancel();
        let traces = self.shared.traces.clone();
        let repository = self.repository.clone();
        let last = move || {
            traces.flush();
            repository.remove_sent();
        };
        let _ = tokio::task::spawn_blocking(last).await;
        is_finished
    }
}

/// Serves until a signal comes.
pub async fn run(config: Config, logging: Logging) -> Result<(), ServeError> {
    let server = Server::open(config, logging).await?;
    tracing::info!(
        grpc = %server.grpc_address,
        http = server.http_address.map(tracing::field::display),
        "ports are open"
    );
    // One future from the start to the end, so that no signal falls between two of them.
    let mut signalled = pin!(shutdown::signalled());
    let is_loaded = tokio::select! {
        loaded = server.load() => loaded.map(|()| true)?,
        () = signalled.as_mut() => false,
    };
    if is_loaded {
        server.announce();
        signalled.await;
    }
    tracing::info!("shutting down: requests under way may finish");
    match server.shut_down().await {
        true => tracing::info!("shut down"),
        false => tracing::warn!("shut down; requests that took too long were cancelled"),
    }
    Ok(())
}

/// Makes what the doors share.
fn share(
    config: &Config,
    logging: Logging,
    (models, repository): (Arc<Models>, Arc<Repository>),
    (metrics, ends): (&Arc<Metrics>, &Ends),
) -> Result<Arc<Shared>, ServeError> {
    Ok(Arc::new(Shared {
        models,
        repository,
        traces: Arc::new(Traces::new(&config.trace).map_err(ServeError::Start)?),
        logging,
        regions: Arc::new(Regions::new(config.shared_memory.clone())),
        metrics: metrics.clone(),
        buffers: Buffers::new(config.security.max_buffered, metrics.buffer_refusals.clone()),
        accepting: ends.accepting.clone(),
        admitting: Tasks::new(),
        answering: ends.answering.clone(),
        busy_poll: BusyPoll::new(config.busy_poll, &ends.accepting),
        max_stream_requests: config.grpc.max_stream_requests,
        server_name: config.grpc.server_name.clone(),
    }))
}

/// Makes the place of the models, and what puts them there.
async fn origin(
    origin: &Origin,
    metrics: &Arc<Metrics>,
    (accepting, admin): (&Tasks, &Tasks),
) -> Result<(Arc<Models>, Arc<Repository>), ServeError> {
    match origin {
        Origin::Own(config) => {
            let models = Arc::new(Models::default());
            let about = (&models, metrics);
            let repository =
                own_repository(config, about, SharedTexts::default(), accepting.clone())?;
            Ok((models, repository))
        }
        Origin::Fleet(config) => {
            let models = Arc::new(Models::of_fleet());
            // Its tasks end last, since requests under way need their workers.
            let fleet = Fleet::open(config, &models, metrics, admin).await;
            let fleet = fleet.map_err(ServeError::Start)?;
            admin.spawn("fleet", fleet.follow());
            let none = RepositoryConfig {
                roots: Vec::new(),
                mode: ControlMode::None,
                load_models: Vec::new(),
                poll_interval: Duration::MAX,
            };
            let tasks = accepting.clone();
            let repository = Repository::new(none, Vec::new(), models.clone(), None, tasks);
            Ok((models, Arc::new(repository.map_err(ServeError::Start)?)))
        }
    }
}

/// Makes the repository of the models that a configuration names, and announces those that are
/// loaded at the start; `texts` are what models share.
pub(crate) fn own_repository(
    config: &ModelsConfig,
    (models, metrics): (&Arc<Models>, &Arc<Metrics>),
    texts: SharedTexts,
    tasks: Tasks,
) -> Result<Arc<Repository>, ServeError> {
    let given = config.builtins.iter().map(Definition::of_builtin);
    let given = given.chain(config.models.iter().map(Definition::of_source));
    let given = given.chain(config.builtins.iter().flat_map(Definition::of_mock_adapters));
    let given = given.chain(config.adapters.iter().map(Definition::of_adapter)).collect();
    let backends = Backends {
        engine: config.engine.clone(),
        model_dir: config.model_dir.clone(),
        hub_url: config.hub_url.clone(),
        metrics: metrics.clone(),
        texts,
        models: models.clone(),
        pool: Mutex::default(),
        limits: config.limits,
    };
    let settings = config.repository.clone();
    let repository = Repository::new(settings, given, models.clone(), Some(backends), tasks)
        .map_err(ServeError::Start)?;
    let initial = repository.initial().map_err(ServeError::Start)?;
    initial.iter().for_each(|name| models.announce(name, &[1]));
    Ok(Arc::new(repository))
}

/// Loads the models of the start, and follows the repositories if that is wanted. One that cannot
/// be loaded is unavailable with its reason. Returns the last failure.
///
/// Errors: in a strict server, the first model that cannot be loaded.
pub(crate) async fn load_initial(
    repository: &Arc<Repository>,
    config: &ModelsConfig,
    tasks: &Tasks,
) -> Result<Option<ServeError>, ServeError> {
    let seen = repository.fingerprints().await.unwrap_or_default();
    let mut failure = None;
    for name in repository.initial().map_err(ServeError::Start)? {
        let Err(why) = repository.load_initial(&name).await else { continue };
        let failed = ServeError::Load { name, why };
        if config.is_strict {
            return Err(failed);
        }
        tracing::error!("{failed}; the others are served without it");
        failure = Some(failed);
    }
    if config.repository.mode == ControlMode::Poll {
        tasks.spawn("repository", repository.clone().poll(seen));
    }
    Ok(failure)
}

/// Opens the HTTP door, if there is to be one; returns where.
async fn open_http(
    config: &Config,
    shared: &Arc<Shared>,
    (security, grpc_port, exporter): (&Security, u16, &Arc<Exporter>),
    ends: Ends,
) -> Result<Option<SocketAddr>, ServeError> {
    let Some(http) = &config.http else {
        return Ok(None);
    };
    let listener = bind("--http-port", http.address).await?;
    let found = address("--http-port", &listener, http.address)?;
    let open = openai::router(shared.clone(), &config.openai, http.max_input);
    let paths = &config.openai.paths;
    let metrics = admin::router(paths.get("metrics"), exporter.clone());
    let router = rest::router(shared.clone(), http).merge(open).merge(metrics);
    let router = protect(router, security.keys.as_ref(), paths, &config.security.cors_origins);
    let router = router.layer(middleware::from_fn(openai::name_request));
    // A browser opens a page without a key; the key is asked for what the page does.
    let router = router.merge(pages::router(grpc_port, paths));
    let listener = Listener {
        socket: listener,
        tls: security.acceptor(TlsListener::Http),
        name: "http",
        waited: shared.metrics.waited("http"),
        max_connections: http.max_connections,
        has_nodelay: true,
    };
    // It is over before requests are refused.
    let farewell = shutdown::farewell(config.shutdown_grace) / 2;
    let (header_timeout, refuse) = (HEADER_TIMEOUT, refusing(paths));
    let buffers = Some(shared.buffers.clone());
    let http = Http { router, header_timeout, farewell, refuse, buffers };
    ends.accepting.clone().spawn("http listener", accept(listener, http, ends));
    Ok(Some(found))
}

/// Opens the metrics listener; returns where.
pub(crate) async fn open_metrics(
    wanted: SocketAddr,
    exporter: Arc<Exporter>,
    security: &Security,
    admin: &Tasks,
) -> Result<SocketAddr, ServeError> {
    let socket = bind("--metrics-port", wanted).await?;
    let found = address("--metrics-port", &socket, wanted)?;
    let waited = exporter.metrics.waited("metrics");
    let router = admin::router("/metrics", exporter.clone()).merge(admin::probes(exporter));
    let router = protect(router, security.keys.as_ref(), &Paths::default(), &[]);
    let listener = Listener {
        socket,
        tls: security.acceptor(TlsListener::Metrics),
        name: "metrics",
        waited,
        max_connections: MAX_METRICS_CONNECTIONS,
        has_nodelay: true,
    };
    let http = Http {
        router,
        header_timeout: METRICS_HEADER_TIMEOUT,
        farewell: Duration::ZERO,
        refuse: refusing(&Paths::default()),
        buffers: None,
    };
    let [accepting, answering, work] = [admin.clone(), admin.clone(), admin.clone()];
    admin.spawn("metrics listener", accept(listener, http, Ends { accepting, answering, work }));
    Ok(found)
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { flag, address, source })
}

fn address(
    flag: &'static str,
    listener: &TcpListener,
    wanted: SocketAddr,
) -> Result<SocketAddr, ServeError> {
    let found = listener.local_addr();
    found.map_err(|source| ServeError::Listen { flag, address: wanted, source })
}

/// Adds reflection v1 and v1alpha, by which grpcurl works without a proto file.
fn with_reflection(routes: Routes) -> Result<Routes, ServeError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| ServeError::Start(error.to_string());
    let v1 = builder().build_v1().map_err(failed)?;
    let v1alpha = builder().build_v1alpha().map_err(failed)?;
    Ok(routes.add_service(v1).add_service(v1alpha))
}
