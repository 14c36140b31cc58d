//! The live set as a state machine: events in, changes out. No IO, no clock, no chance, so that
//! a simulation can drive it through any weather and replay what it found.
//!
//! Who is registered is what discovery says. Who may be called is that, less those whose
//! connection died (suspects), which come back when discovery tells of them anew or a probe
//! reaches them. Who has a name is decided by the cards: the oldest instance that claims a free
//! name gets it for its card, and the card keeps it as long as anyone with that card is
//! registered. Two things free a name before: all workers of its card drain while others want
//! it, and, for an alias, its card does not have its own name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Config, Conflict, Member, Model, Snapshot};
use crate::card::{Card, Checksum};
use crate::discovery::Event;
use crate::instance::{Instance, InstanceId};

/// What an event led to, for logs, metrics and whoever holds connections.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An instance registered.
    Joined(Arc<Instance>),
    /// An instance registered anew, with other adapters or a draining flag.
    Updated(Arc<Instance>),
    /// An instance is gone.
    Left(InstanceId),
    /// An instance is not called until it is heard of again.
    Suspected(InstanceId),
    /// An instance that was suspected is called again.
    Cleared(InstanceId),
    /// A name got its first card.
    ModelAdded(String),
    /// The last card of a name is gone.
    ModelRemoved(String),
    /// A card is not served.
    Conflict(Conflict),
    /// A card that was not served is, or is gone.
    ConflictEnded(Conflict),
    /// What was registered at the start is known.
    Synced,
    /// The store is lost; the view stays.
    Stale,
    /// The store is there again.
    Fresh,
}

/// The state machine. Times are since any fixed moment and never go back.
#[derive(Debug)]
pub struct Core {
    config: Config,
    instances: BTreeMap<InstanceId, Registered>,
    /// Who claims each name, the oldest first; aliases are claims too.
    claims: BTreeMap<String, BTreeSet<Claim>>,
    /// Which card has each name.
    holders: BTreeMap<String, Identity>,
    conflicts: BTreeMap<(String, InstanceId), Conflict>,
    suspects: BTreeMap<InstanceId, Suspicion>,
    is_synced: bool,
    is_stale: bool,
    revision: u64,
}

#[derive(Debug)]
struct Registered {
    instance: Arc<Instance>,
    cards: Vec<(Arc<Card>, Checksum)>,
}

/// Claims are ordered by the age of their instance; who does not tell it is the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    started_unix_ms: u64,
    id: InstanceId,
    card: usize,
}

/// A card as far as it has to be equal between workers.
type Identity = Checksum;

/// A worker that is not called, and when it is probed next.
#[derive(Debug)]
struct Suspicion {
    /// When its connection died the last time.
    since: Duration,
    due: Duration,
    wait: Duration,
}

