//! Who is asked, how often, and what is said when nobody is left.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use engine::testing::{Function, Step};
use engine::{
    EmbedRequest, EmbedTextRequest, GenerateRequest, InferRequest, Sequence, SequenceId,
    SequenceState, StopConditions, TextRequest, WorkerLoad,
};
use futures_util::StreamExt;

use super::*;

mod kv;

struct Fleet {
    candidates: Mutex<Arc<[Arc<Candidate>]>>,
    suspects: Mutex<Vec<u64>>,
    changes: watch::Sender<()>,
}

impl Fleet {
    fn set(&self, candidates: Vec<Arc<Candidate>>) {
        *self.candidates.lock().unwrap() = candidates.into();
        self.changes.send_replace(());
    }
}

impl Workers for Fleet {
    fn candidates(&self) -> Arc<[Arc<Candidate>]> {
        self.candidates.lock().unwrap().clone()
    }

    fn suspect(&self, id: InstanceId) {
        self.suspects.lock().unwrap().push(id.0);
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

fn fleet(candidates: Vec<Arc<Candidate>>) -> Arc<Fleet> {
    let candidates = Mutex::new(candidates.into());
    Arc::new(Fleet { candidates, suspects: Mutex::default(), changes: watch::Sender::new(()) })
}

type Answer = fn() -> Vec<Step<()>>;

/// A worker that does the same with each kind of request, and how often it was asked.
fn worker(id: u64, refusal: Option<Error>, answer: Answer) -> (Arc<Candidate>, Arc<AtomicUsize>) {
    fn engine<R: Request>(
        refusal: Option<Error>,
        answer: Answer,
        asked: Arc<AtomicUsize>,
    ) -> Arc<dyn Engine<R>>
    where
        R::Output: Default + Send,
    {
        Arc::new(Function(move |_: R, _: Context| {
            asked.fetch_add(1, Relaxed);
            if let Some(error) = refusal.clone() {
                return Err(error);
            }
            let items = answer().into_iter().map(|step| match step {
                Step::Error(error) => Err(error),
                _ => Ok(R::Output::default()),
            });
            let items: Vec<_> = items.collect();
            Ok(Box::pin(futures_util::stream::iter(items)) as OutputStream<R>)
        }))
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let engines = Engines {
        generate: engine::<GenerateRequest>(refusal.clone(), answer, asked.clone()),
        infer: engine::<InferRequest>(refusal.clone(), answer, asked.clone()),
        embed: engine::<EmbedRequest>(refusal.clone(), answer, asked.clone()),
        text: engine::<TextRequest>(refusal.clone(), answer, asked.clone()),
        embed_text: engine::<EmbedTextRequest>(refusal, answer, asked.clone()),
    };
    (Arc::new(Candidate::new(InstanceId(id), engines)), asked)
}

fn text() -> TextRequest {
    TextRequest { form: engine::TextForm::Chat, body: Default::default() }
}

fn well() -> Vec<Step<()>> {
    vec![Step::Output(())]
}

fn lost_before() -> Vec<Step<()>> {
    vec![Step::Error(dead())]
}

fn lost_after() -> Vec<Step<()>> {
    vec![Step::Output(()), Step::Error(dead())]
}

fn dead() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}

fn busy(wait_ms: u64) -> Error {
    let error = Error::new(ErrorKind::Overloaded, "the queue is full").with_code("busy");
    error.with_retry_after(Duration::from_millis(wait_ms))
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(vec![1], StopConditions::after(1))
}

fn embed() -> EmbedRequest {
    EmbedRequest { tokens: vec![1].into(), adapter: None }
}

fn in_sequence() -> InferRequest {
    let (id, state) = (SequenceId::Number(1), SequenceState::default());
    let sequence = Some(Sequence { id, start: true, end: false, state });
    InferRequest { sequence, ..InferRequest::default() }
}

async fn ask<R: Routable>(route: &Route, request: R) -> Result<usize> {
    let mut stream = route.call(request, Context::new("r")).await?;
    let mut outputs = 0;
    while let Some(output) = stream.next().await {
        output?;
        outputs += 1;
    }
    Ok(outputs)
}

fn route(fleet: &Arc<Fleet>, config: RouteConfig) -> Route {
    Route::new("m", fleet.clone(), config, RouteMetrics::default())
}

#[tokio::test]
async fn equal_workers_share_evenly_and_nothing_stays_in_flight() {
    for mode in [RouterMode::RoundRobin, RouterMode::LeastLoaded] {
        for (count, requests) in [(1, 5), (2, 7), (3, 9), (7, 100)] {
            let workers: Vec<_> = (0..count).map(|id| worker(id, None, well).0).collect();
            let fleet = fleet(workers.clone());
            let route = route(&fleet, RouteConfig { mode, ..RouteConfig::default() });
            let mut streams = Vec::new();
            for _ in 0..requests {
                streams.push(route.call(prompt(), Context::new("r")).await.unwrap());
            }
            let loads: Vec<u64> = workers.iter().map(|worker| worker.in_flight()).collect();
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            assert!(spread <= 1, "{mode:?}: {loads:?}");
            assert!(streams[0].next().await.unwrap().is_ok());
            drop(streams);
            assert!(workers.iter().all(|worker| worker.in_flight() == 0));
            assert!(fleet.suspects.lock().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn requests_that_end_at_once_are_shared_evenly_whoever_comes_and_goes() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let workers: Vec<_> = (0..6).map(|id| worker(id, None, well)).collect();
        let fleet = fleet(Vec::new());
        let mode = [RouterMode::RoundRobin, RouterMode::LeastLoaded][random.usize(..2)];
        let route = route(&fleet, RouteConfig { mode, ..RouteConfig::default() });
        for _ in 0..5 {
            let mut shown = workers.clone();
            random.shuffle(&mut shown);
            shown.truncate(random.usize(1..7));
            let candidates = shown.iter().map(|(candidate, _)| candidate.clone()).collect();
            *fleet.candidates.lock().unwrap() = candidates;
            let before: Vec<usize> = shown.iter().map(|(_, asked)| asked.load(Relaxed)).collect();
            for _ in 0..random.usize(1..40) {
                assert_eq!(ask(&route, prompt()).await.unwrap(), 1);
            }
            let asked = shown.iter().zip(before).map(|((_, asked), b)| asked.load(Relaxed) - b);
            let asked: Vec<usize> = asked.collect();
            let spread = asked.iter().max().unwrap() - asked.iter().min().unwrap();
            assert!(spread <= 1, "seed {seed}: {asked:?}");
        }
    }
}

#[tokio::test]
async fn the_least_loaded_is_asked_and_who_drains_is_not() {
    let workers: Vec<_> = (0..3).map(|id| worker(id, None, well)).collect();
    let fleet = fleet(workers.iter().map(|(candidate, _)| candidate.clone()).collect());
    let config = RouteConfig { mode: RouterMode::LeastLoaded, ..RouteConfig::default() };
    let route = route(&fleet, config);
    let load = |waiting_requests| WorkerLoad { waiting_requests, ..WorkerLoad::default() };
    workers[0].0.set_load(load(9));
    workers[1].0.set_load(load(2));
    workers[2].0.set_draining(true);
    assert_eq!(workers[0].0.load(), load(9));
    for _ in 0..4 {
        ask(&route, prompt()).await.unwrap();
    }
    let asked: Vec<usize> = workers.iter().map(|(_, asked)| asked.load(Relaxed)).collect();
    assert_eq!(asked, [0, 4, 0]);
    // What is told of this frontend's own requests does not count twice.
    let stream = route.call(prompt(), Context::new("r")).await.unwrap();
    workers[1].0.set_load(load(1));
    assert_eq!(workers[1].0.cost(), 1);
    drop(stream);
    assert_eq!(workers[1].0.cost(), 0);
}

#[tokio::test]
async fn a_refusal_sends_the_request_elsewhere() {
    let table = [
        (dead(), vec![0], true),
        (dead().with_code("draining"), vec![], true),
        (busy(5), vec![], true),
        (Error::invalid("never"), vec![], false),
        (Error::internal("a fault"), vec![], false),
    ];
    for (error, suspects, is_retried) in table {
        let (refusing, other) = (worker(0, Some(error.clone()), well), worker(1, None, well));
        let fleet = fleet(vec![refusing.0, other.0]);
        let outcome = ask(&route(&fleet, RouteConfig::default()), prompt()).await;
        assert_eq!(outcome.is_ok(), is_retried, "{error}");
        assert_eq!(*fleet.suspects.lock().unwrap(), suspects, "{error}");
    }
}

#[tokio::test]
async fn when_nobody_is_left_the_error_says_why() {
    let all = |refusals: Vec<Error>| {
        let worker = |(id, error)| worker(id, Some(error), well);
        let workers: Vec<_> = (0..).zip(refusals).map(worker).collect();
        let asked: Vec<_> = workers.iter().map(|(_, asked)| asked.clone()).collect();
        (fleet(workers.into_iter().map(|(candidate, _)| candidate).collect()), asked)
    };
    let (none, _) = all(vec![]);
    let error = ask(&route(&none, RouteConfig::default()), prompt()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.message(), "no worker of model `m` is reachable");

    let resting = Error::new(ErrorKind::Unavailable, "it rests").with_code("resting");
    let (said, _) = all(vec![dead(), resting]);
    let error = ask(&route(&said, RouteConfig::default()), prompt()).await.unwrap_err();
    assert_eq!(error.message(), "no worker of model `m` takes the request: it rests");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unavailable, Some("resting")));

    let (fleet, asked) = all(vec![dead(), dead(), dead(), dead()]);
    let error = ask(&route(&fleet, RouteConfig::default()), embed()).await.unwrap_err();
    assert_eq!(error.message(), "no worker of model `m` is reachable");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the connection is lost");
    let asked: usize = asked.iter().map(|asked| asked.load(Relaxed)).sum();
    assert_eq!(asked, 3, "no more attempts than allowed");

    let (fleet, _) = all(vec![busy(30), busy(10), busy(20)]);
    let error = ask(&route(&fleet, RouteConfig::default()), prompt()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Overloaded, Some("busy")));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(10)));
    let (fleet, _) = all(vec![busy(30), dead()]);
    let error = ask(&route(&fleet, RouteConfig::default()), prompt()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "one that is busy can be reached");
}

