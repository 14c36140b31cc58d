//! The role that computes: models and their engines, offered to frontends.
//!
//! It registers when its models are loaded, and follows them: what is loaded anew or fails is told.
//! Its end is in order: unregistered first, then no new calls, then the open ones finish.

mod config;
mod many;

use std::future::pending;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::LogThrottle;
use cluster::card::Card;
use cluster::discovery::{Discovery, Lease, LeaseState};
use cluster::events::NatsPublisher;
use cluster::instance::{Instance, MAX_CARDS};
use cluster::request::{ServerConfig, WorkerServer};
use engine::{BusyPoll, Tasks};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::timeout;

use many::many;

use crate::fleet::{
    Files, Formats, Handoffs, LEAVE_WAIT, Offer, PLAIN, Peers, Planes, SECURE, offers, publish,
};
use crate::models::loader::SharedTexts;
use crate::models::registry::Models;
use crate::models::repository::Repository;
use crate::roles::serve::{ServeError, load_initial, open_metrics, own_repository};
use crate::roles::shutdown;
use crate::security::{LinkAcceptor, LinkConnectors, Security};
use crate::support::metrics::Metrics;
use crate::surfaces::admin::{Exporter, Processor};
use crate::upstream::Upstream;

pub use config::WorkerConfig;

/// How often engines are looked at; in a process of many workers up to ten times less often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the store is waited for at the end; what it still has it forgets by itself.
const REVOKE_WAIT: Duration = Duration::from_secs(2);

/// A worker whose port is open.
pub(super) struct Worker {
    config: WorkerConfig,
    models: Arc<Models>,
    metrics: Arc<Metrics>,
    repository: Arc<Repository>,
    server: WorkerServer,
    files: Arc<Files>,
    formats: Formats,
    pub(super) address: SocketAddr,
    pub(super) metrics_address: Option<SocketAddr>,
    planes: Arc<Planes>,
    handoffs: Arc<Handoffs>,
    /// What is told of the models, when the worker is registered.
    publisher: OnceLock<NatsPublisher>,
    /// What was told of versions that are not offered.
    throttle: LogThrottle,
    /// What follows the models, and what serves.
    following: Tasks,
    tasks: Tasks,
}

/// Computes models until a signal comes, or somebody asks for an end by `Drain`.
pub async fn work(config: WorkerConfig) -> Result<(), ServeError> {
    if config.instances > 1 {
        return many(config).await;
    }
    let worker = Worker::open(config, SharedTexts::of_workers(1)).await?;
    let discovery = open_store(&worker.config, &worker.tasks)?;
    let mut signalled = pin!(shutdown::signalled());
    let started = tokio::select! {
        started = worker.start(&*discovery) => Some(started?),
        () = signalled.as_mut() => None,
    };
    let (mut held, mut is_asked) = (None, false);
    if let Some((instance, lease)) = started {
        tracing::info!(
            worker = %worker.address,
            metrics = worker.metrics_address.map(tracing::field::display),
            instance = %instance.id,
            namespace = %instance.namespace,
            address = instance.address,
            "ready"
        );
        tokio::select! {
            () = worker.follow(instance, &lease) => {}
            () = signalled.as_mut() => {}
            () = worker.asked_to_drain() => is_asked = true,
        }
        held = Some(lease);
    }
    tracing::info!("shutting down: calls under way may finish");
    let cut_off = async {
        if is_asked {
            // The first signal is only one more wish for what happens already.
            signalled.await;
        }
        shutdown::signalled().await;
    };
    match worker.shut_down(held, cut_off).await {
        true => tracing::info!("shut down"),
        false => tracing::warn!("shut down; calls that took too long were cut off"),
    }
    Ok(())
}

/// Opens the store that workers are registered in.
///
/// Errors: settings that cannot be used.
pub(super) fn open_store(
    config: &WorkerConfig,
    tasks: &Tasks,
) -> Result<Box<dyn Discovery>, ServeError> {
    config.store.open(Peers::to_ask(tasks), tasks).map_err(unregistered)
}

fn unregistered(error: engine::Error) -> ServeError {
    ServeError::Start(format!("the worker cannot be registered: {}", error.message()))
}

