//! The lease of this process, which all its registrations hang on.
//!
//! One lease for the process and not one for each instance: hundreds of instances then cost one
//! small message every third of the time-to-live.

use std::collections::BTreeSet;
use std::convert::Infallible;
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
use super::wire::{
    LeaseAnswer, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";

/// What the process has of etcd now.
#[derive(Clone, Default)]
pub(super) struct Session {
    /// Nothing while etcd cannot be reached.
    pub(super) connection: Option<Connection>,
    /// Nothing before the first lease, and once it must have ended.
    pub(super) lease: Option<i64>,
    /// When the lease ends unless it is confirmed again. By etcd's clock it may live longer than
    /// this, never shorter. It moves without a notice to those who watch the session.
    end: Option<Instant>,
    /// What hangs on the lease, as it was seen last.
    attached: Option<Arc<Attached>>,
}

/// The keys that hang on a lease.
struct Attached {
    lease: i64,
    keys: BTreeSet<Vec<u8>>,
    /// Before etcd was asked.
    asked: Instant,
}

impl Session {
    /// Returns whether a key that was put at a time was gone later, or hung on our lease no more:
    /// somebody else removed it or wrote over it.
    pub(super) fn has_lost(&self, key: &[u8], put: Instant) -> bool {
        let attached = self.attached.as_ref();
        let attached = attached.filter(|one| Some(one.lease) == self.lease && one.asked > put);
        attached.is_some_and(|one| !one.keys.contains(key))
    }
}

/// Keeps the session until its task is dropped.
pub(super) struct Keeper {
    pub(super) config: Arc<Config>,
    pub(super) connector: Connector,
    pub(super) session: watch::Sender<Session>,
}

impl Keeper {
    pub(super) async fn run(self) {
        let (session, pause) = (self.session.clone(), self.config.ttl / 3);
        tokio::select! {
            never = self.keep() => match never {},
            never = expire(session.clone()) => match never {},
            never = look(session, pause) => match never {},
        }
    }

    /// Holds the session at one member after the other. It waits when it was lost, and whenever
    /// all members have been tried in vain.
    async fn keep(mut self) -> Infallible {
        let members = self.connector.members();
        let mut failures = 0;
        loop {
            let Err(error) = self.hold(&mut failures).await;
            match failures {
                0 => warn!(%error, "etcd is lost, leases are taken again once it is back"),
                _ => debug!(%error, failures, "etcd cannot be reached"),
            }
            let was_held = self.session.borrow().connection.is_some();
            self.session.send_modify(|session| session.connection = None);
            if was_held {
                self.config.backoff.sleep(1).await;
            }
            failures += 1;
            if failures.is_multiple_of(members) {
                self.config.backoff.sleep(failures / members).await;
            }
        }
    }

    /// Connects and keeps the lease alive until something fails.
    async fn hold(&mut self, failures: &mut u32) -> Result<Infallible> {
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
                if std::mem::take(failures) > 0 {
                    info!("etcd is there again");
                }
                let ttl = Duration::from_secs(answer.ttl.unsigned_abs());
                self.publish(&connection, lease, sent + ttl);
                sleep(self.config.ttl / 3).await;
            } else {
                info!(lease, "etcd ended the lease, taking another");
                self.session.send_modify(|session| (session.lease, session.end) = (None, None));
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
        let ttl = seconds_of_lease(self.config.ttl);
        let answer: LeaseAnswer = connection.call(GRANT, LeaseGrantRequest { ttl }).await?;
        debug!(lease = answer.id, ttl = answer.ttl, "lease granted");
        Ok(answer.id)
    }

    fn publish(&self, connection: &Connection, lease: i64, end: Instant) {
        self.session.send_if_modified(|session| {
            let is_new = session.connection.is_none() || session.lease != Some(lease);
            session.end = Some(end);
            if is_new {
                session.connection = Some(connection.clone());
                session.lease = Some(lease);
            }
            is_new
        });
    }
}

/// Takes the lease out of the session when it ends without being confirmed, whatever the keeper
/// waits for at that time: nobody may think that its registration is held by then.
async fn expire(session: watch::Sender<Session>) -> Infallible {
    let mut news = session.subscribe();
    loop {
        let end = news.borrow_and_update().end;
        tokio::select! {
            _ = news.changed() => {}
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                session.send_if_modified(|session| {
                    let is_over = session.end.is_some_and(|end| end <= Instant::now());
                    if is_over {
                        (session.lease, session.end) = (None, None);
                    }
                    is_over
                });
            }
        }
    }
}

/// Looks again and again what hangs on the lease: one call for all instances of the process.
async fn look(session: watch::Sender<Session>, pause: Duration) -> Infallible {
    loop {
        sleep(pause).await;
        let now = session.borrow().clone();
        let (Some(connection), Some(lease)) = (now.connection, now.lease) else { continue };
        let asked = Instant::now();
        let question = LeaseTimeToLiveRequest { id: lease, has_keys: true };
        let answer: Result<LeaseTimeToLiveResponse> = connection.call(TIME_TO_LIVE, question).await;
        match answer {
            Ok(answer) if answer.ttl > 0 => session.send_modify(|session| {
                let keys = answer.keys.into_iter().collect();
                session.attached = Some(Arc::new(Attached { lease, keys, asked }));
            }),
            // Who keeps the lease finds out.
            Ok(_) => {}
            Err(error) => debug!(%error, "cannot see what is registered"),
        }
    }
}

/// Returns the whole seconds of a time-to-live, of which etcd knows no parts: never fewer than
/// were asked for.
fn seconds_of_lease(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    seconds.max(1).cast_signed()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_never_cut() {
        for (ttl_ms, seconds) in [(1000, 1), (1001, 2), (2900, 3), (10_000, 10)] {
            assert_eq!(seconds_of_lease(Duration::from_millis(ttl_ms)), seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_nobody_confirms_ends_in_time_and_one_that_is_confirmed_does_not() {
        let session = watch::channel(Session::default()).0;
        let mut news = session.subscribe();
        let scene = async {
            let confirm = |seconds| {
                let end = Some(Instant::now() + Duration::from_secs(seconds));
                session.send_if_modified(|session| {
                    let is_new = session.lease.replace(7).is_none();
                    session.end = end;
                    is_new
                });
            };
            confirm(3);
            sleep(Duration::from_secs(2)).await;
            confirm(3);
            sleep(Duration::from_secs(2)).await;
            assert_eq!(session.borrow().lease, Some(7));
            let start = Instant::now();
            news.wait_for(|session| session.lease.is_none()).await.unwrap();
            assert_eq!(start.elapsed().as_secs(), 1);
        };
        tokio::select! {
            () = scene => {}
            never = expire(session.clone()) => match never {},
        }
    }
}
