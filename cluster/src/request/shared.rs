//! What all calls at a worker share: its models, and what is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use engine::{Error, ErrorKind, Result, Tasks};
use tokio::sync::{Semaphore, watch};

use super::ServerConfig;
use super::seats::Seats;
use super::served::{Artifacts, Served};
use crate::log_throttle::LogThrottle;

/// Files that are read at the same time; more wait.
const MAX_READS: usize = 8;

/// What a call costs beside its message, roughly.
const CALL_BYTES: usize = 4096;

/// What this part of the memory is kept for: small requests, so that a worker that is full still
/// says that it is well.
const RESERVED_SHARE: usize = 8;

/// A request up to this size is small.
const SMALL_BYTES: usize = 128 << 10;

/// What all calls share.
pub(super) struct Shared {
    pub(super) config: ServerConfig,
    pub(super) artifacts: Option<Arc<dyn Artifacts>>,
    /// Places of connections, at all doors.
    pub(super) seats: Arc<Seats>,
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
    /// Memory that requests hold.
    buffered_bytes: AtomicUsize,
    buffer_refusals: AtomicU64,
    /// Who could not be taken in and why, as far as it was told.
    pub(super) throttle: LogThrottle,
    /// Cancelled when connections are to end.
    pub(super) closing: Tasks,
}

impl Shared {
    pub(super) fn new(config: ServerConfig, artifacts: Option<Arc<dyn Artifacts>>) -> Self {
        Self {
            seats: Seats::new("worker", config.max_connections, config.idle_timeout),
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
            buffered_bytes: AtomicUsize::new(0),
            buffer_refusals: AtomicU64::new(0),
            throttle: LogThrottle::default(),
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

    /// Returns how much memory requests hold.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes.load(Ordering::Relaxed)
    }

    /// Returns how many requests were refused for that.
    pub(super) fn buffer_refusals(&self) -> u64 {
        self.buffer_refusals.load(Ordering::Relaxed)
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

/// Memory that a request holds, as long as this lives.
pub(super) struct Held {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Held {
    /// Holds what a call costs beside its message. Errors: as [`Held::grow`].
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self> {
        let mut held = Self { shared, bytes: 0 };
        held.grow(CALL_BYTES)?;
        Ok(held)
    }

    /// Holds more bytes. Errors: OVERLOADED when that is over the bound.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        let (shared, own) = (&self.shared, self.bytes.saturating_add(bytes));
        let max_bytes = shared.config.max_buffered_bytes;
        let most = match own <= SMALL_BYTES {
            true => max_bytes,
            false => max_bytes - max_bytes / RESERVED_SHARE,
        };
        let grown = |held: usize| held.checked_add(bytes).filter(|&held| held <= most);
        let held = &shared.buffered_bytes;
        if held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok() {
            self.bytes = own;
            return Ok(());
        }
        shared.buffer_refusals.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "the requests under way fill the worker's memory for them, which --max-buffered-mib \
             bounds to {} MiB",
            max_bytes >> 20
        );
        Err(Error::new(ErrorKind::Overloaded, text).with_code("no_buffers"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.buffered_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