/// Returns the bounds of what frontends may ask of a worker.
fn calls(config: &WorkerConfig, tasks: &Tasks) -> ServerConfig {
    ServerConfig {
        busy_poll: BusyPoll::new(config.busy_poll, tasks),
        max_connections: config.max_connections,
        max_buffered_bytes: config.max_buffered,
        ..ServerConfig::default()
    }
}

impl Worker {
    pub(super) async fn open(config: WorkerConfig, texts: SharedTexts) -> Result<Self, ServeError> {
        let started = Instant::now();
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::named(&mut registry, &config.metrics_prefix));
        let models = Arc::new(Models::default());
        let (following, tasks) = (Tasks::new(), Tasks::new());
        let repository =
            own_repository(&config.models, (&models, &metrics), texts, following.clone())?;
        let flag = "--worker-address";
        let failed = |source| ServeError::Listen { flag, address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let files = Arc::new(Files::default());
        let server = WorkerServer::new(calls(&config, &following), Some(files.clone()));
        let mut metrics_address = None;
        if let Some(wanted) = config.metrics {
            let exporter = Exporter {
                registry,
                metrics: metrics.clone(),
                models: models.clone(),
                buffers: None,
                started,
                tasks: vec![following.clone(), tasks.clone()],
                worker: Some(server.clone()),
                processor: Processor::default(),
            };
            let security = Security { tls: None, keys: None };
            let opened = open_metrics(wanted, Arc::new(exporter), &security, &tasks).await?;
            metrics_address = Some(opened);
        }
        let (serving, group) = (server.clone(), tasks.clone());
        let tls = config.tls.clone().map(LinkAcceptor::load).transpose();
        let tls = tls.map_err(ServeError::Start)?;
        tasks.spawn("worker", async move {
            match tls {
                None => serving.serve(listener, &group).await,
                Some(tls) => serving.serve_by(listener, Arc::new(tls), &group).await,
            }
        });
        let calling = config.peers_tls.clone().map(LinkConnectors::load).transpose();
        let calling = calling.map_err(ServeError::Start)?;
        let planes = Planes::open(&config.planes, calling, &tasks).await;
        let planes = Arc::new(planes.map_err(ServeError::Start)?);
        let settings = (config.role, config.transfer_timeout);
        let handoffs = Handoffs::new(settings, planes.clone(), metrics.clone(), &tasks);
        let formats = Formats {
            role: config.role,
            aliases: config.aliases.clone(),
            tool_calls: config.models.engine.tool_call_parser.clone(),
            reasoning: config.models.engine.reasoning_parser.clone(),
        };
        Ok(Self {
            config,
            models,
            metrics,
            repository,
            server,
            files,
            formats,
            address,
            metrics_address,
            planes,
            handoffs,
            publisher: OnceLock::new(),
            throttle: LogThrottle::default(),
            following,
            tasks,
        })
    }

    /// Loads the models and registers with them.
    pub(super) async fn start(
        &self,
        discovery: &dyn Discovery,
    ) -> Result<(Instance, Lease), ServeError> {
        let failure = load_initial(&self.repository, &self.config.models, &self.following).await?;
        // A worker has no other use, and what started it sees that it ended.
        let is_idle = self.config.upstream.is_none() && self.models.ready().is_empty();
        if let Some(failure) = failure.filter(|_| is_idle) {
            return Err(failure);
        }
        if let Some(config) = &self.config.upstream {
            let upstream = Upstream::new(config, &self.models, &self.metrics);
            let mut upstream = upstream.map_err(ServeError::Start)?;
            upstream.look().await;
            if let Some((config, events)) = config.kv_events.clone().zip(upstream.events()) {
                self.following.spawn("upstream kv events", cluster::vllm::follow(config, events));
            }
            self.following.spawn("upstream", upstream.follow());
        }
        let address = self.config.advertise.clone().unwrap_or_else(|| self.address.to_string());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let scheme = if self.config.tls.is_some() { SECURE } else { PLAIN };
        let mut instance =
            Instance::new(self.config.namespace.clone(), format!("{scheme}{address}"));
        instance.started_unix_ms = since.as_millis() as u64;
        let planes = &self.planes;
        if let Some(publisher) = planes.serve(&mut instance, &self.server, &self.tasks).await {
            let _ = self.publisher.set(publisher);
        }
        self.handoffs.announce(&instance);
        instance.cards = self.serve(&[]);
        let is_offered = |name: &str| instance.cards.iter().any(|card| card.name == name);
        for model in self.config.aliases.keys().filter(|model| !is_offered(model)) {
            tracing::warn!(model, "--alias names a model that is not there");
        }
        let lease = discovery.register(instance.clone()).await.map_err(unregistered)?;
        if lease.state() == LeaseState::Pending {
            tracing::warn!("the store is not there yet: frontends will see the worker when it is");
        }
        Ok((instance, lease))
    }

