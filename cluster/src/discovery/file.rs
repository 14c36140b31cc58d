//! Discovery between the processes of one machine, through a folder.
//!
//! Each process that registers has a folder in it, `<owner>/`, with a file `lock` that it holds
//! locked for as long as it lives, and one file per instance. A lock ends with its process however
//! that ends, so a reader knows at once who is dead, no time-to-live is needed and no ghosts stay:
//! whoever finds a free lock removes the folder. Owners' names are random and never used again,
//! which makes that safe. One lock serves all instances of a process, so that hundreds of them
//! cost one descriptor.
//!
//! Readers poll: a lock that ends raises no event of the file system, so that watching for events
//! would not make polling superfluous.
//!
//! The folder has to be on a file system with locks, and who may write to it may register workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{Error, ErrorKind, Result, Tasks};
use tokio::sync::OnceCell;
use tokio::sync::watch::{Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::lease::{self, Kept, Record};
use super::watch::{self, Change, Source};
use super::{Backoff, Discovery, Lease, Query, Watch};
use crate::instance::{Instance, InstanceId};

mod owner;
mod scan;

use owner::Owner;
use scan::Scan;

/// The name of the file in an owner's folder that is locked while the owner lives.
const LOCK: &str = "lock";
/// How often an owner looks whether its files are still there, in polls.
const CHECK_POLLS: u32 = 5;

/// Where the folder is and how often it is read.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder; it is made if it is not there.
    pub folder: PathBuf,
    /// The time between two looks at the folder: 10 ms to 1 min, default 200 ms.
    pub poll: Duration,
    /// The waits between attempts while the folder cannot be read or written.
    pub backoff: Backoff,
    /// How long after an outage those who have not registered again are kept; default 3 s.
    pub grace: Duration,
}

impl Config {
    /// Makes the default configuration for a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            poll: Duration::from_millis(200),
            backoff: Backoff { longest: Duration::from_secs(1), ..Backoff::default() },
            grace: Duration::from_secs(3),
        }
    }
}

/// A folder of registrations; clones share this process's part of it.
#[derive(Clone, Debug)]
pub struct File {
    config: Arc<Config>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Shared {
    owner: Owner,
    /// Counts how often files of ours were found missing.
    losses: Sender<u64>,
    has_check: OnceCell<()>,
    kept: Kept,
}

impl File {
    /// Makes the discovery of a folder. Nothing is written before something registers.
    ///
    /// # Errors
    /// [`InvalidRequest`](engine::ErrorKind::InvalidRequest) if a setting is out of its bounds.
    pub fn new(config: Config, tasks: &Tasks) -> Result<Self> {
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(60));
        if config.poll < least || config.poll > most {
            return Err(Error::invalid(format!(
                "file discovery: poll: expected {least:?} to {most:?}, got {:?}",
                config.poll
            )));
        }
        let owner = Owner::new(config.folder.clone());
        let (losses, has_check) = (channel(0).0, OnceCell::new());
        let shared = Shared { owner, losses, has_check, kept: Kept::default() };
        Ok(Self { config: Arc::new(config), shared: Arc::new(shared), tasks: tasks.clone() })
    }

    /// Starts the task that looks after this process's files, once.
    async fn start_check(&self) {
        let start = || async {
            let (shared, pause) = (self.shared.clone(), self.config.poll * CHECK_POLLS);
            self.tasks.spawn("discovery files", async move {
                loop {
                    sleep(pause).await;
                    let owner = shared.clone();
                    let is_whole = spawn_blocking(move || owner.owner.is_whole()).await;
                    if !is_whole.unwrap_or(true) {
                        shared.losses.send_modify(|count| *count += 1);
                    }
                }
            });
        };
        self.shared.has_check.get_or_init(start).await;
    }
}

#[async_trait]
impl Discovery for File {
    async fn register(&self, instance: Instance) -> Result<Lease> {
        self.start_check().await;
        let place = Place { shared: self.shared.clone(), id: instance.id };
        let kept = &self.shared.kept;
        lease::keep(instance, place, self.config.backoff, kept, &self.tasks).await
    }

    fn watch(&self, query: Query) -> Watch {
        let scan = Some(Scan::new(self.config.folder.clone()));
        let reader = Reader { poll: self.config.poll, scan, has_listed: false };
        watch::start(query, reader, self.config.backoff, self.config.grace, &self.tasks)
    }
}

/// The file of one instance.
struct Place {
    shared: Arc<Shared>,
    id: InstanceId,
}

impl Place {
    /// Works on the folder off the runtime.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Owner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        off_runtime(move || work(&shared.owner)).await
    }
}

async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = |error| Error::internal("file discovery: work did not end").with_source(error);
    spawn_blocking(work).await.map_err(ended)?
}

#[async_trait]
impl Record for Place {
    async fn put(&mut self, instance: &Instance) -> Result<()> {
        let (id, json) = (self.id, instance.to_json()?);
        self.work(move |owner| owner.write(id, &json)).await
    }

    async fn lost(&mut self) -> String {
        let mut losses = self.shared.losses.subscribe();
        let id = self.id;
        loop {
            if matches!(self.work(move |owner| Ok(owner.has(id))).await, Ok(false)) {
                return "its file is gone".into();
            }
            if losses.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn remove(&mut self) -> Result<()> {
        let id = self.id;
        self.work(move |owner| owner.remove(id)).await
    }
}

/// Reads the folder for one watcher.
struct Reader {
    poll: Duration,
    /// What is known of the folder; away while it is read.
    scan: Option<Scan>,
    has_listed: bool,
}

#[async_trait]
impl Source for Reader {
    async fn next(&mut self) -> Result<Change> {
        if self.has_listed {
            sleep(self.poll).await;
        }
        let Some(mut scan) = self.scan.take() else {
            return Err(Error::internal("file discovery: the reader was interrupted"));
        };
        let has_listed = self.has_listed;
        let read = move || {
            let change = scan.read().map(|is_new| match is_new || !has_listed {
                true => Change::Listing(scan.listing()),
                false => Change::Changes(Vec::new()),
            });
            Ok((change, scan))
        };
        let (change, scan) = off_runtime(read).await?;
        self.scan = Some(scan);
        self.has_listed = change.is_ok();
        change
    }
}

/// Makes an error of a failed operation on a path.
fn failed(what: &str, path: &std::path::Path, error: std::io::Error) -> Error {
    let text = format!("file discovery: cannot {what} {}: {error}", path.display());
    Error::new(ErrorKind::Unavailable, text).with_source(error)
}
