//! A server that does what discovery needs of the Kubernetes API, with a test's hand on it: lists
//! in pages, watches with bookmarks, conflicts, forgotten versions, tokens, garbage collection.
//!
//! It is reached in memory, so that tests run on simulated time, or over TCP.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::serve::Listener;
use cluster::request::{Connector, Io};
use engine::Tasks;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

mod follow;
mod store;

pub(crate) use store::Weather;

use follow::Follow;
use store::{Shared, Store};

/// The kinds of objects, as they stand in paths.
const KINDS: [&str; 2] = ["configmaps", "leases"];

/// A running server; it ends with this value.
#[derive(Clone)]
pub(crate) struct ApiServer {
    address: Address,
    shared: Arc<Shared>,
    _tasks: Arc<Owned>,
}

#[derive(Clone)]
enum Address {
    Memory(mpsc::Sender<DuplexStream>),
    Tcp(SocketAddr),
}

/// Connects to a server in memory.
struct Dial(mpsc::Sender<DuplexStream>);

#[async_trait]
impl Connector for Dial {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let (here, there) = duplex(64 << 10);
        let ended = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        self.0.send(there).await.map_err(ended)?;
        Ok(Box::new(here))
    }

    fn address(&self) -> &str {
        "memory:0"
    }
}

/// The server's end of connections in memory.
struct Dialled(mpsc::Receiver<DuplexStream>);

impl Listener for Dialled {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(())
    }
}

struct Owned(Tasks);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl ApiServer {
    /// Starts one in memory.
    pub(crate) fn start() -> Self {
        let (sender, dialled) = mpsc::channel(16);
        let (server, router, tasks) = Self::make(Address::Memory(sender));
        let serve = axum::serve(Dialled(dialled), router);
        tasks.spawn("api server", async move { serve.await.unwrap() });
        server
    }

    /// Starts one that other processes can reach.
    pub(crate) async fn start_tcp() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::start_over(listener, address)
    }

    /// Starts one over a listener's connections.
    pub(crate) fn start_over<L>(listener: L, address: SocketAddr) -> Self
    where
        L: Listener<Addr = SocketAddr>,
    {
        let (server, router, tasks) = Self::make(Address::Tcp(address));
        tasks.spawn("api server", async move { axum::serve(listener, router).await.unwrap() });
        server
    }

    fn make(address: Address) -> (Self, Router, Tasks) {
        let shared = Arc::new(Shared::new());
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let tasks = Tasks::new();
        let owned = Arc::new(Owned(tasks.clone()));
        (Self { address, shared, _tasks: owned }, router, tasks)
    }

    /// Returns what reaches it, if it is not reached by its URL.
    pub(crate) fn connector(&self) -> Option<Arc<dyn Connector>> {
        match &self.address {
            Address::Memory(sender) => Some(Arc::new(Dial(sender.clone()))),
            Address::Tcp(_) => None,
        }
    }

    pub(crate) fn url(&self) -> String {
        match &self.address {
            Address::Memory(_) => "http://memory:0".to_owned(),
            Address::Tcp(address) => format!("http://{address}"),
        }
    }

    /// Lists in pages of at most so many objects.
    pub(crate) fn set_page(&self, objects: usize) {
        self.shared.change(|store| store.page = objects);
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
        ("GET", None) => list(&mut shared.store(), kind, &query),
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

/// Answers with a page of the objects as they were when the listing's first page was read.
fn list(store: &mut Store, kind: &str, query: &BTreeMap<String, String>) -> Response {
    let selector = query.get("labelSelector").map_or("", String::as_str);
    let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(500);
    let more = query.get("continue").map_or("", String::as_str);
    let (version, mut rest) = if more.is_empty() {
        let objects = store.objects.iter().filter(|((of, _), _)| of == kind);
        let objects = objects.map(|(_, object)| object).filter(|object| selects(selector, object));
        (store.version, objects.cloned().collect())
    } else {
        match store.listings.remove(more) {
            Some(listing) => listing,
            None => return failure(410, "the continue token has expired"),
        }
    };
    let page = limit.min(store.page).min(rest.len());
    let items: Vec<Value> = rest.drain(..page).collect();
    let mut more = String::new();
    if !rest.is_empty() {
        more = format!("{version}-{}-{}", rest.len(), store.listings.len());
        store.listings.insert(more.clone(), (version, rest));
    }
    let metadata = json!({"resourceVersion": version.to_string(), "continue": more});
    reply(200, &json!({"kind": "List", "metadata": metadata, "items": items}))
}

fn open_watch(shared: Arc<Shared>, kind: &str, query: &BTreeMap<String, String>) -> Response {
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let at: u64 = query["resourceVersion"].parse().unwrap();
    let oldest = shared.store().oldest;
    // Real servers say it in either way.
    if at < oldest && at.is_multiple_of(2) {
        return failure(410, "too old resource version");
    }
    let follow = Follow::new(shared, kind.to_owned(), selector, at);
    let lines = stream::unfold(Some(follow), |follow| async { follow?.next().await });
    Response::new(Body::from_stream(lines))
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
