//! Chooses a worker of a model for each request, and another one when the first does not take it.
//!
//! Whatever fails before the first output is tried elsewhere, as long as there is somebody who was
//! not asked yet: nobody has seen anything of the answer. When there is nobody, a request waits for
//! a worker to come. What fails later is the affair of [`Migrate`](super::Migrate).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use cluster::instance::InstanceId;
use cluster::request::WAY_LOST;
use engine::{Context, Engine, Error, ErrorKind, OutputStream, Request, Result};
use prometheus_client::metrics::gauge::Gauge;
use router::{KvConfig, Overlap, Policy, RouteRequest, WorkerId, WorkerState};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

mod candidate;
mod prefixes;
mod routable;
mod routed;
#[cfg(test)]
mod tests;
mod wait_limiter;

use super::disaggregate::WorkerGroup;
use candidate::InFlight;
pub(crate) use candidate::{Candidate, Engines};
pub(crate) use prefixes::Prefixes;
use prefixes::Prompt;
use routable::Routable;
use routed::{RetryState, Routed, silent};
use wait_limiter::WaitLimiter;

/// Who may be asked now. It is read for every request, so reading is cheap.
pub(crate) trait Workers: Send + Sync + 'static {
    /// Returns the workers of the model. One that stays is the same [`Candidate`] each time,
    /// since that counts what is in flight.
    fn candidates(&self) -> Arc<[Arc<Candidate>]>;
    /// Hears that the connection to a worker was found dead.
    fn suspect(&self, id: InstanceId);
    /// Returns a receiver that is told when there are other workers, or one is well again.
    fn changes(&self) -> watch::Receiver<()>;
}

/// Which worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum RouterMode {
    /// The one that was chosen longest ago.
    #[default]
    RoundRobin,
    /// Any one.
    Random,
    /// The one of two drawn ones that has fewer requests.
    PowerOfTwo,
    /// The one with the fewest requests: those of this frontend in flight, and those of others as
    /// far as is known. Among equals the one that was chosen longest ago.
    LeastLoaded,
    /// The one where a prompt costs least, by what it has cached and by its load. A request without
    /// tokens goes to the least loaded one.
    Kv(KvConfig),
}

impl RouterMode {
    fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::RoundRobin => Box::new(router::RoundRobin),
            Self::Random => Box::new(router::Random),
            Self::PowerOfTwo => Box::new(router::PowerOfTwo),
            Self::LeastLoaded => Box::new(router::LeastLoaded),
            Self::Kv(config) => Box::new(router::Kv { config }),
        }
    }
}

/// Which tensor requests are tried elsewhere when a worker had accepted them and was lost before
/// their first output. It may have begun them, so a model with effects of its own would have them
/// twice. Prompts and embeddings are always tried elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RetryAccepted {
    /// None.
    Never,
    /// Those that are not part of a sequence.
    #[default]
    Stateless,
    /// All: the sequence's own state is kept here, and changes with the answer alone.
    Always,
}

/// How workers are chosen and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RouteConfig {
    pub mode: RouterMode,
    /// The most workers that one request is given to before its first output, at least 1;
    /// default 3.
    pub max_attempts: u32,
    pub retry_accepted: RetryAccepted,
    /// How long a request waits for a worker when there is none; default: not at all.
    pub worker_wait: Duration,
    /// The most requests that wait so at the same time, of one model; more are refused.
    /// Default 1000.
    pub max_waiting: u32,
}

impl Default for RouteConfig {
    fn default() -> Self {
        let (mode, retry_accepted) = Default::default();
        let (worker_wait, max_waiting) = (Duration::ZERO, 1000);
        Self { mode, max_attempts: 3, retry_accepted, worker_wait, max_waiting }
    }
}

/// What a route counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteMetrics {
    /// Requests that a worker has.
    pub calls: Gauge,
    /// Requests that wait for a worker to come.
    pub waiting: Gauge,
}

/// The workers of one model as one engine. Clones are the same engine.
#[derive(Clone)]
pub(crate) struct Route {
    inner: Arc<Inner>,
    /// Whether requests wait for a worker when there is none.
    is_patient: bool,
}

struct Inner {
    model: String,
    workers: Arc<dyn Workers>,
    config: RouteConfig,
    policy: Box<dyn Policy>,
    prefixes: Option<Arc<Prefixes>>,
    /// Counts choices, from 1; workers note when they were chosen last.
    choices: AtomicU64,
    calls: Gauge,
    limiter: WaitLimiter,
}

impl Route {
    /// Makes the engine of a model, which errors name.
    pub(crate) fn new(
        model: impl Into<String>,
        workers: Arc<dyn Workers>,
        config: RouteConfig,
        metrics: RouteMetrics,
    ) -> Self {
        let limiter = WaitLimiter::new(config.worker_wait, config.max_waiting, metrics.waiting);
        let (model, choices, calls) = (model.into(), AtomicU64::new(1), metrics.calls);
        let (policy, prefixes) = (config.mode.policy(), None);
        let inner = Inner { model, workers, config, policy, prefixes, choices, calls, limiter };
        Self { inner: Arc::new(inner), is_patient: true }
    }

