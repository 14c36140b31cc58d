//! One watcher of Kubernetes: follows ConfigMaps and Leases and tells whose Lease is renewed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, Result};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Config;
use super::client::Client;
use super::feed::{News, Watcher};
use super::objects::{Kind, Object, map_name};
use crate::discovery::Query;
use crate::discovery::watch::{Change, Source};
use crate::instance::Instance;

/// Reads Kubernetes for one watcher.
pub(super) struct Reader {
    config: Arc<Config>,
    maps: Watcher,
    leases: Watcher,
    /// By the names of their ConfigMaps.
    instances: BTreeMap<String, Registered>,
    /// By their names.
    beats: BTreeMap<String, Beat>,
    is_open: bool,
    /// When the API server is asked next whether it is there: a frozen one would otherwise go
    /// unnoticed, and everybody would seem to be gone.
    probe: Instant,
}

/// A record that can be understood, and the Lease it hangs on.
struct Registered {
    lease: String,
    instance: Arc<Instance>,
}

/// A Lease as it was seen last.
#[derive(Debug)]
struct Beat {
    version: String,
    ttl: Duration,
    /// When it was seen to be renewed.
    seen: Instant,
    is_alive: bool,
}

impl Reader {
    pub(super) fn new(config: Arc<Config>, client: &Client, query: &Query) -> Self {
        let feed = |kind: Kind| {
            Watcher::new(client.clone(), kind.path(&config.namespace), &kind.selector(query))
        };
        let (maps, leases) = (feed(Kind::ConfigMap), feed(Kind::Lease));
        let (instances, beats) = Default::default();
        let probe = Instant::now();
        Self { config, maps, leases, instances, beats, is_open: false, probe }
    }
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Result<Change> {
        let outcome = self.advance().await;
        self.is_open = outcome.is_ok();
        outcome?;
        let is_alive = |one: &&Registered| self.beats.get(&one.lease).is_some_and(Beat::is_alive);
        let listing = self.instances.values().filter(is_alive);
        Ok(Change::Listing(listing.map(|one| one.instance.clone()).collect()))
    }
}

impl Reader {
    /// Reads until there is something new.
    async fn advance(&mut self) -> Result<()> {
        if !self.is_open {
            return self.begin().await;
        }
        loop {
            let due = self.beats.values().filter(|beat| beat.is_alive).map(Beat::end).min();
            let due = due.unwrap_or(self.probe);
            let is_new = tokio::select! {
                news = self.maps.next() => {
                    let news = news?;
                    self.hear_map(news).await?
                }
                news = self.leases.next() => {
                    let news = news?;
                    self.probe = Instant::now() + self.config.ttl / 3;
                    self.hear_lease(news).await?
                }
                () = sleep_until(due.min(self.probe)) => {
                    if due <= Instant::now() {
                        self.verify().await?
                    } else {
                        self.leases.probe().await?;
                        false
                    }
                }
            };
            if self.probe <= Instant::now() {
                self.probe = Instant::now() + self.config.ttl / 3;
            }
            if is_new {
                return Ok(());
            }
        }
    }

    /// Lists everything and watches from then on.
    async fn begin(&mut self) -> Result<()> {
        let maps = self.maps.list().await?;
        let leases = self.leases.list().await?;
        let mut before = std::mem::take(&mut self.instances);
        for object in maps {
            let name = object.metadata.name.clone();
            let known = before.remove(&name);
            self.instances.extend(self.understand(object, known).map(|one| (name, one)));
        }
        let mut before = std::mem::take(&mut self.beats);
        for lease in leases {
            // Who was there before could not be heard meanwhile and gets its time anew.
            let was_alive = before.remove(&lease.metadata.name).is_some_and(|beat| beat.is_alive);
            let beat = self.first_seen(&lease, was_alive);
            self.beats.insert(lease.metadata.name, beat);
        }
        self.maps.open().await?;
        self.leases.open().await?;
        self.probe = Instant::now() + self.config.ttl / 3;
        Ok(())
    }

