//! Answers that were cut anywhere equal those that were not, with the real scheduler below.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use engine::testing::{Scripted, Step};
use engine::{
    Constraint, Error, ErrorKind, FinishReason, GenerateOutput, Guided, Sampling, StopConditions,
    Usage,
};
use futures_util::StreamExt;
use prometheus_client::metrics::counter::Counter;

use super::super::testing::{collect, scheduler, scheduler_of};
use super::*;

mod simulation;

/// An engine whose answers are cut: the first call's behind the first number of tokens, and so on.
struct Cut<E> {
    engine: E,
    cuts: Mutex<VecDeque<usize>>,
    /// What was asked.
    asked: Mutex<Vec<GenerateRequest>>,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for Cut<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        self.asked.lock().unwrap().push(request.clone());
        let stream = self.engine.call(request, context).await?;
        let Some(mut left) = self.cuts.lock().unwrap().pop_front() else {
            return Ok(stream);
        };
        let (mut is_cut, mut is_told) = (false, left % 2 == 1);
        let mut next = move |item: Result<GenerateOutput>| {
            if is_cut || left == 0 {
                // Every other one ends without a word.
                return (!std::mem::replace(&mut is_told, true)).then(|| Err(dead()));
            }
            let mut output = item.unwrap();
            // What finishes a continuation is cut off as well, if it comes with the last token.
            is_cut = output.tokens.len() >= left;
            if is_cut {
                output.tokens.truncate(left);
                output.logprobs.truncate(left);
                (output.finish, output.usage) = (None, None);
            }
            left -= output.tokens.len();
            Some(Ok(output))
        };
        Ok(Box::pin(stream.scan((), move |(), item| std::future::ready(next(item)))))
    }
}

fn dead() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}

async fn check(
    name: &str,
    engine: &Arc<worker::generate::GenerateEngine>,
    request: GenerateRequest,
) {
    let whole = engine.call(request.clone(), Context::new("whole")).await.unwrap();
    let whole = collect(whole).await.unwrap();
    let tokens: usize = whole.iter().map(|output| output.tokens.len()).sum();
    for first in 0..=tokens {
        let cuts = Mutex::new([first, first * 7 % 5, first * 3 % 4].into());
        let cut = Arc::new(Cut { engine: engine.clone(), cuts, asked: Mutex::default() });
        let migrate = Migrate { engine: cut.clone(), limit: 3, count: Counter::default() };
        let stream = migrate.call(request.clone(), Context::new("cut")).await.unwrap();
        assert_eq!(collect(stream).await.unwrap(), whole, "{name}, cut behind {first} tokens");
        let asked = cut.asked.lock().unwrap().len();
        assert!(asked > 1 || first == tokens, "{name}: nothing was cut");
    }
}

fn request(max_tokens: u32) -> GenerateRequest {
    let mut request = GenerateRequest::new(vec![97; 20], StopConditions::after(max_tokens));
    request.sampling = Sampling { temperature: 20.0, seed: Some(11), ..Sampling::default() };
    request.logprobs = Some(2);
    request
}

#[tokio::test]
async fn an_answer_that_was_cut_anywhere_is_the_one_that_was_not() {
    let engine = scheduler();
    let greedy = GenerateRequest { sampling: Sampling::default(), ..request(30) };
    check("greedy", &engine, greedy).await;
    check("seeded", &engine, request(30)).await;

    let mut penalties = request(30);
    penalties.sampling.presence_penalty = 1.5;
    penalties.sampling.frequency_penalty = 1.0;
    penalties.sampling.repetition_penalty = 1.3;
    penalties.sampling.logit_bias = vec![(97, 60.0), (98, 60.0), (256, 40.0)];
    penalties.stop.min_tokens = 7;
    check("penalties and a minimum", &engine, penalties).await;

    let mut guided = request(40);
    guided.guided = Some(Guided::new(Constraint::Regex("[0-9]{4}-[A-F]{1,12}(x|yy|z)?".into())));
    check("guided", &engine, guided).await;
    let mut behind = request(80);
    behind.sampling.logit_bias = vec![(u32::from(b'a'), 45.0)];
    let constraint = Constraint::Choice(vec!["one".into(), "two".into()]);
    behind.guided = Some(Guided { constraint, after: Some("aa".into()) });
    check("guided behind a marker", &engine, behind).await;

    let several = GenerateRequest { choices: NonZeroU32::new(3).unwrap(), ..request(9) };
    check("continuations", &engine, several).await;
    check("the prompt's", &engine, GenerateRequest { prompt_logprobs: Some(1), ..request(9) })
        .await;
}