    /// Lets the policy know which prompts the workers have cached, if it wants to.
    #[must_use]
    pub(crate) fn with_prefixes(mut self, prefixes: Option<Arc<Prefixes>>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner)
            && inner.policy.uses_prefixes()
        {
            inner.prefixes = prefixes;
        }
        self
    }
}

impl WorkerGroup for Route {
    fn is_ready(&self) -> bool {
        self.inner.workers.candidates().iter().any(|candidate| candidate.takes_work())
    }

    fn at_once(&self) -> Self {
        Self { is_patient: false, ..self.clone() }
    }
}

#[async_trait]
impl<R: Routable> Engine<R> for Route {
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        let prefixes = self.inner.prefixes.as_ref();
        let prompt = prefixes.zip(request.prompt()).map(|(known, tokens)| known.prompt(tokens));
        let search = Search::new(self.clone(), context, prompt);
        Ok(Box::pin(Routed::new(search.place(request).await?)))
    }
}

/// A request that a worker accepted.
struct Placed<R: Request> {
    stream: OutputStream<R>,
    worker: InFlight,
    silence: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How to ask another one; none: there is nobody, or it is not allowed.
    again: Option<Box<RetryState<R>>>,
    route: Arc<Inner>,
}

/// The search for a worker that takes a request.
struct Search {
    route: Arc<Inner>,
    is_patient: bool,
    context: Context,
    /// The prompt, if the policy looks at prompts.
    prompt: Option<Prompt>,
    /// Who was asked. One that was away and is back is another candidate, and may be asked again.
    tried: Vec<Arc<Candidate>>,
    /// When waiting for a worker ends, once it has begun.
    until: Option<Instant>,
    /// How often it was lost on its way to or from a worker.
    losses: u32,
    /// What the last one said, and what those said that were busy.
    failed: Option<Error>,
    busy: Option<Error>,
}

impl Search {
    fn new(route: Route, context: Context, prompt: Option<Prompt>) -> Self {
        let Route { inner: route, is_patient } = route;
        let is_patient = is_patient && !route.limiter.is_none();
        let (tried, until, losses, failed, busy) = Default::default();
        Self { route, is_patient, context, prompt, tried, until, losses, failed, busy }
    }

    /// Gives the request to one worker after the other until one accepts it.
    ///
    /// Errors: what a worker says that others would say as well; unavailable or overloaded if
    /// nobody is left.
    async fn place<R: Routable>(mut self, mut request: R) -> Result<Placed<R>> {
        loop {
            let Some((worker, is_last)) = self.choose(request.places()) else {
                if self.is_exhausted() || self.busy.is_some() || !self.wait().await {
                    return Err(self.verdict());
                }
                continue;
            };
            let spare = request.clone();
            let engine = R::engine(&worker.candidate().engines);
            let mut silence = Box::pin(worker.candidate().silence());
            let answer = tokio::select! {
                answer = engine.call(request, self.context.clone()) => answer,
                () = &mut silence => Err(silent()),
            };
            let error = match answer {
                Ok(stream) => return Ok(self.placed((stream, silence), worker, (spare, is_last))),
                Err(error) => error,
            };
            if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded) {
                return Err(error);
            }
            let is_last = is_last && !self.is_on_its_way(&error);
            self.note(worker.candidate(), error);
            if is_last {
                return Err(self.verdict());
            }
            request = spare;
        }
    }

    fn placed<R: Routable>(
        self,
        (stream, silence): (OutputStream<R>, Pin<Box<WaitForCancellationFutureOwned>>),
        worker: InFlight,
        (spare, is_last): (R, bool),
    ) -> Placed<R> {
        let (route, setting) = (self.route.clone(), self.route.config.retry_accepted);
        let spare = Some(spare).filter(|spare| spare.may_be_repeated(setting));
        let again = spare.map(|request| Box::new(RetryState { request, search: self, is_last }));
        Placed { stream, worker, silence, again, route }
    }

    /// Chooses a worker that was not asked yet; says as well whether it is the last one.
    fn choose(&mut self, places: u64) -> Option<(InFlight, bool)> {
        if self.is_exhausted() {
            return None;
        }
        let candidates = self.route.workers.candidates();
        let open: Vec<_> = open(&candidates, &self.tried).collect();
        let worker = self.route.choose(&open, places, self.prompt.as_ref())?;
        let others = open.len() - 1;
        self.tried.push(worker.candidate().clone());
        let is_alone = others == 0 && !self.is_patient;
        Some((worker, is_alone || self.is_exhausted()))
    }

    /// Returns whether the request was lost on its way to or from a worker, which costs no attempt,
    /// and not too often yet.
    fn is_on_its_way(&self, error: &Error) -> bool {
        is_way_lost(error) && self.losses < MAX_WAY_LOSSES
    }

    /// Returns whether as many workers were asked as may be.
    fn is_exhausted(&self) -> bool {
        self.tried.len() as u64 >= u64::from(self.route.config.max_attempts.max(1))
    }

    /// Waits until there is a worker that was not asked yet; returns whether there is.
    async fn wait(&mut self) -> bool {
        if !self.is_patient {
            return false;
        }
        let Some(_place) = self.route.limiter.enter() else { return false };
        let until = *self.until.get_or_insert_with(|| self.route.limiter.end());
        let mut changes = self.route.workers.changes();
        loop {
            let candidates = self.route.workers.candidates();
            if open(&candidates, &self.tried).next().is_some() {
                return true;
            }
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }

    /// Notes why a worker did not answer. One that the request did not come to may be asked again.
    fn note(&mut self, candidate: &Candidate, error: Error) {
        if self.is_on_its_way(&error) {
            self.losses += 1;
            self.tried.retain(|one| one.id != candidate.id);
        }
        self.route.mind(candidate, &error);
        match error.kind() {
            ErrorKind::Overloaded => {
                let earlier = self.busy.as_ref().and_then(Error::retry_after);
                let soonest = earlier.into_iter().chain(error.retry_after()).min();
                self.busy = Some(match soonest {
                    Some(wait) => error.with_retry_after(wait),
                    None => error,
                });
            }
            _ => self.failed = Some(error),
        }
    }

    /// Returns the error of a request that nobody is left for. A worker that is busy can be
    /// reached, so if there was one the request may be tried again soon. What a worker itself says
    /// is for the client, how a connection failed is not.
    fn verdict(self) -> Error {
        let model = &self.route.model;
        if let Some(busy) = self.busy {
            return quoting(&format!("all workers of model `{model}` are busy"), busy);
        }
        match self.failed {
            Some(said) if said.code().is_some() && !is_way_lost(&said) => {
                quoting(&format!("no worker of model `{model}` takes the request"), said)
            }
            cause => {
                let text = format!("no worker of model `{model}` is reachable");
                let error = Error::new(ErrorKind::Unavailable, text);
                match cause {
                    Some(cause) => error.with_source(cause),
                    None => error,
                }
            }
        }
    }
}

