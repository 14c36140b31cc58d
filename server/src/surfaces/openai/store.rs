//! Responses that are kept, so that they can be asked for again and gone on from.
//!
//! Bound in number and in bytes: what was used longest ago makes room. They live in memory only
//! and end with the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value as Json;

/// What is done with the record of an answer that is over.
pub(super) type Keep = Box<dyn FnOnce(Json) + Send>;

/// The kept responses, by id.
///
/// A record is an object of the `response` and of its `input`, a list of items, which holds the
/// whole conversation before it; it is kept as JSON text, so its size is known.
pub(crate) struct Store {
    most: usize,
    most_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    records: HashMap<String, Record>,
    /// Ids by the turn of their last use.
    by_use: BTreeMap<u64, String>,
    turn: u64,
    bytes: usize,
}

struct Record {
    text: Arc<str>,
    used: u64,
}

impl Store {
    /// Makes a store with its bounds.
    pub(super) fn new(most: usize, most_bytes: usize) -> Self {
        Self { most, most_bytes, kept: Mutex::default() }
    }

    /// Returns what keeps the record of one response, which is its owner's alone.
    pub(super) fn keep(self: &Arc<Self>, owner: String) -> Keep {
        let store = self.clone();
        Box::new(move |record| {
            let id = record["response"]["id"].as_str().unwrap_or_default();
            store.put(place(&owner, id), &record);
        })
    }

    /// Returns a record of an owner's.
    pub(super) fn get(&self, owner: &str, id: &str) -> Option<Json> {
        let text = self.lock().touch(&place(owner, id))?;
        serde_json::from_str(&text).ok()
    }

    /// Forgets a response of an owner's; returns whether it was there.
    pub(super) fn remove(&self, owner: &str, id: &str) -> bool {
        self.lock().remove(&place(owner, id))
    }

    /// Keeps a record, unless it is larger than all of them may be.
    fn put(&self, id: String, record: &Json) {
        let text: Arc<str> = record.to_string().into();
        if self.most == 0 || text.len() > self.most_bytes {
            return;
        }
        let mut kept = self.lock();
        kept.remove(&id);
        kept.turn += 1;
        let used = kept.turn;
        kept.bytes += text.len();
        kept.by_use.insert(used, id.clone());
        kept.records.insert(id, Record { text, used });
        while kept.records.len() > self.most || kept.bytes > self.most_bytes {
            let Some((_, oldest)) = kept.by_use.first_key_value() else { return };
            let oldest = oldest.clone();
            kept.remove(&oldest);
        }
    }

    /// A panic while it is locked leaves nothing half done that a reader could trip over.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the key of a record; the length keeps owner and id apart.
fn place(owner: &str, id: &str) -> String {
    format!("{} {owner} {id}", owner.len())
}

impl Kept {
    fn touch(&mut self, id: &str) -> Option<Arc<str>> {
        let record = self.records.get_mut(id)?;
        self.turn += 1;
        self.by_use.remove(&record.used);
        self.by_use.insert(self.turn, id.to_owned());
        record.used = self.turn;
        Some(record.text.clone())
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(record) = self.records.remove(id) else {
            return false;
        };
        self.by_use.remove(&record.used);
        self.bytes -= record.text.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(id: &str) -> Json {
        json!({"response": {"id": id}, "input": []})
    }

    fn store(most: usize, records: usize) -> Arc<Store> {
        let bytes = record("a").to_string().len() * records;
        Arc::new(Store::new(most, bytes))
    }

    fn ids(store: &Store) -> Vec<String> {
        let kept = store.lock();
        let ids = kept.by_use.values().map(|place| place.replace("2 me ", ""));
        ids.collect()
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        for (most, records) in [(2, 100), (100, 2)] {
            let store = store(most, records);
            store.keep("me".into())(record("a"));
            store.keep("me".into())(record("b"));
            assert_eq!(store.get("me", "a"), Some(record("a")));
            store.keep("me".into())(record("c"));
            assert_eq!(ids(&store), ["a", "c"]);
            assert_eq!(store.get("me", "b"), None);
        }
    }

    #[test]
    fn a_response_is_its_owners_alone() {
        let store = store(9, 9);
        store.keep("me".into())(record("a"));
        assert_eq!(store.get("you", "a"), None);
        assert!(!store.remove("you", "a"));
        assert_eq!(store.get("me", "a"), Some(record("a")));
    }

    #[test]
    fn the_bytes_are_those_that_are_kept() {
        let store = store(9, 9);
        for id in ["a", "b", "a"] {
            store.keep("me".into())(record(id));
        }
        assert_eq!(store.lock().bytes, 2 * record("a").to_string().len());
        assert!(store.remove("me", "a") && !store.remove("me", "a"));
        assert!(store.remove("me", "b"));
        assert_eq!(store.lock().bytes, 0);
        assert!(ids(&store).is_empty());
    }

    #[test]
    fn what_is_too_large_is_not_kept_and_drives_nothing_out() {
        let store = store(9, 1);
        store.keep("me".into())(record("a"));
        store.keep("me".into())(record("longer than all of them may be"));
        assert_eq!(ids(&store), ["a"]);
        let none = Arc::new(Store::new(0, 1000));
        none.keep("me".into())(record("a"));
        assert_eq!(none.get("me", "a"), None);
    }
}
