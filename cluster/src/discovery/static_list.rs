//! Discovery without a store: workers at known addresses, which are asked what they are.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result, Tasks};
use futures_util::{StreamExt, stream};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::lease::{self, Kept, Record};
use super::watch::{self, Change, Source};
use super::{Backoff, Discovery, Lease, Query, Watch};
use crate::instance::{Instance, InstanceId};

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
    kept: Kept,
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
        for address in &config.addresses {
            if address.split_once("://").is_none_or(|(_, rest)| rest.is_empty()) {
                return Err(Error::invalid(format!(
                    "static discovery: address: expected `scheme://where`, got {address:?}"
                )));
            }
        }
        let kept = Kept::default();
        Ok(Self { config: Arc::new(config), describe, kept, tasks: tasks.clone() })
    }
}

#[async_trait]
impl Discovery for Static {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        lease::keep(instance, Nowhere, Backoff::default(), &self.kept, &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let (config, describe) = (self.config.clone(), self.describe.clone());
        let (known, doubles) = Default::default();
        let rounds = Rounds { config, describe, known, doubles, has_listed: false };
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
    /// Addresses that lead to an instance with another address, which were reported.
    doubles: BTreeSet<String>,
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
        Ok(Change::Listing(self.listing()))
    }
}

impl Rounds {
    /// Returns everyone once: of two addresses of one instance the first is its address.
    fn listing(&mut self) -> Vec<Arc<Instance>> {
        let mut addresses: BTreeMap<InstanceId, &String> = BTreeMap::new();
        let (mut listing, mut doubles) = (Vec::new(), BTreeSet::new());
        for (address, known) in &self.known {
            let id = known.instance.id;
            match addresses.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(address);
                    listing.push(known.instance.clone());
                }
                Entry::Occupied(first) => {
                    if !self.doubles.contains(address) {
                        let first = first.get();
                        warn!(instance = %id, address, first, "address of the same instance left out");
                    }
                    doubles.insert(address.clone());
                }
            }
        }
        self.doubles = doubles;
        listing
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Event;

    /// One worker behind every address.
    #[derive(Debug)]
    struct One(Instance);

    #[async_trait]
    impl Describe for One {
        async fn describe(&self, _address: &str) -> Result<Instance> {
            Ok(self.0.clone())
        }
    }

    fn list(addresses: &[&str]) -> Result<Static> {
        let addresses = addresses.iter().map(ToString::to_string).collect();
        let interval = Duration::from_millis(10);
        let config = Config { addresses, interval, ..Config::default() };
        let one = One(Instance::new("fleet".parse().unwrap(), "grpc://itself:1"));
        Static::new(config, Arc::new(one), &Tasks::new())
    }

    #[tokio::test]
    async fn a_worker_at_two_addresses_is_one_and_stays_at_the_first() {
        let mut watch =
            list(&["grpc://b:1", "grpc://a:1", "grpc://b:1"]).unwrap().watch(Query::All);
        let Some(Event::Put(instance)) = watch.next().await else { panic!("nobody") };
        assert_eq!(instance.address, "grpc://a:1");
        assert_eq!(watch.next().await, Some(Event::Synced));
        timeout(Duration::from_millis(200), watch.next()).await.unwrap_err();
    }

    #[test]
    fn an_address_has_a_scheme() {
        for address in ["worker:1", "grpc://", ""] {
            let error = list(&["grpc://a:1", address]).unwrap_err();
            assert!(error.message().contains("scheme"), "{address}: {error}");
        }
    }
}
