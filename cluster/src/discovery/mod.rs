//! Finding one another: who registers is seen by who watches, whatever the store.
//!
//! The store may fail at any time and for any time. A watcher then keeps its last view and says
//! so ([`Event::Stale`]); a registration that was lost is taken again by itself. Nothing here ends
//! the process.
//!
//! - [`Mem`]: within one process.
//! - [`File`]: between the processes of one machine, through a folder.
//! - [`Etcd`]: between machines.
//! - [`Kubernetes`]: in a cluster, by its own API server.
//! - [`Static`]: workers at known addresses, which are asked what they are.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, Result};

use crate::instance::{Instance, InstanceId, Namespace};

mod backoff;
pub mod etcd;
pub mod file;
pub mod kubernetes;
mod lease;
pub mod mem;
pub mod static_list;
mod view;
mod watch;

pub use backoff::Backoff;
pub use etcd::Etcd;
pub use file::File;
pub use kubernetes::Kubernetes;
pub use lease::{Lease, LeaseState};
pub use mem::Mem;
pub use static_list::{Describe, Static};
pub use view::View;
pub use watch::{WATCH_BUFFER, Watch};

/// The longest time that [`Discovery::register`] waits for the store, before it leaves the
/// registration to the background.
pub const REGISTER_WAIT: Duration = Duration::from_secs(5);

/// A store of registrations.
#[async_trait]
pub trait Discovery: Send + Sync + std::fmt::Debug {
    /// Registers an instance until the lease is revoked or dropped.
    ///
    /// Returns when watchers can see it, or after [`REGISTER_WAIT`] with a lease that is
    /// [`LeaseState::Pending`]: the store is tried on and on in the background.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if the instance is not valid. A store
    /// that cannot be reached is no error.
    async fn register(&self, instance: Instance) -> Result<Lease>;

    /// Watches the instances that a query selects, beginning with the present ones.
    fn watch(&self, query: Query) -> Watch;
}

/// Which instances a watcher wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Query {
    /// Those of every namespace.
    #[default]
    All,
    /// Those of these namespaces.
    Namespaces(Vec<Namespace>),
    /// Those of the namespaces that begin with a text.
    Prefix(String),
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The instance is there, or is no longer as it was told before.
    Put(Arc<Instance>),
    /// The instance is gone.
    Remove(InstanceId),
    /// What was there when the watch began has been told. Comes once.
    Synced,
    /// The store cannot be reached: what was told is the last known view, and stays it.
    Stale,
    /// The store is there again, and what changed meanwhile has been told. Comes once after
    /// each [`Event::Stale`], and never before [`Event::Synced`].
    Fresh,
}

impl Query {
    /// Makes a query for namespaces that begin with `prefix`.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if no namespace can begin so.
    pub fn prefix(prefix: &str) -> Result<Self> {
        match Namespace::is_spelled_with(prefix) {
            true => Ok(Self::Prefix(prefix.to_owned())),
            false => Err(Error::invalid(format!(
                "namespace prefix: expected letters, digits, `.`, `_` or `-`, got {prefix:?}"
            ))),
        }
    }

    /// Returns whether the query selects a namespace.
    pub fn selects(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(list) => list.contains(namespace),
            Self::Prefix(prefix) => namespace.as_str().starts_with(prefix),
        }
    }
}
