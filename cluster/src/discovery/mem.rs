//! Discovery within one process: for a server that is its own fleet, and for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result, Tasks};
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::time::sleep;

use super::lease::{self, Kept, Record};
use super::watch::{self, Change, Source};
use super::{Backoff, Discovery, Lease, Query, Watch};
use crate::instance::{Instance, InstanceId};

/// How long after [`Mem::set_reachable`] those who did not register again are kept.
const GRACE: Duration = Duration::from_millis(500);

/// A store in memory; clones share it.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use cluster::discovery::{Discovery, Event, Mem, Query};
/// use cluster::instance::Instance;
/// let mem = Mem::new(&engine::Tasks::new());
/// let instance = Instance::new("fleet".parse().unwrap(), "local://worker");
/// let lease = mem.register(instance.clone()).await.unwrap();
/// let mut watch = mem.watch(Query::All);
/// assert_eq!(watch.next().await, Some(Event::Put(instance.into())));
/// assert_eq!(watch.next().await, Some(Event::Synced));
/// lease.revoke().await.unwrap();
/// # });
/// ```
#[derive(Clone, Debug)]
pub struct Mem {
    shared: Arc<Shared>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// Counts changes; readers list the store when it moves.
    changes: Sender<u64>,
    /// Counts when owners have to look whether they are still registered.
    losses: Sender<u64>,
    kept: Kept,
}

#[derive(Debug)]
struct Store {
    instances: BTreeMap<InstanceId, Arc<Instance>>,
    is_reachable: bool,
    /// How much later watchers hear of changes.
    lag: Duration,
}

impl Mem {
    /// Makes an empty store.
    pub fn new(tasks: &Tasks) -> Self {
        let (instances, lag) = Default::default();
        let store = Store { instances, is_reachable: true, lag };
        let (store, changes, losses) = (Mutex::new(store), channel(0).0, channel(0).0);
        let shared = Shared { store, changes, losses, kept: Kept::default() };
        Self { shared: Arc::new(shared), tasks: tasks.clone() }
    }

    /// Makes the store fail, or work again, for tests of what is around it.
    pub fn set_reachable(&self, is_reachable: bool) {
        self.shared.change(|store| store.is_reachable = is_reachable);
        self.shared.losses.send_modify(|count| *count += 1);
    }

    /// Makes watchers hear of changes so much later, as of a store that is slow.
    pub fn set_lag(&self, lag: Duration) {
        self.shared.change(|store| store.lag = lag);
    }

    /// Forgets all registrations, as a store does that lost its disk.
    pub fn forget(&self) {
        self.shared.change(|store| store.instances.clear());
        self.shared.losses.send_modify(|count| *count += 1);
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|count| *count += 1);
        result
    }

    fn lag(&self) -> Duration {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).lag
    }

    fn read<T>(&self, read: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.reach()?;
        read(&store)
    }
}

impl Store {
    fn reach(&self) -> Result<()> {
        match self.is_reachable {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unavailable, "the store in memory is set to fail")),
        }
    }
}

#[async_trait]
impl Discovery for Mem {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        let shared = self.shared.clone();
        let place = Place { shared, id: instance.id, has_put: false };
        lease::keep(instance, place, backoff(), &self.shared.kept, &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let changes = self.shared.changes.subscribe();
        let reader = Reader { shared: self.shared.clone(), changes, has_listed: false };
        watch::start(query, reader, backoff(), GRACE, &self.tasks)
    }
}

fn backoff() -> Backoff {
    Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(50) }
}

/// The place of one instance; gone with the task that keeps it.
struct Place {
    shared: Arc<Shared>,
    id: InstanceId,
    has_put: bool,
}

#[async_trait]
impl Record for Place {
    async fn put(&mut self, instance: &Instance) -> Result<()> {
        let outcome = self.shared.change(|store| {
            store.reach()?;
            store.instances.insert(instance.id, Arc::new(instance.clone()));
            Ok(())
        });
        self.has_put |= outcome.is_ok();
        outcome
    }

    async fn lost(&mut self) -> String {
        let mut losses = self.shared.losses.subscribe();
        loop {
            let has = self.shared.read(|store| Ok(store.instances.contains_key(&self.id)));
            if matches!(has, Ok(false)) {
                return "the store forgot it".into();
            }
            if losses.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn remove(&mut self) -> Result<()> {
        self.shared.change(|store| {
            store.reach()?;
            store.instances.remove(&self.id);
            Ok(())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.has_put {
            self.shared.change(|store| store.instances.remove(&self.id));
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    changes: Receiver<u64>,
    has_listed: bool,
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Result<Change> {
        if self.has_listed {
            let gone = |_| Error::new(ErrorKind::Unavailable, "the store in memory is gone");
            self.changes.changed().await.map_err(gone)?;
        }
        let lag = self.shared.lag();
        if !lag.is_zero() {
            sleep(lag).await;
        }
        self.changes.borrow_and_update();
        let listing = self.shared.read(|store| Ok(store.instances.values().cloned().collect()));
        self.has_listed = listing.is_ok();
        listing.map(Change::Listing)
    }
}
