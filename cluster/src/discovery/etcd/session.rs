//! The lease of this process, which all its registrations hang on.
//!
//! One lease for the process and not one for each instance: hundreds of instances then cost one
//! small message every third of the time-to-live.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use engine::{Error, ErrorKind, Result};
use futures_util::stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::Config;
use super::connection::{Connection, Connector, failed};
use super::wire::{LeaseAnswer, LeaseGrantRequest, LeaseKeepAliveRequest};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What the process has of etcd now.
#[derive(Clone, Default)]
pub(super) struct Session {
    /// Nothing while etcd cannot be reached.
    pub(super) connection: Option<Connection>,
    /// Nothing before the first lease, and once it must have ended.
    pub(super) lease: Option<i64>,
}

/// Keeps the session until its task is dropped.
pub(super) struct Keeper {
    pub(super) config: Arc<Config>,
    pub(super) connector: Connector,
    pub(super) session: watch::Sender<Session>,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        // By etcd's clock the lease may live longer than this, never shorter.
        let mut confirmed = Instant::now();
        loop {
            let Err(error) = self.hold(&mut confirmed, &mut failures).await;
            if failures == 0 {
                warn!(%error, "etcd is lost, leases are taken again once it is back");
            }
            failures += 1;
            self.session.send_modify(|session| session.connection = None);
            let end = confirmed + self.config.ttl;
            tokio::select! {
                () = self.config.backoff.sleep(failures) => {}
                () = sleep_until(end), if self.session.borrow().lease.is_some() => {}
            }
            if end <= Instant::now() {
                self.session.send_modify(|session| session.lease = None);
            }
        }
    }

    /// Connects and keeps the lease alive until something fails.
    async fn hold(
        &mut self,
        confirmed: &mut Instant,
        failures: &mut u32,
    ) -> Result<std::convert::Infallible> {
        let connection = self.connector.connect().await?;
        let (beats, mut inbox) = mpsc::channel::<LeaseKeepAliveRequest>(1);
        let requests = stream::poll_fn(move |context| Pin::new(&mut inbox).poll_recv(context));
        // etcd answers the head of this call with the first answer, so a request comes first.
        let old = self.session.borrow().lease;
        let mut lease = match old {
            Some(lease) => lease,
            None => self.grant(&connection).await?,
        };
        let mut sent = Instant::now();
        self.beat(&beats, lease).await?;
        let mut answers = connection.open::<_, LeaseAnswer>(KEEP_ALIVE, requests).await?;
        loop {
            let answer = timeout(self.config.request_timeout, answers.message()).await;
            let late = |_| unavailable("no answer in time");
            let answer = answer.map_err(late)?.map_err(|status| failed(KEEP_ALIVE, &status))?;
            let answer = answer.ok_or_else(|| unavailable("etcd ended the stream"))?;
            if answer.ttl > 0 && answer.id == lease {
                *confirmed = sent;
                if std::mem::take(failures) > 0 {
                    info!("etcd is there again");
                }
                self.publish(&connection, lease);
                sleep(self.config.ttl / 3).await;
            } else {
                info!(lease, "etcd ended the lease, taking another");
                self.session.send_modify(|session| session.lease = None);
                lease = self.grant(&connection).await?;
            }
            sent = Instant::now();
            self.beat(&beats, lease).await?;
        }
    }

    async fn beat(&self, beats: &mpsc::Sender<LeaseKeepAliveRequest>, lease: i64) -> Result<()> {
        let beat = beats.send(LeaseKeepAliveRequest { id: lease });
        let sent = timeout(self.config.request_timeout, beat).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(unavailable("the stream has ended")),
        }
    }

    async fn grant(&self, connection: &Connection) -> Result<i64> {
        let ttl = self.config.ttl.as_secs().max(1).cast_signed();
        let answer: LeaseAnswer = connection.call(GRANT, LeaseGrantRequest { ttl }).await?;
        debug!(lease = answer.id, ttl = answer.ttl, "lease granted");
        Ok(answer.id)
    }

    fn publish(&self, connection: &Connection, lease: i64) {
        self.session.send_if_modified(|session| {
            let is_new = session.connection.is_none() || session.lease != Some(lease);
            if is_new {
                *session = Session { connection: Some(connection.clone()), lease: Some(lease) };
            }
            is_new
        });
    }
}

/// Waits for a connection and a lease.
pub(super) async fn ready(
    session: &mut watch::Receiver<Session>,
    limit: Duration,
) -> Result<(Connection, i64)> {
    let is_ready = |session: &Session| session.connection.is_some() && session.lease.is_some();
    let found = timeout(limit, session.wait_for(is_ready)).await;
    let found = found.map_err(|_| unavailable("cannot be reached"))?;
    let found = found.map_err(|_| unavailable("discovery has been shut down"))?;
    match (&found.connection, found.lease) {
        (Some(connection), Some(lease)) => Ok((connection.clone(), lease)),
        _ => Err(unavailable("cannot be reached")),
    }
}

fn unavailable(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("etcd: {text}"))
}
