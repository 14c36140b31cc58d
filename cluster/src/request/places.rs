//! Places of which there is a number: calls in flight, streams of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How many places of a kind are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    /// Takes a place if fewer than `limit` are taken.
    pub(super) fn take(&self, limit: usize) -> Option<Place> {
        let before = self.0.fetch_add(1, Relaxed);
        let place = Place(self.0.clone());
        (before < limit).then_some(place)
    }

    /// Returns how many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
