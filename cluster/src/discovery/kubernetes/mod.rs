//! Discovery in a Kubernetes cluster, through its API server.
//!
//! An instance is a ConfigMap, and each process has a Lease that it renews (`objects.rs` says how
//! they look). An instance is there as long as its ConfigMap is and the Lease is renewed. Watchers
//! list and watch both; they tell by their own clock how long a Lease has not been renewed, so that
//! clocks of machines need not agree, and they believe it only of a listing made then.
//!
//! The client is our own, of the few calls that discovery needs: the `kube` crate would bring some 40
//! crates more, among them a third HTTP client's worth of TLS and a date library, for objects of
//! which we read five fields.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use engine::{Error, Result, Tasks};
use http::{Method, StatusCode};
use tokio::sync::{OnceCell, watch::Receiver, watch::channel};
use tokio::time::sleep;
use tracing::debug;

use super::lease::{self, Kept, Record};
use super::{Backoff, Discovery, Lease, Query, Watch, watch};
use crate::instance::{Instance, InstanceId};
use crate::request::Connector;

mod client;
mod feed;
mod moment;
mod objects;
mod reader;
mod session;

pub use objects::Pod;

use client::{Call, Client, Refused};
use objects::{Kind, Owner, config_map, map_name};
use reader::Reader;
use session::Session;

const JSON: &str = "application/json";

/// Where the API server is and how patient we are with it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The API server: `https://HOST:PORT`, or `http://HOST:PORT` as of `kubectl proxy`.
    pub server: String,
    /// The Kubernetes namespace that registrations lie in.
    pub namespace: String,
    /// The file with the token of our service account, which is read again and again.
    pub token_file: Option<PathBuf>,
    /// Who signed the API server's certificate, in PEM.
    pub ca_pem: Option<String>,
    /// The pod that this process runs in, which then owns what it registers.
    pub pod: Option<Pod>,
    /// After what time without a sign of life a process is gone: 1 s to 1 h in whole seconds,
    /// default 15 s.
    pub ttl: Duration,
    /// How long connecting and each call may take; 100 ms to 1 min, default 5 s.
    pub request_timeout: Duration,
    /// The waits between attempts while the API server cannot be reached.
    pub backoff: Backoff,
    /// How long after an outage those who have not registered again are kept; at least the longest
    /// wait of the workers, default 15 s.
    pub grace: Duration,
    /// How long the Lease of another process must not have been renewed under our eyes before it
    /// is removed with what it owns, and at least ten times its own time-to-live: 1 s to 1 day,
    /// default 10 min. Kubernetes itself removes those that pods own.
    pub leftover_age: Duration,
    /// Tells the time that Leases are renewed at; default [`SystemTime::now`]. Tests on simulated
    /// time put their own clock here.
    pub clock: fn() -> SystemTime,
}

