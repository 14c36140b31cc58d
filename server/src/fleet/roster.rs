//! Who of a model's workers may be asked: each is the same candidate as long as it stays, and
//! another one when it comes back.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use cluster::card::Role;
use cluster::instance::InstanceId;
use tokio::sync::watch;

use crate::pipeline::Candidate;

/// Some of a model's workers.
pub(super) type Candidates = Arc<[Arc<Candidate>]>;

/// The workers of one model that may be asked.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Those that do all of a text or continue it, and those that compute prompts.
    parts: RwLock<[Candidates; 2]>,
    changes: watch::Sender<()>,
}

impl Roster {
    /// Takes these workers and no others from now on; `of` tells whose a place is, and its part of
    /// the work. One that stays keeps what is known of it, and `begin` makes one that comes.
    pub(super) fn set<P>(
        &self,
        places: Vec<P>,
        of: impl Fn(&P) -> (InstanceId, Role),
        begin: impl Fn(P) -> Arc<Candidate>,
    ) {
        let now = self.parts();
        let now = now.iter().flat_map(|part| part.iter());
        let before: BTreeMap<InstanceId, &Arc<Candidate>> =
            now.map(|candidate| (candidate.id, candidate)).collect();
        let take = |place: P| match before.get(&of(&place).0) {
            Some(candidate) => Arc::clone(candidate),
            None => begin(place),
        };
        let is_prefill = |place: &P| of(place).1 == Role::Prefill;
        let (prompts, others): (Vec<P>, Vec<P>) = places.into_iter().partition(is_prefill);
        let parts = [others, prompts].map(|part| part.into_iter().map(take).collect());
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = parts;
        self.touch();
    }

    /// Tells everybody to look again.
    pub(super) fn touch(&self) {
        self.changes.send_replace(());
    }

    /// Returns a receiver that is told when there are others, or to look again.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns those that do all of a text or continue it, and those that compute prompts.
    pub(super) fn parts(&self) -> [Candidates; 2] {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
