//! A reader of events who keeps what they add up to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cluster::discovery::{Event, Watch};
use cluster::instance::{Instance, InstanceId};
use tokio::time::timeout;

/// The longest wait for anything; machines may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What one watcher knows.
pub(crate) struct Follower {
    watch: Watch,
    pub(crate) known: BTreeMap<InstanceId, Arc<Instance>>,
    pub(crate) is_synced: bool,
    pub(crate) is_stale: bool,
    pub(crate) log: Vec<Event>,
}

impl Follower {
    pub(crate) fn new(watch: Watch) -> Self {
        let known = BTreeMap::new();
        Self { watch, known, is_synced: false, is_stale: false, log: Vec::new() }
    }

    /// Returns whether exactly this instance is known.
    pub(crate) fn has(&self, instance: &Instance) -> bool {
        self.known.get(&instance.id).is_some_and(|known| **known == *instance)
    }

    pub(crate) fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.log.iter().filter(|event| which(event)).count()
    }

    /// Reads until something holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let event = timeout(PATIENCE, self.watch.next()).await;
            let event = event.unwrap_or_else(|_| panic!("{what}: not after {:?}", self.log));
            self.hear(event.unwrap_or_else(|| panic!("{what}: the watch ended")));
        }
    }

    /// Reads whatever comes in a time.
    pub(crate) async fn for_a_while(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.watch.next()).await {
            self.hear(event);
        }
    }

    fn hear(&mut self, event: Event) {
        match &event {
            Event::Put(instance) => {
                let old = self.known.insert(instance.id, instance.clone());
                assert_ne!(old.as_ref(), Some(instance), "told twice");
            }
            Event::Remove(id) => {
                assert!(!self.is_stale, "removed while the store was away");
                assert!(self.known.remove(id).is_some(), "removed and never told");
            }
            Event::Synced => assert!(!std::mem::replace(&mut self.is_synced, true)),
            Event::Stale => assert!(!std::mem::replace(&mut self.is_stale, true)),
            Event::Fresh => assert!(std::mem::take(&mut self.is_stale)),
        }
        self.log.push(event);
    }
}