/// Asks a worker that is lost and then one that is well; returns what came and who was asked.
async fn lost<R: Routable>(answer: Answer, setting: RetryAccepted, request: R) -> (bool, usize) {
    let (first, second) = (worker(0, None, answer), worker(1, None, well));
    let fleet = fleet(vec![first.0.clone(), second.0.clone()]);
    let config = RouteConfig { retry_accepted: setting, ..RouteConfig::default() };
    let outcome = ask(&route(&fleet, config), request).await;
    assert_eq!(*fleet.suspects.lock().unwrap(), [0]);
    assert_eq!((first.0.in_flight(), second.0.in_flight()), (0, 0));
    (outcome.is_ok(), second.1.load(Relaxed))
}

#[tokio::test]
async fn what_was_accepted_goes_elsewhere_before_its_first_output_if_it_may() {
    use RetryAccepted::{Always, Never, Stateless};
    let (again, not) = ((true, 1), (false, 0));
    for setting in [Never, Stateless, Always] {
        assert_eq!(lost(lost_before, setting, prompt()).await, again);
        assert_eq!(lost(lost_before, setting, embed()).await, again);
        assert_eq!(lost(lost_before, setting, text()).await, again);
        assert_eq!(lost(lost_after, setting, text()).await, not);
        assert_eq!(lost(lost_after, setting, prompt()).await, not);
        assert_eq!(lost(lost_after, setting, InferRequest::default()).await, not);
    }
    for (setting, alone, sequence) in
        [(Never, not, not), (Stateless, again, not), (Always, again, again)]
    {
        assert_eq!(lost(lost_before, setting, InferRequest::default()).await, alone);
        assert_eq!(lost(lost_before, setting, in_sequence()).await, sequence);
    }
}

