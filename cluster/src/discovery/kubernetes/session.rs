//! The Lease of this process, which all its registrations hang on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use engine::Result;
use http::{Method, StatusCode};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::client::{Call, Client, Refused, unavailable};
use super::objects::{Kind, List, Object, Owner, lease, renewal};
use super::{Config, JSON};
use crate::instance::InstanceId;

/// Leftovers that one process removes at a time.
const MAX_LEFTOVERS: usize = 100;

/// Leases by name: the version of each, and since when it is that.
type Seen = BTreeMap<String, (String, Instant)>;

/// What the process has of Kubernetes now.
#[derive(Clone, Default)]
pub(super) struct Session {
    /// Our Lease; nothing before the first one, and while watchers believe that we are gone.
    pub(super) owner: Option<Owner>,
    /// When the Lease ends unless it is renewed. It moves without a notice to those who watch
    /// the session.
    end: Option<Instant>,
}

/// Keeps the session until its task is dropped.
pub(super) struct Keeper {
    pub(super) config: Arc<Config>,
    pub(super) client: Client,
    pub(super) session: watch::Sender<Session>,
    /// Whether our own Lease could not be renewed since the last look at those of others.
    pub(super) was_cut_off: AtomicBool,
}

impl Keeper {
    pub(super) async fn run(self) {
        tokio::select! {
            never = self.keep() => match never {},
            never = self.expire() => match never {},
            never = self.sweep() => match never {},
        }
    }

    /// Renews the Lease, and makes another one whenever it is gone.
    async fn keep(&self) -> Infallible {
        let (mut failures, mut mine) = (0, None);
        loop {
            let sent = Instant::now();
            let outcome = match &mine {
                Some(owner) => self.renew(owner).await,
                None => self.make().await.map(Some),
            };
            match outcome {
                Ok(owner) => {
                    if failures > 0 {
                        info!("kubernetes is there again");
                    }
                    failures = 0;
                    let is_gone = owner.is_none();
                    mine = owner;
                    self.publish(mine.clone(), sent + self.config.ttl);
                    if !is_gone {
                        sleep(self.config.ttl / 3).await;
                    }
                }
                Err(error) => {
                    if failures == 0 {
                        warn!(%error, "cannot renew the lease in kubernetes, trying again");
                    }
                    failures += 1;
                    self.was_cut_off.store(true, Relaxed);
                    self.config.backoff.sleep(failures).await;
                }
            }
        }
    }

    /// Renews our Lease; returns nothing if somebody removed it.
    async fn renew(&self, owner: &Owner) -> Result<Option<Owner>> {
        let path = format!("{}/{}", Kind::Lease.path(&self.config.namespace), owner.name);
        let body = Bytes::from(renewal(self.config.now()).to_string());
        let body = Some((body, "application/merge-patch+json"));
        match self.client.done(Call { method: Method::PATCH, path: &path, body }).await {
            Ok(()) => Ok(Some(owner.clone())),
            Err(refused) if refused.status == StatusCode::NOT_FOUND => {
                info!(lease = owner.name, "the lease in kubernetes is gone, making another");
                Ok(None)
            }
            Err(refused) => Err(refused.into()),
        }
    }

    async fn make(&self) -> Result<Owner> {
        let name = format!("stator-{}", InstanceId::random());
        let lease = lease(&name, self.config.ttl, self.config.pod.as_ref(), self.config.now());
        let path = Kind::Lease.path(&self.config.namespace);
        let body = Some((Bytes::from(lease.to_string()), JSON));
        let made: Object =
            self.client.call(Call { method: Method::POST, path: &path, body }).await?;
        Ok(Owner { name, uid: made.metadata.uid })
    }

    /// Removes Leases of processes that ended long ago; Kubernetes removes what they own. How old
    /// one is tell not the clocks of machines, which may differ, but the time in which it was not
    /// seen to change. A time in which we could not renew our own does not count: others could not
    /// either, and they renew theirs at different moments after it.
    async fn sweep(&self) -> Infallible {
        let mut seen = Seen::new();
        loop {
            if let Err(error) = self.remove_leftovers(&mut seen).await {
                debug!(%error, "cannot remove what ended processes left");
            }
            // Not all processes look at once.
            sleep(self.config.leftover_age.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
        }
    }

    async fn remove_leftovers(&self, seen: &mut Seen) -> Result<()> {
        let path = Kind::Lease.path(&self.config.namespace);
        let selector = Kind::Lease.selector(&super::Query::All);
        let list = format!("{path}?labelSelector={}", super::client::encode(&selector));
        let list: List = self.client.call(Call::get(&list)).await?;
        let (now, mut before) = (Instant::now(), std::mem::take(seen));
        if self.was_cut_off.swap(false, Relaxed) {
            before.clear();
        }
        for lease in &list.items {
            let version = &lease.metadata.resource_version;
            let known = before.remove(&lease.metadata.name).filter(|(known, _)| known == version);
            let known = known.unwrap_or_else(|| (version.clone(), now));
            seen.insert(lease.metadata.name.clone(), known);
        }
        let is_leftover = |lease: &&Object| {
            let age = self.config.leftover_age.max(lease.ttl().unwrap_or_default() * 10);
            seen.get(&lease.metadata.name).is_some_and(|(_, since)| now - *since >= age)
        };
        for lease in list.items.iter().filter(is_leftover).take(MAX_LEFTOVERS) {
            // Only as it was seen: who renews it meanwhile keeps it.
            let version = &lease.metadata.resource_version;
            let body = serde_json::json!({"preconditions": {"resourceVersion": version}});
            let body = Some((Bytes::from(body.to_string()), JSON));
            let path = format!("{path}/{}", lease.metadata.name);
            match self.client.done(Call { method: Method::DELETE, path: &path, body }).await {
                Ok(()) => info!(lease = lease.metadata.name, "removed what an ended process left"),
                // Others look as well.
                Err(Refused { status: StatusCode::CONFLICT | StatusCode::NOT_FOUND, .. }) => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        Ok(())
    }

    fn publish(&self, owner: Option<Owner>, end: Instant) {
        self.session.send_if_modified(|session| {
            session.end = owner.as_ref().map(|_| end);
            let is_new = session.owner != owner;
            session.owner = owner;
            is_new
        });
    }

    /// Takes the Lease out of the session when it ends without being renewed, whatever the keeper
    /// waits for at that time: nobody may think that its registration is held by then.
    async fn expire(&self) -> Infallible {
        let mut news = self.session.subscribe();
        loop {
            let end = news.borrow_and_update().end;
            tokio::select! {
                _ = news.changed() => {}
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => {
                    self.session.send_if_modified(|session| {
                        let is_over = session.end.is_some_and(|end| end <= Instant::now());
                        if is_over {
                            *session = Session::default();
                        }
                        is_over
                    });
                }
            }
        }
    }
}

/// Waits for a Lease.
pub(super) async fn ready(
    session: &mut watch::Receiver<Session>,
    limit: Duration,
) -> Result<Owner> {
    let found = timeout(limit, session.wait_for(|session| session.owner.is_some())).await;
    let found = found.map_err(|_| unavailable("cannot be reached"))?;
    let found = found.map_err(|_| unavailable("discovery has been shut down"))?;
    found.owner.clone().ok_or_else(|| unavailable("cannot be reached"))
}
