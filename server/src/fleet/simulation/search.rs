//! The searches of requests for a worker: one that ends without a worker has asked as many as it
//! may, or there was nobody else, and it waited for somebody as long as it has to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use cluster::instance::InstanceId;
use engine::{Context, Engine, Error, ErrorKind, GenerateRequest, OutputStream, Result};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::worker::Fate;
use super::world::World;
use crate::pipeline::{Candidate, Route, RouteConfig};

/// The searches of a world, by the request's name and their number.
#[derive(Default)]
pub(super) struct Searches(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Who can be asked now.
    view: Vec<(InstanceId, Weak<Candidate>)>,
    open: BTreeMap<String, Search>,
}

/// What a search did so far.
#[derive(Default)]
struct Search {
    /// Who was asked. One that was away and is back is another one.
    tried: Vec<Weak<Candidate>>,
    /// Whether the one that was asked last was the last one that there was.
    was_last: bool,
    /// Whether one has the request now.
    is_asking: bool,
    was_busy: bool,
    /// Since when it has to wait, as far as it knows.
    alone_since: Option<Instant>,
}

impl Search {
    fn is_alone(&self, view: &[(InstanceId, Weak<Candidate>)]) -> bool {
        let is_tried = |one: &Weak<Candidate>| self.tried.iter().any(|other| one.ptr_eq(other));
        view.iter().all(|(_, one)| is_tried(one))
    }

    fn look(&mut self, view: &[(InstanceId, Weak<Candidate>)]) {
        if !self.is_asking && self.is_alone(view) {
            self.alone_since.get_or_insert_with(Instant::now);
        }
    }

    /// Returns whether it may end without a worker now.
    fn may_end(&self, view: &[(InstanceId, Weak<Candidate>)], config: &RouteConfig) -> bool {
        if self.tried.len() >= config.max_attempts as usize {
            return true;
        }
        let is_alone = self.is_alone(view);
        if config.worker_wait.is_zero() {
            return is_alone || self.was_last;
        }
        let waited = self.alone_since.map(|since| since.elapsed());
        is_alone && (self.was_busy || waited.is_some_and(|waited| waited >= config.worker_wait))
    }
}

impl Searches {
    /// A check that failed is told once, and not by everything that ends after it.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears who can be asked from now on.
    pub(super) fn see(&self, candidates: &[Arc<Candidate>]) {
        let mut known = self.lock();
        let Known { view, open } = &mut *known;
        let seen = candidates.iter().map(|one| (one.id, Arc::downgrade(one)));
        *view = seen.collect();
        open.values_mut().for_each(|search| search.look(view));
    }

    fn begin(&self, name: &str) {
        let mut known = self.lock();
        let mut search = Search::default();
        search.look(&known.view);
        known.open.insert(name.to_owned(), search);
    }

    /// Hears that a search asks a worker, which has to be one that it may ask.
    pub(super) fn ask(&self, name: &str, worker: InstanceId) {
        let mut known = self.lock();
        let Known { view, open } = &mut *known;
        let (_, asked) = view.iter().find(|(id, _)| *id == worker).expect("it is a candidate");
        let search = open.get_mut(name).unwrap();
        assert!(!search.tried.iter().any(|one| one.ptr_eq(asked)), "{worker} is asked twice");
        search.tried.push(asked.clone());
        search.is_asking = true;
        search.was_last = search.is_alone(view);
    }

    /// Hears that the worker that was asked does not have the request any more.
    pub(super) fn hear(&self, name: &str, fate: Fate) {
        let mut known = self.lock();
        let Known { view, open } = &mut *known;
        // The frontend may have lost interest.
        let Some(search) = open.get_mut(name) else { return };
        search.is_asking = false;
        search.was_busy |= fate == Fate::Busy;
        search.look(view);
    }

    fn end(&self, name: &str) {
        self.lock().open.remove(name);
    }

    /// Checks that a search may end as it does.
    fn justify(&self, name: &str, error: &Error, config: &RouteConfig) {
        let known = self.lock();
        let search = &known.open[name];
        assert_eq!(error.kind() == ErrorKind::Overloaded, search.was_busy, "{name}: {error}");
        assert!(search.may_end(&known.view, config), "{name}: {error}: {search:?}");
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search")
            .field("tried", &self.tried.len())
            .field("was_last", &self.was_last)
            .field("waited", &self.alone_since.map(|since| since.elapsed()))
            .finish_non_exhaustive()
    }
}

/// The route, with its searches watched: each call is one, with a name of its own.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) route: Route,
    pub(super) world: Arc<World>,
    pub(super) config: RouteConfig,
    /// Counts the request's searches, and those that ended without a worker.
    pub(super) counts: Arc<[AtomicUsize; 2]>,
}

impl Watched {
    /// Returns whether a search of the request ended without a worker.
    pub(super) fn has_failed(&self) -> bool {
        self.counts[1].load(Relaxed) > 0
    }
}

/// Returns whether a search failed, and not the worker that it found.
pub(super) fn found_nobody(error: &Error) -> bool {
    let is_nobody = error.message().contains("no worker of model `m`");
    error.kind() == ErrorKind::Overloaded || error.kind() == ErrorKind::Unavailable && is_nobody
}

/// A search, as long as this lives.
struct Open(Watched, String);

impl Open {
    fn judge(&self, error: &Error) {
        let Self(Watched { world, config, counts, .. }, name) = self;
        if found_nobody(error) {
            world.searches.justify(name, error, config);
            counts[1].fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.world.searches.end(&self.1);
    }
}

#[async_trait]
impl Engine<GenerateRequest> for Watched {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let number = self.counts[0].fetch_add(1, Relaxed);
        let name = format!("{}, search {number}", context.id());
        self.world.searches.begin(&name);
        let open = Open(self.clone(), name.clone());
        let answer = self.route.call(request, Context::new(name)).await;
        let stream = answer.inspect_err(|error| open.judge(error))?;
        Ok(Box::pin(stream.inspect(move |item| {
            if let Err(error) = item {
                open.judge(error);
            }
        })))
    }
}
