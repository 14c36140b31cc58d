//! A registration that is kept: taken, taken again when it is lost, and given back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result, Tasks};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Backoff, REGISTER_WAIT};
use crate::instance::{Instance, InstanceId};

/// Updates that wait for the store at the same time.
const COMMANDS: usize = 16;

/// A store's place for one instance.
#[async_trait]
pub(super) trait Record: Send + 'static {
    /// Writes the instance, for the first time or anew.
    async fn put(&mut self, instance: &Instance) -> Result<()>;

    /// Returns when what was put is no longer there, with the reason. Dropping the future
    /// changes nothing.
    async fn lost(&mut self) -> String;

    /// Removes the instance.
    async fn remove(&mut self) -> Result<()>;
}

/// The instances that this process keeps registered in a store; clones share them.
///
/// Two leases of one instance would write over one another, and the first that ends would take
/// the other's registration away.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Mutex<BTreeSet<InstanceId>>>);

/// The right to keep one instance registered; it ends with this value.
#[derive(Debug)]
struct Claim {
    id: InstanceId,
    kept: Kept,
}

impl Kept {
    fn claim(&self, id: InstanceId) -> Result<Claim> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            true => Ok(Claim { id, kept: self.clone() }),
            false => Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("instance {id}: this process has registered it already"),
            )),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.kept.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Whether the store holds the registration now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The store has not been reached yet.
    Pending,
    /// Watchers can see the instance as it was told last.
    Held,
    /// The store lost it or cannot be reached; it is being taken again.
    Lost,
}

/// A registration. Dropping it removes the instance as soon as the store allows;
/// [`Lease::revoke`] waits until that is done.
#[derive(Debug)]
pub struct Lease {
    id: InstanceId,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<LeaseState>,
}

#[derive(Debug)]
enum Command {
    Update(Box<Instance>, oneshot::Sender<Result<()>>),
    Revoke(oneshot::Sender<Result<()>>),
}

impl Lease {
    /// Returns whose lease it is.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Returns whether the store holds the registration now.
    pub fn state(&self) -> LeaseState {
        *self.state.borrow()
    }

    /// Returns the state as it changes.
    pub fn states(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Registers the instance as it is now: other adapters, a draining flag.
    ///
    /// Returns when watchers can see it. When the store is not there, or the future is dropped,
    /// the newest instance is what will be registered once it is.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if the instance is not valid or has
    /// another id or namespace; [`Unavailable`](ErrorKind::Unavailable) if the store is not there.
    pub async fn update(&self, instance: Instance) -> Result<()> {
        instance.to_json()?;
        if instance.id != self.id {
            return Err(Error::invalid(format!(
                "lease of instance {}: cannot update instance {}",
                self.id, instance.id
            )));
        }
        self.tell(|done| Command::Update(Box::new(instance), done)).await
    }

    /// Removes the instance and returns when no new watcher can see it.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) if the store cannot be reached. The instance is then
    /// removed in the background, or forgotten by the store after the process has ended.
    pub async fn revoke(self) -> Result<()> {
        self.tell(Command::Revoke).await
    }

    async fn tell(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command,
    ) -> Result<()> {
        let (done, answer) = oneshot::channel();
        let ended = |_| Error::new(ErrorKind::Unavailable, "discovery has been shut down");
        self.commands.send(command(done)).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }
}

/// Takes a registration and starts the task that keeps it.
pub(super) async fn keep(
    instance: Instance,
    record: impl Record,
    backoff: Backoff,
    kept: &Kept,
    tasks: &Tasks,
) -> Result<Lease> {
    instance.to_json()?;
    let id = instance.id;
    let claim = kept.claim(id)?;
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (state, mut states) = watch::channel(LeaseState::Pending);
    let keeper = Keeper { instance, record, backoff, state, inbox, claim };
    tasks.spawn("discovery lease", keeper.run());
    let held = states.wait_for(|state| *state == LeaseState::Held);
    match timeout(REGISTER_WAIT, held).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => {
            return Err(Error::new(ErrorKind::Unavailable, "discovery has been shut down"));
        }
        Err(_) => warn!(instance = %id, "registration waits for the discovery store"),
    }
    Ok(Lease { id, commands, state: states })
}

struct Keeper<R> {
    instance: Instance,
    record: R,
    backoff: Backoff,
    state: watch::Sender<LeaseState>,
    inbox: mpsc::Receiver<Command>,
    claim: Claim,
}

/// What made a keeper stop waiting.
enum Next {
    Retry,
    Command(Option<Command>),
    Lost(String),
}

impl<R: Record> Keeper<R> {
    async fn run(mut self) {
        let mut failures = 0;
        let mut next = Next::Retry;
        loop {
            let mut answer = None;
            match next {
                Next::Retry => {}
                Next::Lost(reason) => {
                    warn!(instance = %self.instance.id, reason, "registration lost, taken again");
                    self.state.send_replace(LeaseState::Lost);
                }
                Next::Command(Some(Command::Update(instance, done))) => {
                    if instance.namespace != self.instance.namespace {
                        let text = "lease: an update cannot change the namespace";
                        done.send(Err(Error::invalid(text))).ok();
                        next = self.wait(failures).await;
                        continue;
                    }
                    self.instance = *instance;
                    answer = Some(done);
                }
                Next::Command(Some(Command::Revoke(done))) => return self.forget(Some(done)).await,
                Next::Command(None) => return self.forget(None).await,
            }
            let outcome = self.record.put(&self.instance).await;
            failures = self.note(&outcome, failures);
            if let Some(done) = answer {
                done.send(outcome).ok();
            }
            next = self.wait(failures).await;
        }
    }

    /// Notes how an attempt ended; returns the failures in a row.
    fn note(&self, outcome: &Result<()>, failures: u32) -> u32 {
        let id = self.instance.id;
        let Err(error) = outcome else {
            debug!(instance = %id, "registered");
            self.state.send_replace(LeaseState::Held);
            return 0;
        };
        if failures == 0 {
            warn!(instance = %id, %error, "cannot register, trying again");
        }
        self.state.send_if_modified(|state| {
            let is_held = *state == LeaseState::Held;
            if is_held {
                *state = LeaseState::Lost;
            }
            is_held
        });
        failures.saturating_add(1)
    }

    /// Waits for a command, and for the next attempt or the loss of what is held.
    async fn wait(&mut self, failures: u32) -> Next {
        tokio::select! {
            command = self.inbox.recv() => Next::Command(command),
            () = self.backoff.sleep(failures), if failures > 0 => Next::Retry,
            reason = self.record.lost(), if failures == 0 => Next::Lost(reason),
        }
    }

    /// Removes the instance, trying until the store lets it or discovery ends: other instances
    /// may keep the process's lease alive, so that the store would never forget this one.
    async fn forget(mut self, done: Option<oneshot::Sender<Result<()>>>) {
        let mut outcome = self.record.remove().await;
        let mut failures = 0;
        let claim = outcome.is_err().then_some(self.claim);
        if let Some(done) = done {
            done.send(outcome.clone()).ok();
        }
        while let Err(error) = outcome {
            failures += 1;
            debug!(instance = %self.instance.id, %error, failures, "could not deregister");
            self.backoff.sleep(failures).await;
            outcome = self.record.remove().await;
        }
        drop(claim);
    }
}