/// Returns whether what carried the request was lost, and not the worker.
fn is_way_lost(error: &Error) -> bool {
    error.code() == Some(WAY_LOST)
}

/// Returns an error that passes on what a worker said.
fn quoting(what: &str, said: Error) -> Error {
    let mut error = Error::new(said.kind(), format!("{what}: {}", said.message()));
    if let Some(code) = said.code() {
        error = error.with_code(code.to_owned());
    }
    if let Some(wait) = said.retry_after() {
        error = error.with_retry_after(wait);
    }
    error.with_source(said)
}

impl Inner {
    /// Chooses one of the workers that are open to the request.
    fn choose(
        &self,
        open: &[&Arc<Candidate>],
        places: u64,
        prompt: Option<&Prompt>,
    ) -> Option<InFlight> {
        let now = self.choices.fetch_add(1, Relaxed);
        let known = self.prefixes.as_ref().zip(prompt);
        let found = known.map(|(prefixes, prompt)| prefixes.find(prompt)).unwrap_or_default();
        let request = prompt.map_or_else(RouteRequest::default, |prompt| prompt.request);
        let mut rng = fastrand::Rng::new();
        // Two requests at once may see the same worker as the best: the second looks again. Each
        // such round is another request's success, and after a few of them any choice is as good.
        for round in 1.. {
            let state = |one: &&Arc<Candidate>| {
                let held = found.each_ref().map(|found| found.of(WorkerId(one.id.0)));
                one.state(held.into_iter().max_by_key(Overlap::blocks).unwrap_or_default())
            };
            let states: Vec<WorkerState> = open.iter().map(state).collect();
            let chosen = self.policy.choose(&request, &states, &mut rng)?.chosen;
            let (best, state) = (open[chosen], &states[chosen]);
            if best.choose(state.last_chosen, now) || round == MAX_ROUNDS {
                let load = prompt.map(|prompt| prompt.load(state.overlap.blocks()));
                if let Some((prefixes, prompt)) = known {
                    prefixes.routed(state.id, prompt);
                }
                let calls = self.calls.clone();
                return Some(InFlight::begin(Arc::clone(best), places, calls, load));
            }
        }
        None
    }

    /// Tells the membership of a worker whose connection died. One that says why it refuses is
    /// alive.
    fn mind(&self, candidate: &Candidate, error: &Error) {
        if error.kind() == ErrorKind::Unavailable && error.code().is_none() {
            self.workers.suspect(candidate.id);
        }
    }
}

/// Returns who takes work and was not asked yet.
fn open<'a>(
    candidates: &'a [Arc<Candidate>],
    tried: &'a [Arc<Candidate>],
) -> impl Iterator<Item = &'a Arc<Candidate>> {
    let is_tried = |one: &Arc<Candidate>| tried.iter().any(|other| Arc::ptr_eq(one, other));
    candidates.iter().filter(move |one| one.takes_work() && !is_tried(one))
}

/// How often a choice is made anew because another request made the same one.
const MAX_ROUNDS: u32 = 8;

/// How often a request is tried again because what carried it was lost.
const MAX_WAY_LOSSES: u32 = 16;
