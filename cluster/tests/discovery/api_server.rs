//! A server that does what discovery needs of the Kubernetes API, with a test's hand on it: lists
//! in pages, watches with bookmarks, conflicts, forgotten versions, tokens, garbage collection.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use engine::Tasks;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// The kinds of objects, as they stand in paths.
const KINDS: [&str; 2] = ["configmaps", "leases"];

/// A running server; it ends with this value.
#[derive(Clone)]
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: Arc<Owned>,
}

struct Owned(Tasks);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

struct Shared {
    store: Mutex<Store>,
    /// Counts changes of the store and of the weather.
    changes: watch::Sender<u64>,
}

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

struct Store {
    weather: Weather,
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    history: VecDeque<Happening>,
    /// Watches that begin before this version are told that it is gone.
    oldest: u64,
    /// How long a watch lasts.
    longest_watch: Duration,
    /// The token that is asked for.
    token: Option<String>,
    /// What was called, by method and kind.
    calls: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct Happening {
    version: u64,
    what: &'static str,
    kind: String,
    object: Value,
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (server, router, tasks) = Self::make(address);
        tasks.spawn("api server", async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    /// Makes one that somebody else listens for.
    pub(crate) fn make(address: SocketAddr) -> (Self, Router, Tasks) {
        let store = Store {
            weather: Weather::Fine,
            version: 100,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            oldest: 0,
            longest_watch: Duration::from_millis(1500),
            token: None,
            calls: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { store: Mutex::new(store), changes: watch::channel(0).0 });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let tasks = Tasks::new();
        let owned = Arc::new(Owned(tasks.clone()));
        (Self { address, shared, _tasks: owned }, router, tasks)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.shared.change(|store| store.weather = weather);
    }

    pub(crate) fn ask_for_token(&self, token: &str) {
        self.shared.change(|store| store.token = Some(token.to_owned()));
    }

    /// Forgets all history up to now, and ends all watches.
    pub(crate) fn forget_history(&self) {
        self.shared.change(|store| {
            store.version += 10;
            (store.oldest, store.history) = (store.version, VecDeque::new());
        });
    }

    /// Removes everything, as if it had never been.
    pub(crate) fn lose_disk(&self) {
        self.shared.change(|store| {
            (store.version, store.oldest) = (1, 1);
            store.objects.clear();
            store.history.clear();
        });
    }

    /// Returns the names of all objects of a kind.
    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let store = self.shared.store();
        let names = store.objects.keys().filter(|(of, _)| of == kind);
        names.map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn calls(&self, what: &str) -> usize {
        self.shared.store().calls.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        self.shared.store().objects[&(kind.to_owned(), name.to_owned())].clone()
    }

    /// Puts an object there, whatever is there.
    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.shared.change(|store| store.write(kind, object));
    }

    pub(crate) fn delete(&self, kind: &str, name: &str) {
        self.shared.change(|store| store.delete(kind, name));
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// Waits while nothing is answered.
    async fn thaw(&self) {
        let mut changes = self.changes.subscribe();
        while self.store().weather == Weather::Frozen {
            changes.changed().await.unwrap();
        }
    }
}

impl Store {
    fn write(&mut self, kind: &str, mut object: Value) -> Value {
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
    fn delete(&mut self, kind: &str, name: &str) {
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

fn failure(code: u16, message: &str) -> Response {
    let status = json!({"kind": "Status", "code": code, "message": message});
    reply(code, &status)
}

fn reply(code: u16, body: &Value) -> Response {
    Response::builder().status(code).body(Body::from(body.to_string())).unwrap()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    shared.thaw().await;
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 4 << 20).await.unwrap();
    let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
    let rest = match path.as_slice() {
        ["api", "v1", "namespaces", "fleet", rest @ ..] if rest[0] == KINDS[0] => rest,
        ["apis", "coordination.k8s.io", "v1", "namespaces", "fleet", rest @ ..]
            if rest[0] == KINDS[1] =>
        {
            rest
        }
        _ => return failure(404, "no such resource"),
    };
    let (kind, name) = (rest[0], rest.get(1).copied());
    let query = parse_query(parts.uri.query().unwrap_or_default());
    let authorization = parts.headers.get("authorization").map(|value| value.to_str().unwrap());
    {
        let mut store = shared.store();
        let is_watch = query.contains_key("watch");
        let what = match parts.method.as_str() {
            "GET" if is_watch => "WATCH",
            "GET" if name.is_some() => "READ",
            other => other,
        };
        *store.calls.entry(format!("{what} {kind}")).or_default() += 1;
        if store.weather == Weather::Down {
            return failure(503, "the weather is bad");
        }
        let wanted = store.token.as_ref().map(|token| format!("Bearer {token}"));
        if wanted.is_some() && wanted.as_deref() != authorization {
            return failure(401, "Unauthorized");
        }
    }
    match (parts.method.as_str(), name) {
        ("GET", None) if query.contains_key("watch") => open_watch(shared, kind, &query),
        ("GET", None) => list(&shared.store(), kind, &query),
        (method, name) => write(&shared, method, (kind, name), &body),
    }
}

fn write(
    shared: &Shared,
    method: &str,
    (kind, name): (&str, Option<&str>),
    body: &[u8],
) -> Response {
    let body: Value = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    let name = name.or(body["metadata"]["name"].as_str()).unwrap().to_owned();
    shared.change(|store| {
        let key = (kind.to_owned(), name.clone());
        let Some(mut old) = store.objects.get(&key).cloned() else {
            return match method {
                "POST" => reply(201, &store.write(kind, body)),
                _ => failure(404, "not found"),
            };
        };
        match method {
            "GET" => reply(200, &old),
            "POST" => failure(409, "already exists"),
            "PUT" => reply(200, &store.write(kind, body)),
            "PATCH" => {
                for (field, value) in body["spec"].as_object().unwrap() {
                    old["spec"][field] = value.clone();
                }
                reply(200, &store.write(kind, old))
            }
            "DELETE" => {
                let wanted = &body["preconditions"]["resourceVersion"];
                if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] {
                    return failure(409, "it has changed");
                }
                store.delete(kind, &name);
                reply(200, &json!({"kind": "Status", "status": "Success"}))
            }
            _ => failure(405, "no such method"),
        }
    })
}

fn list(store: &Store, kind: &str, query: &BTreeMap<String, String>) -> Response {
    let selector = query.get("labelSelector").map_or("", String::as_str);
    let objects = store.objects.iter().filter(|((of, _), _)| of == kind);
    let objects = objects.map(|(_, object)| object).filter(|object| selects(selector, object));
    let from: usize = query.get("continue").and_then(|more| more.parse().ok()).unwrap_or(0);
    let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(500);
    let all: Vec<&Value> = objects.collect();
    let items: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
    let end = from + items.len();
    let more = if end < all.len() { end.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": store.version.to_string(), "continue": more});
    reply(200, &json!({"kind": "List", "metadata": metadata, "items": items}))
}

fn open_watch(shared: Arc<Shared>, kind: &str, query: &BTreeMap<String, String>) -> Response {
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let at: u64 = query["resourceVersion"].parse().unwrap();
    let oldest = shared.store().oldest;
    let longest = shared.store().longest_watch;
    // Real servers say it in either way.
    if at < oldest && at.is_multiple_of(2) {
        return failure(410, "too old resource version");
    }
    let kind = kind.to_owned();
    let end = Instant::now() + longest;
    let changes = shared.changes.subscribe();
    let follow = Follow { shared, changes, kind, selector, at, end };
    let lines = stream::unfold(Some(follow), |follow| async { follow?.next().await });
    Response::new(Body::from_stream(lines))
}

struct Follow {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    kind: String,
    selector: String,
    at: u64,
    end: Instant,
}

type Line = Result<Bytes, std::io::Error>;

impl Follow {
    async fn next(mut self) -> Option<(Line, Option<Self>)> {
        loop {
            self.changes.borrow_and_update();
            let (weather, lines) = self.look();
            match weather {
                Weather::Down => {
                    return Some((Err(std::io::Error::other("the weather is bad")), None));
                }
                Weather::Frozen | Weather::Deaf => {
                    self.changes.changed().await.ok()?;
                    continue;
                }
                Weather::Fine => {}
            }
            let Ok(lines) = lines else {
                let status = json!({"kind": "Status", "code": 410, "message": "too old"});
                return Some((Ok(line("ERROR", &status)), None));
            };
            if !lines.is_empty() {
                return Some((Ok(lines.concat().into()), Some(self)));
            }
            tokio::select! {
                _ = self.changes.changed() => {}
                () = sleep_until(self.end) => return None,
                () = sleep(Duration::from_millis(300)) => {
                    self.at = self.shared.store().version.max(self.at);
                    let version = json!({"resourceVersion": self.at.to_string()});
                    let bookmark = line("BOOKMARK", &json!({"metadata": version}));
                    return Some((Ok(bookmark), Some(self)));
                }
            }
        }
    }

    /// Returns the weather and what happened since the last look.
    fn look(&mut self) -> (Weather, Result<Vec<Bytes>, ()>) {
        let store = self.shared.store();
        if self.at < store.oldest {
            return (store.weather, Err(()));
        }
        if store.weather != Weather::Fine {
            return (store.weather, Ok(Vec::new()));
        }
        let new = store.history.iter().filter(|one| one.version > self.at);
        let ours = new.filter(|one| one.kind == self.kind && selects(&self.selector, &one.object));
        let lines = ours.map(|one| line(one.what, &one.object)).collect();
        self.at = store.version.max(self.at);
        (Weather::Fine, Ok(lines))
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": what, "object": object})).into()
}

/// Returns whether a selector takes an object: `a=b,c in (d,e)`.
fn selects(selector: &str, object: &Value) -> bool {
    let label = |name: &str| object["metadata"]["labels"][name].as_str().unwrap_or_default();
    let (equal, set) = match selector.split_once(" in (") {
        Some((head, list)) => {
            let (equal, name) = head.rsplit_once(',').unwrap();
            (equal, Some((name, list.trim_end_matches(')'))))
        }
        None => (selector, None),
    };
    let is_equal = equal
        .split(',')
        .all(|part| part.split_once('=').is_some_and(|(name, value)| label(name) == value));
    is_equal && set.is_none_or(|(name, list)| list.split(',').any(|value| value == label(name)))
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decode(value))).collect()
}

fn decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let hex = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
                rest = tail;
            }
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}
