//! The connections to workers, one set for each that is registered.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cluster::LogThrottle;
use cluster::card::Card;
use cluster::discovery::Describe;
use cluster::instance::{Instance, InstanceId, Namespace};
use cluster::membership::Probe;
use cluster::request::{Described, RemoteWorker};
use engine::{Error, Result, Tasks};

use super::planes::{Planes, Ways};

/// How long a worker may take to say what it serves.
const DESCRIBE_WAIT: Duration = Duration::from_secs(2);

/// The namespace of workers whose addresses are known, since they do not tell theirs.
const STATIC_NAMESPACE: &str = "static";

/// The workers that are known.
pub(crate) struct Peers {
    workers: Mutex<BTreeMap<InstanceId, RemoteWorker>>,
    /// Those at known addresses, which are asked again and again.
    asked: Mutex<BTreeMap<String, RemoteWorker>>,
    planes: Arc<Planes>,
    /// Who cannot be reached and why, as far as it was told.
    throttle: LogThrottle,
    tasks: Tasks,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("workers", &self.workers().len()).finish_non_exhaustive()
    }
}

impl Peers {
    /// Makes the place of connections, whose tasks belong to `tasks`.
    pub(crate) fn new(planes: Arc<Planes>, tasks: &Tasks) -> Arc<Self> {
        let (workers, asked, throttle) = Default::default();
        Arc::new(Self { workers, asked, planes, throttle, tasks: tasks.clone() })
    }

    /// Makes it where workers are only asked what they are, over gRPC in the clear.
    pub(crate) fn to_ask(tasks: &Tasks) -> Arc<Self> {
        Self::new(Arc::default(), tasks)
    }

    fn workers(&self) -> MutexGuard<'_, BTreeMap<InstanceId, RemoteWorker>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the worker of an instance, and whether it is new.
    ///
    /// Errors: an address that cannot be called.
    pub(crate) fn worker(&self, instance: &Instance) -> Result<(RemoteWorker, bool)> {
        if let Some(worker) = self.workers().get(&instance.id) {
            return Ok((worker.clone(), false));
        }
        let worker = self.planes.client(&instance.address, Ways::to(instance), &self.tasks)?;
        self.workers().insert(instance.id, worker.clone());
        Ok((worker, true))
    }

    /// Forgets the workers that are not registered any more. Their connections end with the last
    /// call, or with them.
    pub(crate) fn retain(&self, is_known: impl Fn(InstanceId) -> bool) {
        self.workers().retain(|id, _| is_known(*id));
    }

    /// Notes how it went to reach the worker at an address. A failure is told once for each reason:
    /// who cannot be reached is tried again and again.
    pub(crate) fn note<T>(&self, address: &str, reached: &Result<T>) {
        match reached {
            Ok(_) => self.throttle.forget(address),
            Err(error) => self.complain(address, error),
        }
    }

    fn complain(&self, address: &str, error: &Error) {
        if self.throttle.is_due(address, error.message()) {
            tracing::warn!(address, %error, "a worker cannot be called, it is tried again");
        }
    }

    /// Returns the worker of an instance, if it was called before.
    pub(crate) fn known(&self, id: InstanceId) -> Option<RemoteWorker> {
        self.workers().get(&id).cloned()
    }
}

#[async_trait]
impl Probe for Peers {
    async fn is_well(&self, instance: &Instance) -> bool {
        // One that is not known any more is asked over a connection that ends with the answer.
        let tasks = self.tasks.child();
        let worker = match self.known(instance.id) {
            Some(worker) => Ok(worker),
            None => self.planes.client(&instance.address, Ways::to(instance), &tasks),
        };
        let answer = match worker {
            Ok(worker) => worker.describe(DESCRIBE_WAIT).await,
            Err(error) => Err(error),
        };
        tasks.cancel();
        self.note(&instance.address, &answer);
        answer.is_ok_and(|described| serves(&described, instance))
    }
}

/// Returns whether a worker has what was registered: another one may have its address by now.
fn serves(described: &Described, instance: &Instance) -> bool {
    let cards = cards(described);
    let has = |card: &Card| cards.iter().any(|one| one.checksum() == card.checksum());
    instance.cards.iter().all(has)
}

/// Returns the cards that a worker tells; what cannot be read is left out.
fn cards(described: &Described) -> Vec<Card> {
    let read = |card: &Bytes| serde_json::from_slice::<Card>(card).ok();
    let read = described.models.iter().filter_map(|model| read(&model.card));
    read.filter(|card| card.check().is_ok()).collect()
}

#[async_trait]
impl Describe for Peers {
    async fn describe(&self, address: &str) -> Result<Instance> {
        let described = self.ask(address).await;
        self.note(address, &described);
        let described = described?;
        let namespace: Namespace = STATIC_NAMESPACE.parse()?;
        let mut instance = Instance::new(namespace, address);
        // Workers do not tell their numbers; here an address stands for one worker.
        instance.id = id_of(address);
        instance.cards = cards(&described);
        instance.is_draining = described.is_draining;
        Ok(instance)
    }
}

impl Peers {
    /// Asks the worker at a known address what it serves.
    async fn ask(&self, address: &str) -> Result<Described> {
        let known = self.asked().get(address).cloned();
        let worker = match known {
            Some(worker) => worker,
            None => {
                let worker = self.planes.client(address, Ways::default(), &self.tasks)?;
                self.asked().insert(address.to_owned(), worker.clone());
                worker
            }
        };
        worker.describe(DESCRIBE_WAIT).await
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<String, RemoteWorker>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns a number that stands for an address.
fn id_of(address: &str) -> InstanceId {
    let hash = cluster::card::Sha256::of(address.as_bytes());
    let bytes = hash.as_bytes();
    InstanceId(bytes.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte)))
}