/// A worker whose way is lost so many times, before or after it accepts a request.
fn worker_that_is_lost_on_the_way(id: u64, times: usize) -> (Arc<Candidate>, Arc<AtomicUsize>) {
    let (model, asked) = worker(id, None, well);
    let count = asked.clone();
    let infer = Function(move |_: InferRequest, _: Context| {
        let error = Error::new(ErrorKind::Unavailable, "nats was lost").with_code(WAY_LOST);
        let item = match count.fetch_add(1, Relaxed) {
            before if before >= times => Ok(Default::default()),
            before if before % 2 == 0 => return Err(error),
            _ => Err(error),
        };
        Ok(Box::pin(futures_util::stream::iter([item])) as OutputStream<InferRequest>)
    });
    let engines = Engines { infer: Arc::new(infer), ..model.engines.clone() };
    (Arc::new(Candidate::new(InstanceId(id), engines)), asked)
}

#[tokio::test]
async fn a_way_that_is_lost_costs_no_attempt_and_no_worker() {
    let most = MAX_WAY_LOSSES as usize;
    for (workers, max_attempts, times, is_served) in [
        (1, 1, 5, true),
        (2, 1, 5, true),
        (2, 3, 7, true),
        (1, 3, most, true),
        (1, 3, most + 1, false),
    ] {
        let workers = (0..workers).map(|id| worker_that_is_lost_on_the_way(id, times));
        let (candidates, asked): (Vec<_>, Vec<_>) = workers.unzip();
        let fleet = fleet(candidates);
        let config = RouteConfig { max_attempts, ..RouteConfig::default() };
        let outcome = ask(&route(&fleet, config), InferRequest::default()).await;
        let asked: usize = asked.iter().map(|count| count.load(Relaxed)).sum();
        assert_eq!(outcome.is_ok(), is_served, "{outcome:?} after {asked}");
        assert!(fleet.suspects.lock().unwrap().is_empty());
    }
    let (candidate, asked) = worker_that_is_lost_on_the_way(0, 9);
    let fleet = fleet(vec![candidate]);
    let config = RouteConfig { retry_accepted: RetryAccepted::Never, ..RouteConfig::default() };
    ask(&route(&fleet, config), InferRequest::default()).await.unwrap_err();
    assert_eq!(asked.load(Relaxed), 2, "what may have begun is not given out again");
}