    /// Takes a Lease that was not followed up to now. One that seems old is believed with its next
    /// renewal, which comes soon if only the clocks differ.
    fn first_seen(&self, lease: &Object, was_alive: bool) -> Beat {
        let ttl = lease.ttl().unwrap_or(self.config.ttl);
        let is_young = lease.age(self.config.now()).is_some_and(|age| age < ttl);
        Beat {
            version: lease.metadata.resource_version.clone(),
            ttl,
            seen: Instant::now(),
            is_alive: was_alive || is_young,
        }
    }

    /// Returns whether news of ConfigMaps change anything.
    async fn hear_map(&mut self, news: News) -> Result<bool> {
        match news {
            News::Put(object) => {
                let name = object.metadata.name.clone();
                let known = self.instances.remove(&name);
                self.instances.extend(self.understand(*object, known).map(|one| (name, one)));
                Ok(true)
            }
            News::Gone(name) => Ok(self.instances.remove(&name).is_some()),
            News::Bookmark => Ok(false),
            News::Ended => self.maps.open().await.map(|()| false),
            News::Forgotten => self.begin().await.map(|()| true),
        }
    }

    /// Returns whether news of Leases change anything.
    async fn hear_lease(&mut self, news: News) -> Result<bool> {
        match news {
            News::Put(lease) => {
                let Some(beat) = self.beats.get_mut(&lease.metadata.name) else {
                    let beat = self.first_seen(&lease, false);
                    let is_alive = beat.is_alive;
                    self.beats.insert(lease.metadata.name, beat);
                    return Ok(is_alive);
                };
                beat.seen = Instant::now();
                beat.version = lease.metadata.resource_version;
                Ok(!std::mem::replace(&mut beat.is_alive, true))
            }
            News::Gone(name) => Ok(self.beats.remove(&name).is_some_and(|beat| beat.is_alive)),
            News::Bookmark => Ok(false),
            News::Ended => self.leases.open().await.map(|()| false),
            News::Forgotten => self.begin().await.map(|()| true),
        }
    }

    /// Asks whether the Leases that seem to have ended were renewed unheard. Then the watch is
    /// deaf, and everything begins anew; otherwise their processes are gone.
    async fn verify(&mut self) -> Result<bool> {
        // Whatever ends while the API server answers was not looked for in its answer.
        let time = Instant::now();
        let listed = self.leases.peek().await?;
        let listed: BTreeMap<&str, &str> = listed
            .iter()
            .map(|lease| (lease.metadata.name.as_str(), lease.metadata.resource_version.as_str()))
            .collect();
        let mut is_deaf = false;
        for (name, beat) in &mut self.beats {
            if beat.is_alive && beat.end() <= time {
                match listed.get(name.as_str()) {
                    Some(version) if *version != beat.version => is_deaf = true,
                    _ => beat.is_alive = false,
                }
            }
        }
        if is_deaf {
            debug!("the watch of kubernetes tells nothing, beginning anew");
            self.begin().await?;
        }
        Ok(true)
    }

    /// Returns the instance of an object; one that cannot be understood is reported and left out.
    fn understand(&self, object: Object, known: Option<Registered>) -> Option<Registered> {
        let instance = Instance::from_json(object.record().as_bytes());
        let instance =
            instance.and_then(|instance| match map_name(instance.id) == object.metadata.name {
                true => Ok(instance),
                false => Err(Error::invalid(format!("instance {}: not its name", instance.id))),
            });
        let lease = object.lease().to_owned();
        match instance {
            Ok(instance) => {
                let same = known.map(|known| known.instance).filter(|known| **known == instance);
                let instance = same.unwrap_or_else(|| Arc::new(instance));
                Some(Registered { lease, instance })
            }
            Err(error) => {
                let (namespace, name) = (&self.config.namespace, &object.metadata.name);
                warn!(namespace, name, %error, "registration left out");
                None
            }
        }
    }
}

impl Beat {
    fn is_alive(&self) -> bool {
        self.is_alive
    }

    fn end(&self) -> Instant {
        self.seen + self.ttl
    }
}
