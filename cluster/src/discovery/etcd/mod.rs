//! Discovery between machines, through etcd.
//!
//! An instance is the value of `PREFIX/instances/NAMESPACE/ID`, attached to the lease of its
//! process. The lease is kept alive every third of its time-to-live; when it ends all the same, or
//! etcd lost it, another is taken and everything is registered again.
//!
//! The client is our own, of the seven calls that discovery needs: the `etcd-client` crate builds
//! with `protoc` only, which nobody needs for the rest of this server, and hides when a
//! connection breaks, which is what discovery is about.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, Result, Tasks};
use tokio::sync::{OnceCell, watch::Receiver, watch::channel};
use tokio::time::Instant;

use super::lease::{self, Kept, Record};
use super::{Backoff, Discovery, Lease, Query, Watch, watch};
use crate::instance::{Instance, InstanceId};

mod connection;
mod reader;
mod session;
mod wire;

use connection::Connector;
use reader::Reader;
use session::Session;
use wire::{DeleteRangeRequest, Done, PutRequest};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";

/// Where etcd is and how patient we are with it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Members of the cluster: `http://host:2379`, `https://host:2379` or `host:2379`.
    pub endpoints: Vec<String>,
    /// What all keys begin with; default `/stator/v1`.
    pub prefix: String,
    /// After what time without a sign of life etcd forgets a process: 1 s to 1 h, rounded up to
    /// whole seconds, default 10 s.
    pub ttl: Duration,
    /// How long connecting and each call may take; 100 ms to 1 min, default 3 s.
    pub request_timeout: Duration,
    /// The waits between attempts while etcd cannot be reached.
    pub backoff: Backoff,
    /// How long after an outage those who have not registered again are kept; at least the longest
    /// wait of the workers, default 15 s.
    pub grace: Duration,
    /// Certificates, for `https`.
    pub tls: Option<Tls>,
    /// A user of etcd, if etcd asks for one.
    pub auth: Option<Auth>,
}

/// Certificates of a connection to etcd, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// Who signed etcd's certificate.
    pub ca_pem: String,
    /// Our certificate and its key, if etcd wants them.
    pub identity_pem: Option<(String, String)>,
    /// The name in etcd's certificate, if it is not that of the endpoint.
    pub domain: Option<String>,
}

/// A user of etcd.
#[derive(Clone)]
pub struct Auth {
    /// The user's name.
    pub user: String,
    /// The user's password.
    pub password: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_identity = self.identity_pem.is_some();
        let mut debug = f.debug_struct("Tls");
        debug.field("has_identity", &has_identity).field("domain", &self.domain).finish()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            prefix: "/stator/v1".into(),
            ttl: Duration::from_secs(10),
            request_timeout: Duration::from_secs(3),
            backoff: Backoff::default(),
            grace: Duration::from_secs(15),
            tls: None,
            auth: None,
        }
    }
}

impl Config {
    /// Returns how long all members together may take to connect and to give a lease.
    fn patience(&self) -> Duration {
        let members = u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        self.request_timeout.saturating_mul(members.saturating_mul(2))
    }
}

/// A cluster of etcd; clones share this process's lease.
#[derive(Clone)]
pub struct Etcd {
    config: Arc<Config>,
    connector: Connector,
    session: Arc<OnceCell<Receiver<Session>>>,
    kept: Kept,
    tasks: Tasks,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Makes the discovery of a cluster. Nothing is connected before something is asked.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if a setting is out of its bounds.
    pub fn new(config: Config, tasks: &Tasks) -> Result<Self> {
        let bounds = [
            ("ttl", config.ttl, Duration::from_secs(1), Duration::from_secs(3600)),
            (
                "request timeout",
                config.request_timeout,
                Duration::from_millis(100),
                Duration::from_secs(60),
            ),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return Err(Error::invalid(format!(
                    "etcd: {name}: expected {least:?} to {most:?}, got {value:?}"
                )));
            }
        }
        if config.grace < config.backoff.longest {
            return Err(Error::invalid(format!(
                "etcd: grace: expected at least {:?}, the longest wait between attempts, got {:?}",
                config.backoff.longest, config.grace
            )));
        }
        let connector = Connector::new(&config)?;
        let (session, kept) = Default::default();
        Ok(Self { config: Arc::new(config), connector, session, kept, tasks: tasks.clone() })
    }

    /// Returns the session of this process, whose task is started by the first who asks.
    async fn session(&self) -> Receiver<Session> {
        let start = || async {
            let (sender, receiver) = channel(Session::default());
            let (config, connector) = (self.config.clone(), self.connector.spread());
            let keeper = session::Keeper { config, connector, session: sender };
            self.tasks.spawn("etcd lease", keeper.run());
            receiver
        };
        self.session.get_or_init(start).await.clone()
    }
}