impl Config {
    /// Makes the default configuration for an API server and a namespace.
    pub fn new(server: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            namespace: namespace.into(),
            token_file: None,
            ca_pem: None,
            pod: None,
            ttl: Duration::from_secs(15),
            request_timeout: Duration::from_secs(5),
            backoff: Backoff::default(),
            grace: Duration::from_secs(15),
            leftover_age: Duration::from_secs(600),
            clock: SystemTime::now,
        }
    }

    /// Returns the time since 1970.
    fn now(&self) -> Duration {
        (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn check(&self) -> Result<()> {
        let bounds = [
            ("ttl", self.ttl, Duration::from_secs(1), Duration::from_secs(3600)),
            (
                "request timeout",
                self.request_timeout,
                Duration::from_millis(100),
                Duration::from_secs(60),
            ),
            ("grace", self.grace, self.backoff.longest, Duration::from_secs(3600)),
            (
                "leftover age",
                self.leftover_age,
                Duration::from_secs(1),
                Duration::from_secs(86_400),
            ),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most || (name == "ttl" && value.subsec_nanos() > 0) {
                return Err(Error::invalid(format!(
                    "kubernetes: {name}: expected {least:?} to {most:?}, got {value:?}"
                )));
            }
        }
        let is_spelled = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_name = |byte: u8| is_spelled(byte) || byte == b'-';
        let name = &self.namespace;
        if name.is_empty() || name.len() > 63 || !name.bytes().all(is_name) {
            return Err(Error::invalid(format!(
                "kubernetes: namespace: expected 1 to 63 lower-case letters, digits or `-`, got \
                 {name:?}"
            )));
        }
        Ok(())
    }
}

/// A Kubernetes cluster; clones share this process's Lease.
#[derive(Clone)]
pub struct Kubernetes {
    config: Arc<Config>,
    client: Client,
    session: Arc<OnceCell<Receiver<Session>>>,
    kept: Kept,
    tasks: Tasks,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Kubernetes");
        let debug = debug.field("server", &self.config.server);
        debug.field("namespace", &self.config.namespace).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Makes the discovery of a cluster. Nothing is connected before something is asked.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if a setting is out of its bounds.
    pub fn new(config: Config, tasks: &Tasks) -> Result<Self> {
        Self::make(config, None, tasks)
    }

    /// Does as [`Kubernetes::new`], and reaches the API server through a connector instead of by TCP.
    /// TLS, if the server's URL asks for it, lies inside of what the connector opens.
    ///
    /// # Errors
    /// Those of [`Kubernetes::new`].
    pub fn with_connector(
        config: Config,
        connector: Arc<dyn Connector>,
        tasks: &Tasks,
    ) -> Result<Self> {
        Self::make(config, Some(connector), tasks)
    }

    fn make(config: Config, connector: Option<Arc<dyn Connector>>, tasks: &Tasks) -> Result<Self> {
        config.check()?;
        let client = Client::new(&config, connector, tasks)?;
        let (session, kept) = Default::default();
        Ok(Self { config: Arc::new(config), client, session, kept, tasks: tasks.clone() })
    }

    /// Returns the session of this process, whose task is started by the first who asks.
    async fn session(&self) -> Receiver<Session> {
        let start = || async {
            let (sender, receiver) = channel(Session::default());
            let (config, client) = (self.config.clone(), self.client.clone());
            let was_cut_off = AtomicBool::new(false);
            let keeper = session::Keeper { config, client, session: sender, was_cut_off };
            self.tasks.spawn("kubernetes lease", keeper.run());
            receiver
        };
        self.session.get_or_init(start).await.clone()
    }
}

#[async_trait]
impl Discovery for Kubernetes {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        let place = Place {
            config: self.config.clone(),
            client: self.client.clone(),
            id: instance.id,
            session: self.session().await,
            owner: None,
        };
        lease::keep(instance, place, self.config.backoff, &self.kept, &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let reader = Reader::new(self.config.clone(), &self.client, &query);
        watch::start(query, reader, self.config.backoff, self.config.grace, &self.tasks)
    }
}

/// The ConfigMap of one instance.
struct Place {
    config: Arc<Config>,
    client: Client,
    id: InstanceId,
    session: Receiver<Session>,
    /// The Lease that the ConfigMap hangs on.
    owner: Option<Owner>,
}

impl Place {
    fn path(&self) -> String {
        let maps = Kind::ConfigMap.path(&self.config.namespace);
        format!("{maps}/{}", map_name(self.id))
    }

    /// Looks about once in a time-to-live, and returns when the ConfigMap is not there. Whether the
    /// API server is there is the session's affair.
    async fn removed(&self) {
        let path = self.path();
        loop {
            sleep(self.config.ttl.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            match self.client.done(Call::get(&path)).await {
                Err(refused) if refused.status == StatusCode::NOT_FOUND => return,
                Err(Refused { error, .. }) => {
                    debug!(%error, "cannot see whether a registration is there");
                }
                Ok(()) => {}
            }
        }
    }
}

#[async_trait]
impl Record for Place {
    async fn put(&mut self, instance: &Instance) -> Result<()> {
        let owner = session::ready(&mut self.session, self.config.request_timeout).await?;
        let map = config_map(instance, &instance.to_json()?, &owner);
        let body = Some((Bytes::from(map.to_string()), JSON));
        let (path, maps) = (self.path(), Kind::ConfigMap.path(&self.config.namespace));
        let replace = Call { method: Method::PUT, path: &path, body: body.clone() };
        let create = Call { method: Method::POST, path: &maps, body };
        // Whether it is there is known, unless somebody removed it or an answer was lost.
        let is_there = self.owner.is_some();
        let (first, second, reason) = match is_there {
            true => (replace, create, StatusCode::NOT_FOUND),
            false => (create, replace, StatusCode::CONFLICT),
        };
        match self.client.done(first).await {
            Err(refused) if refused.status == reason => self.client.done(second).await?,
            outcome => outcome?,
        }
        self.owner = Some(owner);
        Ok(())
    }

    async fn lost(&mut self) -> String {
        let (mine, mut session) = (self.owner.clone(), self.session.clone());
        let ended = async {
            if session.wait_for(|session| session.owner != mine).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = ended => "its lease has ended".into(),
            () = self.removed() => "somebody removed it".into(),
        }
    }

    async fn remove(&mut self) -> Result<()> {
        let path = self.path();
        let delete = Call { method: Method::DELETE, path: &path, body: None };
        match self.client.done(delete).await {
            Err(refused) if refused.status == StatusCode::NOT_FOUND => Ok(()),
            outcome => Ok(outcome?),
        }
    }
}

#[cfg(test)]
mod tests;
