//! What all calls at a worker share: its models, and what is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use engine::{Error, ErrorKind, Result, Tasks};
use tokio::sync::{Semaphore, watch};

use super::ServerConfig;
use super::served::{Artifacts, Served};
use crate::complaints::Complaints;

/// Files that are read at the same time; more wait.
const MAX_READS: usize = 8;

/// What all calls share.
pub(super) struct Shared {
    pub(super) config: ServerConfig,
    pub(super) artifacts: Option<Arc<dyn Artifacts>>,
    /// Places of connections, at all doors.
    pub(super) permits: Arc<Semaphore>,
    /// Places of threads that read files.
    pub(super) reads: Arc<Semaphore>,
    /// None: it was served and is so no more.
    models: RwLock<BTreeMap<String, Option<Arc<Served>>>>,
    /// Changes when other models are served.
    changes: watch::Sender<()>,
    is_draining: watch::Sender<bool>,
    /// Calls that use an engine.
    open: AtomicUsize,
    /// Connections that speak HTTP/2.
    connections: AtomicUsize,
    /// Changes when the last call or connection ends.
    idle: watch::Sender<()>,
    /// Changes when a call comes and no other is open.
    busy: watch::Sender<()>,
    /// Bytes of requests that no engine has taken yet, and of those whose KV blocks are pulled.
    reading_bytes: AtomicUsize,
    /// Who could not be taken in and why, as far as it was told.
    pub(super) complaints: Complaints,
    /// Cancelled when connections are to end.
    pub(super) closing: Tasks,
}

impl Shared {
    pub(super) fn new(config: ServerConfig, artifacts: Option<Arc<dyn Artifacts>>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(config.max_connections)),
            config,
            artifacts,
            reads: Arc::new(Semaphore::new(MAX_READS)),
            models: RwLock::default(),
            changes: watch::Sender::new(()),
            is_draining: watch::Sender::new(false),
            open: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            idle: watch::Sender::new(()),
            busy: watch::Sender::new(()),
            reading_bytes: AtomicUsize::new(0),
            complaints: Complaints::default(),
            closing: Tasks::new(),
        }
    }

    /// Serves a model under a name, in place of what had it before.
    pub(super) fn insert(&self, name: String, served: Served) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.insert(name, Some(Arc::new(served)));
        drop(models);
        self.changes.send_replace(());
    }

    /// Serves a model no more.
    pub(super) fn remove(&self, name: &str) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = models.get_mut(name) {
            *served = None;
        }
        drop(models);
        self.changes.send_replace(());
    }

    /// Returns a receiver that changes when other models are served from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns what is served under a name. Errors: NOT_FOUND; UNAVAILABLE if it was served before.
    pub(super) fn served(&self, name: &str) -> Result<Arc<Served>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let text = format!("the worker does not serve a model `{name}`");
        match models.get(name) {
            Some(Some(served)) => Ok(served.clone()),
            Some(None) => {
                let error = Error::new(ErrorKind::Unavailable, format!("{text} any more"));
                Err(error.with_code("model_gone"))
            }
            None => Err(Error::not_found(text).with_code("model_not_found")),
        }
    }

    /// Returns all that is served, by name.
    pub(super) fn all(&self) -> BTreeMap<String, Arc<Served>> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let served =
            |(name, served): (&String, &Option<Arc<Served>>)| Some((name.clone(), served.clone()?));
        models.iter().filter_map(served).collect()
    }

    /// Returns whether nothing new is accepted; now and later.
    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.is_draining.subscribe()
    }

    /// Accepts nothing new, and returns how many calls are open.
    pub(super) fn drain(&self) -> usize {
        self.is_draining.send_replace(true);
        self.open_calls()
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.is_draining.borrow()
    }

    /// Returns how many calls use an engine.
    pub(super) fn open_calls(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Returns what changes when a call comes and no other is open.
    pub(super) fn busy(&self) -> watch::Receiver<()> {
        self.busy.subscribe()
    }

    /// Returns how many connections speak HTTP/2.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until something holds that changes when the last call or connection ends.
    pub(super) async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut idle = self.idle.subscribe();
        while !holds(self) {
            if idle.changed().await.is_err() {
                return;
            }
        }
    }

    /// Counts a connection while the value lives.
    pub(super) fn connect(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, Ordering::SeqCst);
        OpenConnection(self.clone())
    }

    /// Counts a call that is served even while the server drains.
    pub(super) fn enter_late(self: &Arc<Self>) -> OpenCall {
        if self.open.fetch_add(1, Ordering::SeqCst) == 0 {
            self.busy.send_replace(());
        }
        OpenCall(self.clone())
    }

    /// Counts a call that will use an engine. Errors: UNAVAILABLE while the server drains.
    pub(super) fn enter(self: &Arc<Self>) -> Result<OpenCall> {
        let call = self.enter_late();
        // It is looked at after counting, so that whoever drains sees the call or refuses it.
        if self.is_draining() {
            let text = "the worker is draining, it accepts nothing new";
            return Err(Error::new(ErrorKind::Unavailable, text).with_code("draining"));
        }
        Ok(call)
    }
}

/// A call that uses an engine.
pub(super) struct OpenCall(Arc<Shared>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.send_replace(());
        }
    }
}

/// A connection that speaks HTTP/2.
pub(super) struct OpenConnection(Arc<Shared>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.send_replace(());
        }
    }
}

/// What a request takes of the bytes that may wait for engines, as long as this lives.
pub(super) struct Reading {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Reading {
    /// Takes nothing yet.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, bytes: 0 }
    }

    /// Counts bytes that came. Errors: OVERLOADED when there are too many of all requests.
    pub(super) fn add(&mut self, bytes: usize) -> Result<()> {
        let before = self.shared.reading_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        let most = self.shared.config.max_reading_bytes;
        if before.saturating_add(bytes) <= most {
            return Ok(());
        }
        let text = format!("the worker reads requests of {most} bytes, the most at once");
        Err(Error::new(ErrorKind::Overloaded, text))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.shared.reading_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