#[async_trait]
impl Discovery for Etcd {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        let place = Place {
            config: self.config.clone(),
            key: Keys::new(&self.config.prefix, &Query::All).key(&instance),
            session: self.session().await,
            held: None,
        };
        lease::keep(instance, place, self.config.backoff, &self.kept, &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let reader = Reader {
            config: self.config.clone(),
            connector: self.connector.spread(),
            keys: Keys::new(&self.config.prefix, &query),
            open: None,
            is_relisting: false,
        };
        watch::start(query, reader, self.config.backoff, self.config.grace, &self.tasks)
    }
}

/// The key of one instance.
struct Place {
    config: Arc<Config>,
    key: Vec<u8>,
    session: Receiver<Session>,
    /// The lease that the key hangs on, and when it was put.
    held: Option<(i64, Instant)>,
}

#[async_trait]
impl Record for Place {
    async fn put(&mut self, instance: &Instance) -> Result<()> {
        let limit = self.config.patience();
        let (connection, lease) = session::ready(&mut self.session, limit).await?;
        let put = PutRequest { key: self.key.clone(), value: instance.to_json()?, lease };
        let _: Done = connection.call(PUT, put).await?;
        self.held = Some((lease, Instant::now()));
        Ok(())
    }

    async fn lost(&mut self) -> String {
        let (held, key) = (self.held, &self.key);
        let has_ended = |session: &Session| session.lease != held.map(|(lease, _)| lease);
        let is_removed =
            |session: &Session| held.is_some_and(|(_, put)| session.has_lost(key, put));
        let lost = self.session.wait_for(|session| has_ended(session) || is_removed(session));
        if let Ok(session) = lost.await {
            return match has_ended(&session) {
                true => "its lease has ended".into(),
                false => "somebody removed it, or wrote over it".into(),
            };
        }
        std::future::pending().await
    }

    async fn remove(&mut self) -> Result<()> {
        let limit = self.config.patience();
        let (connection, _) = session::ready(&mut self.session, limit).await?;
        let delete = DeleteRangeRequest { key: self.key.clone() };
        let _: Done = connection.call(DELETE_RANGE, delete).await?;
        Ok(())
    }
}

/// The keys of a query: those at or after `from` and before `to`.
struct Keys {
    folder: String,
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Keys {
    /// Returns the narrowest single range that holds what a query selects; of several
    /// namespaces that is all of them, and the view leaves out the others.
    fn new(prefix: &str, query: &Query) -> Self {
        let folder = format!("{}/instances/", prefix.trim_end_matches('/'));
        let from = match query {
            Query::All => folder.clone(),
            Query::Prefix(prefix) => format!("{folder}{prefix}"),
            Query::Namespaces(list) => match list.as_slice() {
                [namespace] => format!("{folder}{namespace}/"),
                _ => folder.clone(),
            },
        };
        let from = from.into_bytes();
        let mut to = from.clone();
        if let Some(last) = to.last_mut() {
            // The last byte is `/` or of a namespace, and so never 255.
            *last += 1;
        }
        Self { folder, from, to }
    }

    fn key(&self, instance: &Instance) -> Vec<u8> {
        format!("{}{}/{}", self.folder, instance.namespace, instance.id).into_bytes()
    }

    fn id(&self, key: &[u8]) -> Option<InstanceId> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.folder)?;
        key.split_once('/')?.1.parse().ok()
    }
}

#[cfg(test)]
mod tests;
