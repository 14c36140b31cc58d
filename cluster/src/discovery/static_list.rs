//! Discovery without a store: workers at known addresses, which are asked what they are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result, Tasks};
use futures_util::{StreamExt, stream};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::lease::{self, Record};
use super::watch::{self, Change, Source};
use super::{Backoff, Discovery, Lease, Query, Watch};
use crate::instance::Instance;

/// The most addresses.
pub const MAX_ADDRESSES: usize = 1024;
/// Addresses that are asked at the same time.
const CONCURRENCY: usize = 64;

/// How a worker is asked what it is: the request plane's `Describe`.
#[async_trait]
pub trait Describe: Send + Sync + fmt::Debug {
    /// Returns the instance that answers at an address.
    async fn describe(&self, address: &str) -> Result<Instance>;
}

/// Which workers there are, and how often they are asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where workers are, such as `grpc://127.0.0.1:7001`; at most [`MAX_ADDRESSES`].
    pub addresses: Vec<String>,
    /// The time between two rounds of questions; at least 10 ms, default 1 s.
    pub interval: Duration,
    /// How long one answer may take; default 2 s.
    pub timeout: Duration,
    /// After how many questions in a row without an answer a worker is gone; at least 1,
    /// default 2.
    pub patience: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            patience: 2,
        }
    }
}

/// Workers at known addresses.
///
/// Registering does nothing but to give a lease: who knows the address asks.
#[derive(Clone, Debug)]
pub struct Static {
    config: Arc<Config>,
    describe: Arc<dyn Describe>,
    tasks: Tasks,
}

impl Static {
    /// Makes the discovery of a list.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if a setting is out of its bounds.
    pub fn new(config: Config, describe: Arc<dyn Describe>, tasks: &Tasks) -> Result<Self> {
        if config.addresses.len() > MAX_ADDRESSES {
            return Err(Error::invalid(format!(
                "static discovery: expected at most {MAX_ADDRESSES} addresses, got {}",
                config.addresses.len()
            )));
        }
        if config.interval < Duration::from_millis(10) || config.patience == 0 {
            return Err(Error::invalid(
                "static discovery: expected an interval of at least 10 ms and a patience of at \
                 least 1",
            ));
        }
        Ok(Self { config: Arc::new(config), describe, tasks: tasks.clone() })
    }
}

#[async_trait]
impl Discovery for Static {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        lease::keep(instance, Nowhere, Backoff::default(), &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let (config, describe) = (self.config.clone(), self.describe.clone());
        let rounds = Rounds { config, describe, known: BTreeMap::new(), has_listed: false };
        watch::start(query, rounds, Backoff::default(), Duration::ZERO, &self.tasks)
    }
}

/// The place of an instance that no store has.
struct Nowhere;

#[async_trait]
impl Record for Nowhere {
    async fn put(&mut self, _instance: &Instance) -> Result<()> {
        Ok(())
    }

    async fn lost(&mut self) -> String {
        std::future::pending().await
    }

    async fn remove(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Rounds {
    config: Arc<Config>,
    describe: Arc<dyn Describe>,
    known: BTreeMap<String, Known>,
    has_listed: bool,
}

/// Who answered last at an address, and how many questions have had no answer since.
struct Known {
    instance: Arc<Instance>,
    failures: u32,
}

#[async_trait]
impl Source for Rounds {
    async fn next(&mut self) -> Result<Change> {
        if self.has_listed {
            sleep(self.config.interval).await;
        }
        let mut addresses = self.config.addresses.clone();
        addresses.sort();
        addresses.dedup();
        let (describe, limit) = (self.describe.clone(), self.config.timeout);
        let answers = stream::iter(addresses).map(|address| {
            let describe = describe.clone();
            async move {
                let answer = timeout(limit, describe.describe(&address)).await;
                let late = |_| Error::new(ErrorKind::Unavailable, "no answer in time");
                let answer = answer.map_err(late).and_then(|answer| answer);
                (address, answer.and_then(|instance| instance.check().map(|()| instance)))
            }
        });
        let answers: Vec<_> = answers.buffer_unordered(CONCURRENCY).collect().await;
        for (address, answer) in answers {
            self.note(address, answer);
        }
        self.has_listed = true;
        Ok(Change::Listing(self.known.values().map(|known| known.instance.clone()).collect()))
    }
}

impl Rounds {
    fn note(&mut self, address: String, answer: Result<Instance>) {
        let error = match answer {
            Ok(instance) => {
                // The worker knows an address of its own; ours is the one that reached it.
                let instance = Arc::new(Instance { address: address.clone(), ..instance });
                self.known.insert(address, Known { instance, failures: 0 });
                return;
            }
            Err(error) => error,
        };
        debug!(address, %error, "worker does not say what it is");
        if let Some(known) = self.known.get_mut(&address) {
            known.failures += 1;
            if known.failures >= self.config.patience {
                self.known.remove(&address);
            }
        }
    }
}