    /// Serves what can be called now, and nothing else; returns its cards.
    fn serve(&self, before: &[Card]) -> Vec<Card> {
        let (offers, left_out) = offers(&self.models, &self.formats, &self.files);
        if left_out > 0 && self.throttle.is_due("older versions", "limit of cards") {
            tracing::warn!(left_out, limit = MAX_CARDS, "older versions are not offered");
        }
        let is_gone = |card: &&Card| !offers.iter().any(|offer| offer.card.name == card.name);
        if let Some(publisher) = self.publisher.get() {
            publish(publisher, &offers);
        }
        before.iter().filter(is_gone).for_each(|card| self.server.remove(&card.name));
        let serve = |Offer { card, served }: Offer| {
            self.server.insert(card.name.clone(), self.handoffs.around(&card, served));
            card
        };
        offers.into_iter().map(serve).collect()
    }

    /// Keeps the registration as the models are, until the future is dropped.
    pub(super) async fn follow(&self, mut instance: Instance, lease: &Lease) {
        let mut changes = self.models.changes();
        let mut draining = self.server.draining();
        let mut health = Vec::new();
        loop {
            let is_draining = *draining.borrow_and_update();
            let has_changed = changes.has_changed().unwrap_or(true);
            changes.mark_unchanged();
            let now: Vec<bool> = self.models.ready().iter().map(|one| one.is_ready()).collect();
            let cards = match has_changed || now != health {
                true => self.serve(&instance.cards),
                // Making cards costs more than a look, and there may be a thousand workers.
                false => instance.cards.clone(),
            };
            health = now;
            if cards != instance.cards || is_draining != instance.is_draining {
                instance.cards = cards;
                instance.is_draining = is_draining;
                if let Err(error) = lease.update(instance.clone()).await {
                    tracing::warn!(%error, "the registration is not up to date");
                }
            }
            // Changes are told at once; an engine that fails is seen at the next look.
            let news = async {
                tokio::select! {
                    _ = changes.changed() => {}
                    _ = draining.changed() => {}
                }
            };
            let _ = timeout(LOOK_INTERVAL * self.config.instances.clamp(1, 10), news).await;
        }
    }

    /// Waits until somebody asks for an end by `Drain`.
    async fn asked_to_drain(&self) {
        if self.server.draining().wait_for(|is_draining| *is_draining).await.is_err() {
            pending::<()>().await;
        }
    }

    /// Ends in order, or at once when `cut_off` says so; returns whether all calls came to their
    /// end.
    pub(super) async fn shut_down(
        &self,
        lease: Option<Lease>,
        cut_off: impl Future<Output = ()>,
    ) -> bool {
        self.following.cancel();
        let end = async {
            if let Some(lease) = lease {
                match timeout(REVOKE_WAIT, lease.revoke()).await {
                    Ok(Ok(())) => tokio::time::sleep(LEAVE_WAIT).await,
                    Ok(Err(error)) => tracing::warn!(%error, "the registration is still there"),
                    Err(_) => tracing::warn!("the registration is still there: no answer"),
                }
            }
            let is_finished = self.server.shut_down(self.config.shutdown_grace).await;
            self.planes.flush().await;
            is_finished
        };
        let is_finished = tokio::select! {
            is_finished = end => is_finished,
            () = cut_off => false,
        };
        self.tasks.cancel();
        self.planes.close();
        is_finished
    }
}