impl Core {
    /// Makes an empty one.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            instances: BTreeMap::new(),
            claims: BTreeMap::new(),
            holders: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            suspects: BTreeMap::new(),
            is_synced: false,
            is_stale: false,
            revision: 0,
        }
    }

    /// Takes an event of discovery.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        let mut changes = Vec::new();
        match event {
            Event::Put(instance) => self.put(instance, &mut changes),
            Event::Remove(id) => self.remove(id, &mut changes),
            Event::Synced if !self.is_synced => {
                self.is_synced = true;
                changes.push(Change::Synced);
                let names = self.claims.keys().cloned().collect();
                self.resolve(names, &mut changes);
            }
            Event::Stale if !self.is_stale => {
                self.is_stale = true;
                changes.push(Change::Stale);
            }
            Event::Fresh if self.is_stale => {
                self.is_stale = false;
                changes.push(Change::Fresh);
            }
            Event::Synced | Event::Stale | Event::Fresh => {}
        }
        changes
    }

    /// Takes the request plane's word that the connection to an instance died.
    pub fn suspect(&mut self, id: InstanceId, now: Duration) -> Vec<Change> {
        if !self.instances.contains_key(&id) {
            return Vec::new();
        }
        if let Some(suspicion) = self.suspects.get_mut(&id) {
            suspicion.since = now;
            return Vec::new();
        }
        let wait = self.config.probe.first;
        self.suspects.insert(id, Suspicion { since: now, due: now + wait, wait });
        vec![Change::Suspected(id)]
    }

    /// Takes the outcome of a probe that began at a moment. What it saw says nothing of a connection
    /// that died later.
    pub fn probed(
        &mut self,
        id: InstanceId,
        is_well: bool,
        (began, now): (Duration, Duration),
    ) -> Vec<Change> {
        let Some(suspicion) = self.suspects.get_mut(&id) else { return Vec::new() };
        if is_well && began >= suspicion.since {
            self.suspects.remove(&id);
            return vec![Change::Cleared(id)];
        }
        suspicion.wait = match is_well {
            true => self.config.probe.first,
            false => suspicion.wait.saturating_mul(2).min(self.config.probe.longest),
        };
        suspicion.due = now + suspicion.wait;
        Vec::new()
    }

    /// Returns at most `most` suspects that are to be probed now. Each is returned once, until
    /// [`Core::probed`] tells how it went or its longest wait has passed.
    pub fn take_due(&mut self, now: Duration, most: usize) -> Vec<Arc<Instance>> {
        let mut due = Vec::new();
        for (id, suspicion) in &mut self.suspects {
            if suspicion.due <= now && due.len() < most {
                // A probe whose outcome is lost does not leave its suspect forgotten.
                suspicion.due = now + self.config.probe.longest + self.config.probe_timeout;
                due.extend(self.instances.get(id).map(|known| known.instance.clone()));
            }
        }
        due
    }

    /// Returns when the next suspect is to be probed.
    pub fn next_due(&self) -> Option<Duration> {
        self.suspects.values().map(|suspicion| suspicion.due).min()
    }

    /// Returns what may be served now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.revision += 1;
        let mut models: BTreeMap<String, Model> = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        for (name, holder) in &self.holders {
            for claim in self.claims.get(name).into_iter().flatten() {
                let Some((known, (card, checksum))) = self.card(*claim) else { continue };
                if checksum != holder {
                    continue;
                }
                if card.name != *name {
                    aliases.insert(name.clone(), card.name.clone());
                    break;
                }
                let model = models.entry(name.clone()).or_insert_with(|| Model {
                    card: card.clone(),
                    checksum: *checksum,
                    members: Vec::new(),
                });
                if !self.suspects.contains_key(&claim.id) {
                    let (instance, card) = (known.instance.clone(), card.clone());
                    model.members.push(Member { instance, card });
                }
            }
        }
        models
            .values_mut()
            .for_each(|model| model.members.sort_by_key(|member| member.instance.id));
        Snapshot {
            revision: self.revision,
            is_synced: self.is_synced,
            is_stale: self.is_stale,
            models,
            aliases,
            conflicts: self.conflicts.values().cloned().collect(),
        }
    }

    fn card(&self, claim: Claim) -> Option<(&Registered, &(Arc<Card>, Checksum))> {
        let known = self.instances.get(&claim.id)?;
        Some((known, known.cards.get(claim.card)?))
    }

    fn put(&mut self, instance: Arc<Instance>, changes: &mut Vec<Change>) {
        let id = instance.id;
        let mut names = self.unclaim(id);
        if self.suspects.remove(&id).is_some() {
            changes.push(Change::Cleared(id));
        }
        let cards = instance.cards.iter().map(|card| (Arc::new(card.clone()), card.checksum()));
        let cards: Vec<_> = cards.collect();
        for (index, (card, _)) in cards.iter().enumerate() {
            let started_unix_ms = match instance.started_unix_ms {
                0 => u64::MAX,
                known => known,
            };
            let claim = Claim { started_unix_ms, id, card: index };
            for name in card.aliases.iter().chain([&card.name]) {
                names.insert(name.clone());
                self.claims.entry(name.clone()).or_default().insert(claim);
            }
        }
        let registered = Registered { instance: instance.clone(), cards };
        changes.push(match self.instances.insert(id, registered) {
            None => Change::Joined(instance),
            Some(_) => Change::Updated(instance),
        });
        self.resolve(names, changes);
    }

    fn remove(&mut self, id: InstanceId, changes: &mut Vec<Change>) {
        let names = self.unclaim(id);
        self.suspects.remove(&id);
        if self.instances.remove(&id).is_some() {
            changes.push(Change::Left(id));
        }
        self.resolve(names, changes);
    }

    /// Takes an instance's claims back; returns the names.
    fn unclaim(&mut self, id: InstanceId) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let Some(known) = self.instances.get(&id) else { return names };
        for (card, _) in &known.cards {
            names.extend(card.aliases.iter().chain([&card.name]).cloned());
        }
        for name in &names {
            if let Some(claims) = self.claims.get_mut(name) {
                claims.retain(|claim| claim.id != id);
                if claims.is_empty() {
                    self.claims.remove(name);
                }
            }
        }
        names
    }

    /// Decides anew who has each of some names, and of those that follow from them.
    fn resolve(&mut self, mut names: BTreeSet<String>, changes: &mut Vec<Change>) {
        if !self.is_synced {
            return;
        }
        // It ends: who has a card's own name depends on no other name, and aliases depend on that.
        while let Some(name) = self.next_to_decide(&names) {
            names.remove(&name);
            self.decide(&name, &mut names, changes);
        }
    }

    /// Returns a name of which no card that claims it as an alias has its own name undecided.
    fn next_to_decide(&self, names: &BTreeSet<String>) -> Option<String> {
        let is_ripe = |name: &&String| {
            self.cards_of(name)
                .all(|(_, _, (card, _))| card.name == **name || !names.contains(&card.name))
        };
        names.iter().find(is_ripe).or(names.first()).cloned()
    }

    fn decide(&mut self, name: &str, names: &mut BTreeSet<String>, changes: &mut Vec<Change>) {
        let before = self.holders.get(name).copied();
        let holder = self.holder_of(name, before);
        match (before, holder) {
            (None, Some(_)) => changes.push(Change::ModelAdded(name.to_owned())),
            (Some(_), None) => changes.push(Change::ModelRemoved(name.to_owned())),
            _ => {}
        }
        if before != holder {
            let own = self.cards_of(name).filter(|(_, _, (card, _))| card.name == name);
            names.extend(own.flat_map(|(_, _, (card, _))| card.aliases.iter().cloned()));
        }
        let conflicts = self.conflicts_of(name, holder);
        match holder {
            Some(holder) => self.holders.insert(name.to_owned(), holder),
            None => self.holders.remove(name),
        };
        self.report(name, conflicts, changes);
    }

    /// Returns the card that is to have a name: the one that has it, as long as one of its
    /// workers takes new work; then the oldest of those that do; then any.
    fn holder_of(&self, name: &str, before: Option<Identity>) -> Option<Identity> {
        let may_have = |card: &Card, checksum: &Checksum| {
            card.name == name || self.holders.get(&card.name) == Some(checksum)
        };
        let able = self.cards_of(name).filter(|(_, _, (card, checksum))| may_have(card, checksum));
        let able: Vec<(Identity, bool)> =
            able.map(|(_, known, (_, checksum))| (*checksum, known.instance.is_draining)).collect();
        let with = |wanted: fn(bool) -> bool| {
            let mut list = able.iter().filter(|(_, is_draining)| wanted(*is_draining));
            let kept = list.clone().find(|(identity, _)| Some(*identity) == before);
            kept.or_else(|| list.next()).map(|(identity, _)| *identity)
        };
        with(|is_draining| !is_draining).or_else(|| with(|_| true))
    }

    /// Returns the cards that claim a name, those of the oldest instance first.
    fn cards_of(
        &self,
        name: &str,
    ) -> impl Iterator<Item = (InstanceId, &Registered, &(Arc<Card>, Checksum))> {
        let claims = self.claims.get(name).into_iter().flatten();
        claims.filter_map(|claim| self.card(*claim).map(|(known, card)| (claim.id, known, card)))
    }

    fn conflicts_of(&self, name: &str, holder: Option<Identity>) -> BTreeMap<InstanceId, Conflict> {
        let is_holder = |checksum: &Checksum| Some(*checksum) == holder;
        let first = self.cards_of(name).find(|(_, _, (_, checksum))| is_holder(checksum));
        let Some((holder_id, _, (held, _))) = first else { return BTreeMap::new() };
        let losers = self.cards_of(name).filter(|(_, _, (_, checksum))| !is_holder(checksum));
        let conflict = |(id, known, (card, _)): (_, &Registered, &(Arc<Card>, _))| {
            let conflict = Conflict {
                name: name.to_owned(),
                instance: id,
                namespace: known.instance.namespace.clone(),
                holder: holder_id,
                fields: card.differences(held),
            };
            (id, conflict)
        };
        losers.map(conflict).collect()
    }

    /// Replaces the conflicts of a name and reports what is new and what is over.
    fn report(
        &mut self,
        name: &str,
        mut now: BTreeMap<InstanceId, Conflict>,
        changes: &mut Vec<Change>,
    ) {
        let least = (name.to_owned(), InstanceId(0));
        let most = (name.to_owned(), InstanceId(u64::MAX));
        let before: Vec<_> =
            self.conflicts.range(least..=most).map(|(key, _)| key.clone()).collect();
        for key in before {
            match now.remove(&key.1) {
                // Only another difference is news; who is the oldest of the winners is not.
                Some(conflict) => {
                    let old = self.conflicts.insert(key, conflict.clone());
                    if old.is_some_and(|old| old.fields != conflict.fields) {
                        changes.push(Change::Conflict(conflict));
                    }
                }
                None => {
                    changes.extend(self.conflicts.remove(&key).map(Change::ConflictEnded));
                }
            }
        }
        for (id, conflict) in now {
            self.conflicts.insert((name.to_owned(), id), conflict.clone());
            changes.push(Change::Conflict(conflict));
        }
    }
}

#[cfg(test)]
mod tests;