#[tokio::test]
async fn a_remote_model_is_all_engines() {
    struct All;
    #[async_trait]
    impl<R: Request> Engine<R> for All
    where
        R::Output: Default,
    {
        async fn call(&self, _: R, _: Context) -> Result<OutputStream<R>> {
            Ok(Box::pin(futures_util::stream::iter([Ok(R::Output::default())])))
        }
    }
    let engines = Engines::of(Arc::new(All));
    let fleet = fleet(vec![Arc::new(Candidate::new(InstanceId(1), engines))]);
    let route = route(&fleet, RouteConfig::default());
    assert_eq!(ask(&route, prompt()).await.unwrap(), 1);
    assert_eq!(ask(&route, embed()).await.unwrap(), 1);
    assert_eq!(ask(&route, InferRequest::default()).await.unwrap(), 1);
    assert_eq!(ask(&route, text()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_request_waits_for_a_worker_when_there_is_none() {
    let patient = |wait_ms, max_waiting| RouteConfig {
        worker_wait: Duration::from_millis(wait_ms),
        max_waiting,
        ..RouteConfig::default()
    };
    let pause = || tokio::time::sleep(Duration::from_millis(20));
    // One that comes, one that is lost while it is the only one, one that drains.
    let draining = worker(1, None, well).0;
    draining.set_draining(true);
    let lost = worker(1, None, lost_before).0;
    for before in [vec![], vec![worker(1, Some(dead()), well).0], vec![lost], vec![draining]] {
        let fleet = fleet(before);
        let route = route(&fleet, patient(60_000, 10));
        let (answer, ()) = tokio::join!(ask(&route, prompt()), async {
            pause().await;
            fleet.set(vec![]);
            pause().await;
            fleet.set(vec![worker(1, None, well).0]);
        });
        assert_eq!(answer.unwrap(), 1);
    }
    // Nobody comes.
    let fleet = fleet(vec![]);
    let (short, started) = (route(&fleet, patient(100, 1)), Instant::now());
    assert_eq!(ask(&short, prompt()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() >= Duration::from_millis(100));
    // What is to be asked at once waits for nobody.
    let at_once = route(&fleet, patient(60_000, 10)).at_once();
    assert!(!at_once.is_ready());
    let asked = tokio::time::timeout(Duration::from_secs(5), ask(&at_once, prompt()));
    assert_eq!(asked.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    // More than one may not wait.
    let long = route(&fleet, patient(60_000, 1));
    let refused = async {
        assert_eq!(ask(&long, prompt()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        fleet.set(vec![worker(1, None, well).0]);
    };
    assert_eq!(tokio::join!(ask(&long, prompt()), refused).0.unwrap(), 1);
}

#[tokio::test]
async fn a_worker_that_is_unwell_is_not_asked_until_it_is_well() {
    let (one, two) = (worker(0, None, well), worker(1, None, well));
    let fleet = fleet(vec![one.0.clone(), two.0.clone()]);
    let route = route(&fleet, RouteConfig::default());
    assert!(one.0.set_unwell(true) && !one.0.set_unwell(true));
    for _ in 0..4 {
        ask(&route, prompt()).await.unwrap();
    }
    assert_eq!((one.1.load(Relaxed), two.1.load(Relaxed)), (0, 4));
    assert!(two.0.take_heard() && !two.0.take_heard() && !one.0.take_heard());
    two.0.set_unwell(true);
    assert_eq!(ask(&route, prompt()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    one.0.set_unwell(false);
    ask(&route, prompt()).await.unwrap();
    assert_eq!(one.1.load(Relaxed), 1);
}

#[tokio::test]
async fn a_request_leaves_a_worker_that_is_found_to_be_silent() {
    fn silent<R: Request>(accepts: bool) -> Arc<dyn Engine<R>> {
        struct Silent(bool);
        #[async_trait]
        impl<R: Request> Engine<R> for Silent {
            async fn call(&self, _: R, _: Context) -> Result<OutputStream<R>> {
                match self.0 {
                    true => Ok(Box::pin(futures_util::stream::pending())),
                    false => std::future::pending().await,
                }
            }
        }
        Arc::new(Silent(accepts))
    }
    for accepts in [true, false] {
        let engines = Engines {
            generate: silent(accepts),
            infer: silent(accepts),
            embed: silent(accepts),
            text: silent(accepts),
            embed_text: silent(accepts),
        };
        let one = Candidate::new(InstanceId(0), engines);
        let (one, two) = (Arc::new(one), worker(1, None, well));
        let fleet = fleet(vec![one.clone(), two.0]);
        let route = route(&fleet, RouteConfig::default());
        let (answer, ()) = tokio::join!(ask(&route, prompt()), async {
            tokio::task::yield_now().await;
            assert_eq!(one.in_flight(), 1);
            one.set_unwell(true);
        });
        assert_eq!((answer.unwrap(), two.1.load(Relaxed)), (1, 1));
        assert_eq!(one.in_flight(), 0);
        assert!(fleet.suspects.lock().unwrap().is_empty(), "it is known already");
    }
}