#[tokio::test]
async fn what_fills_the_memory_ends_where_it_would_have_ended() {
    // 45 tokens behind a prompt of 20: the last one needs no place.
    let engine = scheduler_of(4);
    check("a full memory", &engine, request(90)).await;
    let stream = engine.call(request(90), Context::new("whole")).await.unwrap();
    let whole = collect(stream).await.unwrap().remove(0);
    assert_eq!((whole.tokens.len(), whole.finish), (45, Some(FinishReason::Length)));
    // A prompt that fits nowhere is refused.
    let migrate = Migrate { engine, limit: 3, count: Counter::default() };
    let long = GenerateRequest { tokens: vec![97; 64].into(), ..request(5) };
    let error = migrate.call(long, Context::new("r")).await.err().unwrap();
    assert_eq!(error.code(), Some("context_length_exceeded"));
}

fn one(token: u32, is_last: bool) -> Step<GenerateOutput> {
    let finish = is_last.then_some(engine::FinishReason::Length);
    let usage = is_last.then_some(Usage { prompt_tokens: 2, ..Usage::default() });
    Step::Output(GenerateOutput { tokens: vec![token], finish, usage, ..GenerateOutput::default() })
}

async fn outcome(script: Vec<Step<GenerateOutput>>, limit: u32) -> (Result<usize>, usize) {
    let engine = Arc::new(Scripted::<GenerateRequest>::new(script));
    let cut = Cut { engine: engine.clone(), cuts: Mutex::default(), asked: Mutex::default() };
    let cut = Arc::new(cut);
    let migrate = Migrate { engine: cut.clone(), limit, count: Counter::default() };
    let request = GenerateRequest::new(vec![1, 2], StopConditions::after(100));
    let answer = collect(migrate.call(request, Context::new("r")).await.unwrap()).await;
    assert_eq!(engine.live_streams(), 0);
    let asked = cut.asked.lock().unwrap().len();
    (answer.map(|outputs| outputs.iter().map(|output| output.tokens.len()).sum()), asked)
}

#[tokio::test]
async fn only_what_is_lost_goes_on_and_not_for_ever() {
    let failed = |kind| vec![one(1, false), Step::Error(Error::new(kind, "it failed"))];
    for limit in [0, 1, 3] {
        let (answer, asked) = outcome(failed(ErrorKind::Unavailable), limit).await;
        let error = answer.unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Unavailable, "it failed"));
        assert_eq!(asked, 1 + limit as usize);
    }
    let (answer, asked) = outcome(vec![one(1, false)], 2).await;
    assert_eq!((answer.unwrap_err().kind(), asked), (ErrorKind::Unavailable, 3), "a silent end");
    for kind in [ErrorKind::Internal, ErrorKind::InvalidRequest, ErrorKind::DeadlineExceeded] {
        let (answer, asked) = outcome(failed(kind), 3).await;
        assert_eq!((answer.unwrap_err().kind(), asked), (kind, 1));
    }
    let late = vec![one(1, false), one(2, true), Step::Error(dead())];
    let (answer, asked) = outcome(late, 3).await;
    assert_eq!((answer.unwrap(), asked), (2, 1), "what has ended is not lost");
}

#[tokio::test]
async fn a_full_answer_ends_without_being_asked_for_again() {
    let cuts = Mutex::new([4].into());
    let cut = Arc::new(Cut { engine: scheduler(), cuts, asked: Mutex::default() });
    let migrate = Migrate { engine: cut.clone(), limit: 3, count: Counter::default() };
    let answer = collect(migrate.call(request(4), Context::new("r")).await.unwrap()).await.unwrap();
    let usage = answer[0].usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (20, 4));
    assert_eq!(cut.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn dropping_the_answer_drops_the_work() {
    let script = vec![one(1, false), Step::Sleep(std::time::Duration::from_secs(60))];
    let engine = Arc::new(Scripted::<GenerateRequest>::new(script));
    let cuts = Mutex::new([0].into());
    let cut = Arc::new(Cut { engine: engine.clone(), cuts, asked: Mutex::default() });
    let migrate = Migrate { engine: cut, limit: 3, count: Counter::default() };
    let request = GenerateRequest::new(vec![1, 2], StopConditions::after(100));
    let mut stream = migrate.call(request, Context::new("r")).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().tokens, [1]);
    assert_eq!(engine.live_streams(), 1);
    drop(stream);
    assert_eq!(engine.live_streams(), 0);
}
