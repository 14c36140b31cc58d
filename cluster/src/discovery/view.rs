//! What a watcher has been told, and what it is to be told next. No IO and no clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::watch::{Change, Difference};
use super::{Event, Query};
use crate::instance::{Instance, InstanceId};

/// A watcher's view of the store. Times are since any fixed moment.
///
/// After an outage nothing is removed for the time of the grace: a store that restarted may have
/// lost registrations of workers that are well and will register again.
#[derive(Debug)]
pub struct View {
    query: Query,
    grace: Duration,
    known: BTreeMap<InstanceId, Arc<Instance>>,
    /// Those that are gone, and when that is believed.
    leaving: BTreeMap<InstanceId, Duration>,
    /// Until when removals wait.
    patient_until: Duration,
    is_synced: bool,
    is_stale: bool,
}

impl View {
    /// Makes an empty view.
    pub(super) fn new(query: Query, grace: Duration) -> Self {
        Self {
            query,
            grace,
            known: BTreeMap::new(),
            leaving: BTreeMap::new(),
            patient_until: Duration::ZERO,
            is_synced: false,
            is_stale: false,
        }
    }

    /// Takes what the store tells and returns what is new.
    pub(super) fn apply(&mut self, change: Change, now: Duration) -> Vec<Event> {
        if self.is_stale && self.is_synced {
            self.patient_until = now + self.grace;
            // Nobody could come back while the store was away, so the grace begins anew.
            self.leaving.values_mut().for_each(|due| *due = now + self.grace);
        }
        let mut events = Vec::new();
        match change {
            Change::Listing(listing) => self.list(listing, now, &mut events),
            Change::Changes(changes) => {
                for change in changes {
                    match change {
                        Difference::Put(instance) => self.put(instance, &mut events),
                        Difference::Remove(id) => self.remove(id, now, &mut events),
                    }
                }
            }
        }
        if !std::mem::replace(&mut self.is_synced, true) {
            events.push(Event::Synced);
        }
        if std::mem::take(&mut self.is_stale) {
            events.push(Event::Fresh);
        }
        events
    }

    /// Notes that the store cannot be reached.
    pub(super) fn lose(&mut self) -> Vec<Event> {
        match std::mem::replace(&mut self.is_stale, true) {
            true => Vec::new(),
            false => vec![Event::Stale],
        }
    }

    /// Returns when [`View::expire`] has something to do; never while the store is lost.
    pub(super) fn due(&self) -> Option<Duration> {
        self.leaving.values().min().copied().filter(|_| !self.is_stale)
    }

    /// Removes those whose grace has passed.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<Event> {
        if self.is_stale {
            return Vec::new();
        }
        let gone: Vec<InstanceId> =
            self.leaving.iter().filter(|(_, due)| **due <= now).map(|(id, _)| *id).collect();
        let mut events = Vec::new();
        for id in gone {
            self.leaving.remove(&id);
            self.known.remove(&id);
            events.push(Event::Remove(id));
        }
        events
    }

    fn list(&mut self, listing: Vec<Arc<Instance>>, now: Duration, events: &mut Vec<Event>) {
        let mut missing: BTreeMap<InstanceId, ()> = self.known.keys().map(|id| (*id, ())).collect();
        // Should two have one number, the later one in the listing is told, and only that one.
        let listing: BTreeMap<_, _> =
            listing.into_iter().map(|instance| (instance.id, instance)).collect();
        for instance in listing.into_values() {
            if self.query.selects(&instance.namespace) {
                missing.remove(&instance.id);
            }
            self.put(instance, events);
        }
        missing.into_keys().for_each(|id| self.remove(id, now, events));
    }

    fn put(&mut self, instance: Arc<Instance>, events: &mut Vec<Event>) {
        if !self.query.selects(&instance.namespace) {
            return;
        }
        self.leaving.remove(&instance.id);
        let known = self.known.get(&instance.id);
        let is_known =
            known.is_some_and(|known| Arc::ptr_eq(known, &instance) || *known == instance);
        if !is_known {
            self.known.insert(instance.id, instance.clone());
            events.push(Event::Put(instance));
        }
    }

    fn remove(&mut self, id: InstanceId, now: Duration, events: &mut Vec<Event>) {
        if !self.known.contains_key(&id) {
            return;
        }
        if now < self.patient_until {
            self.leaving.entry(id).or_insert(self.patient_until);
            return;
        }
        self.leaving.remove(&id);
        self.known.remove(&id);
        events.push(Event::Remove(id));
    }
}

#[cfg(test)]
mod tests;
