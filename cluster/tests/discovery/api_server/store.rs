//! What the API server keeps: objects, the history of their changes, and the weather.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

pub(super) struct Shared {
    store: Mutex<Store>,
    /// Counts changes of the store and of the weather.
    pub(super) changes: watch::Sender<u64>,
}

/// How the server does today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fine,
    /// Nothing is answered.
    Frozen,
    /// Watches break and calls fail.
    Down,
    /// Calls are answered, and watches tell nothing.
    Deaf,
}

pub(super) struct Store {
    pub(super) weather: Weather,
    pub(super) version: u64,
    pub(super) objects: BTreeMap<(String, String), Value>,
    pub(super) history: VecDeque<Happening>,
    /// Watches that begin before this version are told that it is gone.
    pub(super) oldest: u64,
    /// The rest of each listing of which a page was read, with its version, by the token for more.
    pub(super) listings: BTreeMap<String, (u64, VecDeque<Value>)>,
    /// The most objects of a page.
    pub(super) page: usize,
    /// How long a watch lasts.
    pub(super) longest_watch: Duration,
    /// The token that is asked for.
    pub(super) token: Option<String>,
    /// What was called, by method and kind.
    pub(super) calls: BTreeMap<String, usize>,
}

#[derive(Clone)]
/// One change of one object.
pub(super) struct Happening {
    pub(super) version: u64,
    pub(super) what: &'static str,
    pub(super) kind: String,
    pub(super) object: Value,
}

impl Shared {
    pub(super) fn new() -> Self {
        let store = Store {
            weather: Weather::Fine,
            version: 100,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            oldest: 0,
            listings: BTreeMap::new(),
            page: usize::MAX,
            longest_watch: Duration::from_millis(1500),
            token: None,
            calls: BTreeMap::new(),
        };
        Self { store: Mutex::new(store), changes: watch::channel(0).0 }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Waits while nothing is answered.
    pub(super) async fn thaw(&self) {
        let mut changes = self.changes.subscribe();
        while self.store().weather == Weather::Frozen {
            changes.changed().await.unwrap();
        }
    }
}

impl Store {
    pub(super) fn write(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (kind.to_owned(), name);
        let old = self.objects.get(&key);
        let uid = old
            .map_or(json!(format!("uid-{}", self.version)), |old| old["metadata"]["uid"].clone());
        let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["uid"] = uid;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key, object.clone());
        self.note(what, kind, &object);
        object
    }

    fn note(&mut self, what: &'static str, kind: &str, object: &Value) {
        let (version, kind, object) = (self.version, kind.to_owned(), object.clone());
        self.history.push_back(Happening { version, what, kind, object });
    }

    /// Removes an object, and what it owns.
    pub(super) fn delete(&mut self, kind: &str, name: &str) {
        let Some(mut object) = self.objects.remove(&(kind.to_owned(), name.to_owned())) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.note("DELETED", kind, &object);
        let uid = &object["metadata"]["uid"];
        let owns = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == *uid))
        };
        let owned: Vec<_> = self.objects.iter().filter(|(_, object)| owns(object)).collect();
        let owned: Vec<_> = owned.into_iter().map(|(key, _)| key.clone()).collect();
        owned.iter().for_each(|(kind, name)| self.delete(kind, name));
    }
}
