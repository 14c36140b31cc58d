use std::sync::Mutex;

use engine::testing::{Scripted, Step};
use engine::{GenerateOutput, StopConditions};
use futures_util::StreamExt;

use super::*;

struct Fleet {
    candidates: Mutex<Arc<[Arc<Candidate>]>>,
    suspects: Mutex<Vec<InstanceId>>,
}

impl Workers for Fleet {
    fn candidates(&self) -> Arc<[Arc<Candidate>]> {
        self.candidates.lock().unwrap().clone()
    }

    fn suspect(&self, id: InstanceId) {
        self.suspects.lock().unwrap().push(id);
    }
}

/// A worker that answers each kind of request with one output.
fn worker(id: u64) -> (Arc<Candidate>, Arc<Scripted<GenerateRequest>>) {
    let generate = Arc::new(Scripted::new(vec![Step::Output(GenerateOutput::default())]));
    let engines = Engines {
        generate: generate.clone(),
        infer: Arc::new(Scripted::<InferRequest>::empty_answers(1)),
        embed: Arc::new(Scripted::<EmbedRequest>::empty_answers(1)),
    };
    (Arc::new(Candidate::new(InstanceId(id), engines)), generate)
}

fn fleet(candidates: Vec<Arc<Candidate>>) -> Arc<Fleet> {
    Arc::new(Fleet { candidates: Mutex::new(candidates.into()), suspects: Mutex::default() })
}

fn prompt() -> GenerateRequest {
    GenerateRequest::new(vec![1], StopConditions::after(1))
}

#[tokio::test]
async fn workers_are_asked_in_turn_and_nothing_stays_in_flight() {
    let workers: Vec<_> = (1..=3).map(worker).collect();
    let fleet = fleet(workers.iter().map(|(candidate, _)| candidate.clone()).collect());
    let route = Route::new("m", fleet.clone(), RouteConfig::default());
    let mut streams = Vec::new();
    for _ in 0..9 {
        streams.push(route.call(prompt(), Context::new("r")).await.unwrap());
    }
    for (candidate, engine) in &workers {
        assert_eq!((candidate.in_flight(), engine.live_streams()), (3, 3));
    }
    assert!(streams[0].next().await.unwrap().is_ok());
    drop(streams);
    assert!(workers.iter().all(|(candidate, _)| candidate.in_flight() == 0));
    assert!(fleet.suspects.lock().unwrap().is_empty());
}
