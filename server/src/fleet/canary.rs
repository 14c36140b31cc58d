//! Canaries: small requests of the frontend's own, by which it sees that a silent worker computes.
//!
//! A worker that answered anything since the last look is well and is not asked. One that fails or
//! hangs gets no requests until it answers, and those that it has go elsewhere. What is asked goes
//! past all that counts clients' requests.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use cluster::card::{Card, Input, Kind};
use cluster::request::RemoteWorker;
use engine::{
    Context, EmbedRequest, Engine, Error, ErrorKind, GenerateRequest, Request, Result,
    StopConditions, TokenId,
};
use futures_util::StreamExt;
use prometheus_client::metrics::counter::Counter;

use super::pool::{Place, Pool};
use crate::pipeline::Candidate;

/// The longest time between two questions to a worker that is not well.
const LONGEST_AGAIN: Duration = Duration::from_secs(1);

/// The priority of what is asked: a worker that is busy answers it before others.
const PRIORITY: u64 = 1;

/// What a worker is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// For one token.
    Text,
    /// For the vector of one token.
    Embedding,
    /// What it serves: tensors may have effects, and texts may cost money, so none are sent.
    Cards,
}

impl Question {
    /// Returns what the workers of a card are asked.
    pub(super) fn of(card: &Card) -> Self {
        match (card.kind, card.input) {
            (Kind::Tensor, _) | (_, Input::Text) => Self::Cards,
            (Kind::Embedding, _) => Self::Embedding,
            _ => Self::Text,
        }
    }
}

/// How workers are asked.
#[derive(Clone, Debug)]
pub(super) struct Canary {
    /// The silence after which a worker is asked; zero: never.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Counts answers that did not come.
    pub failed: Counter,
}

impl Canary {
    /// Returns what asks a worker until it is forgotten; none: it is never asked.
    pub(super) fn ask(
        &self,
        pool: &Arc<Pool>,
        candidate: &Arc<Candidate>,
        place: &Place,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.interval.is_zero() {
            return None;
        }
        let (worker, question) = (place.worker.clone(), place.question);
        Some(self.clone().ask_until_gone(Arc::downgrade(pool), candidate, worker, question))
    }

    fn ask_until_gone(
        self,
        pool: Weak<Pool>,
        candidate: &Arc<Candidate>,
        worker: RemoteWorker,
        question: Question,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (gone, told) = (candidate.gone(), Arc::downgrade(candidate));
        async move {
            tokio::select! {
                () = gone => {}
                () = self.run(pool, told, worker, question) => {}
            }
        }
    }

    async fn run(
        self,
        pool: Weak<Pool>,
        told: Weak<Candidate>,
        worker: RemoteWorker,
        question: Question,
    ) {
        // Workers that came together are not asked together.
        let mut wait = self.interval.mul_f64(0.5 + fastrand::f64() / 2.0);
        loop {
            tokio::time::sleep(wait).await;
            let Some(candidate) = told.upgrade() else { return };
            let was_heard = candidate.take_heard() && !candidate.is_unwell();
            let is_well = was_heard || self.is_well(&candidate, &worker, question).await;
            wait = match is_well {
                true => self.interval,
                false => self.interval.min(LONGEST_AGAIN),
            };
            if !is_well {
                self.failed.inc();
            }
            if candidate.set_unwell(!is_well) {
                let address = worker.address();
                match is_well {
                    true => tracing::info!(address, "worker answers again"),
                    false => tracing::warn!(address, "worker is not called: it does not answer"),
                }
                if let Some(pool) = pool.upgrade() {
                    pool.touch();
                }
            }
        }
    }

    /// Asks a worker; one that answers others in the meantime is well.
    async fn is_well(
        &self,
        candidate: &Candidate,
        worker: &RemoteWorker,
        question: Question,
    ) -> bool {
        let context = Context::new("canary")
            .with_deadline(Some(Instant::now() + self.timeout))
            .with_priority(PRIORITY);
        let engines = &candidate.engines;
        let asked = async {
            match question {
                Question::Text => {
                    let request =
                        GenerateRequest::new(vec![0 as TokenId], StopConditions::after(1));
                    first(&engines.generate, request, context).await
                }
                Question::Embedding => {
                    let request = EmbedRequest { tokens: vec![0 as TokenId].into(), adapter: None };
                    first(&engines.embed, request, context).await
                }
                Question::Cards => worker.describe(self.timeout).await.map(drop),
            }
        };
        let answer = tokio::time::timeout(self.timeout, asked).await;
        candidate.take_heard() || answer.is_ok_and(|answer| answer.map_or_else(is_alive, |()| true))
    }
}

/// Waits for the first output of a request. Errors: what came instead.
async fn first<R: Request>(
    engine: &Arc<dyn Engine<R>>,
    request: R,
    context: Context,
) -> Result<()> {
    let mut stream = engine.call(request, context).await?;
    match stream.next().await {
        Some(output) => output.map(drop),
        None => Err(Error::internal("a worker's answer has no output")),
    }
}

/// Returns whether a worker that says this can compute.
fn is_alive(error: Error) -> bool {
    match error.kind() {
        ErrorKind::Internal | ErrorKind::DeadlineExceeded => false,
        // One that drains says so.
        ErrorKind::Unavailable => error.code().is_some(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use cluster::instance::InstanceId;
    use cluster::request::{ClientConfig, Tcp};
    use engine::Tasks;

    use super::*;
    use crate::pipeline::Engines;

    #[tokio::test]
    async fn nobody_asks_a_worker_that_is_gone() {
        let tasks = Tasks::new();
        let tcp = Tcp::new("127.0.0.1:1");
        let worker = RemoteWorker::new(tcp, ClientConfig::default(), &tasks).unwrap();
        let engines = Engines::of(Arc::new(worker.model("model")));
        let candidate = Arc::new(Candidate::new(InstanceId(1), engines));
        let (interval, timeout) = (Duration::from_secs(3600), Duration::from_secs(5));
        let canary = Canary { interval, timeout, failed: Counter::default() };
        let asking = canary.ask_until_gone(Weak::new(), &candidate, worker, Question::Text);
        let mut asking = std::pin::pin!(asking);
        let moment = Duration::from_millis(50);
        assert!(tokio::time::timeout(moment, asking.as_mut()).await.is_err(), "it waits");
        drop(candidate);
        tokio::time::timeout(timeout, asking).await.unwrap();
    }
}
