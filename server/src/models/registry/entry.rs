//! The versions of one name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Model, State};

/// The versions of one name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) versions: BTreeMap<u64, State>,
    /// The highest version that is callable.
    pub(super) latest: Option<Arc<Model>>,
}

/// What a name had and has no longer; it may be large to drop.
pub(super) type Gone = (BTreeMap<u64, State>, Option<Arc<Model>>);

impl Entry {
    /// Finds the latest version again.
    pub(super) fn settle(&mut self) {
        self.latest = self.versions.values().rev().find_map(|state| match state {
            State::Ready(model) => Some(model.clone()),
            _ => None,
        });
    }

    /// Makes these the versions, as [`Models::serve`](super::Models::serve) says; returns what is
    /// gone, or nothing if all was so.
    pub(super) fn serve(&mut self, versions: BTreeMap<u64, Option<Arc<Model>>>) -> Option<Gone> {
        if self.serves(&versions) {
            return None;
        }
        let mut old = std::mem::take(&mut self.versions);
        let is_awaited = versions.values().all(Option::is_none);
        for (version, model) in versions {
            let state = model.map(State::Ready).or_else(|| old.remove(&version));
            self.versions.insert(version, state.unwrap_or(State::Loading));
        }
        let (callable, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            old.into_iter().partition(|(_, state)| is_awaited && matches!(state, State::Ready(_)));
        self.versions.extend(callable);
        let latest = self.latest.take();
        self.settle();
        Some((gone, latest))
    }

    fn serves(&self, versions: &BTreeMap<u64, Option<Arc<Model>>>) -> bool {
        let is_same = |(version, model): (&u64, &Option<Arc<Model>>)| match (
            self.versions.get(version),
            model,
        ) {
            (Some(State::Ready(now)), Some(model)) => Arc::ptr_eq(now, model),
            (state, None) => state.is_some(),
            _ => false,
        };
        self.versions.len() == versions.len() && versions.iter().all(is_same)
    }
}
