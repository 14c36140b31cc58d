//! Whoever computes the prompt and whatever fails, the text is that of one worker.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{
    Constraint, FinishReason, GenerateOutput, Guided, KvHandoff, KvSource, Sampling, Usage,
};
use futures_util::StreamExt;
use worker::generate::GenerateEngine;

use super::super::Migrate;
use super::super::testing::{collect, scheduler, scheduler_of};
use super::*;

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fine,
    Refused(ErrorKind),
    /// There is no room for it.
    Full,
    /// Its end is told in a message of its own.
    Apart,
    /// Behind so many tokens it is lost, with a word or without.
    Cut(usize, bool),
}

/// Workers of one part: the real scheduler, with calls that fail as they are told.
#[derive(Clone)]
struct Workers(Arc<Inner>);

struct Inner {
    engine: Arc<GenerateEngine>,
    is_ready: AtomicBool,
    fates: Mutex<VecDeque<Fate>>,
    asked: Mutex<Vec<GenerateRequest>>,
    source: Option<Arc<KvSource>>,
}

impl Workers {
    fn new(engine: &Arc<GenerateEngine>, source: Option<&str>) -> Self {
        let source = source.map(|address| {
            Arc::new(KvSource { address: address.to_owned(), ..KvSource::default() })
        });
        let (engine, is_ready) = (engine.clone(), AtomicBool::new(true));
        let (fates, asked) = Default::default();
        Self(Arc::new(Inner { engine, is_ready, fates, asked, source }))
    }

    fn fated(self, fates: impl IntoIterator<Item = Fate>) -> Self {
        self.0.fates.lock().unwrap().extend(fates);
        self
    }

    fn away(self) -> Self {
        self.0.is_ready.store(false, Ordering::Relaxed);
        self
    }

    fn asked(&self) -> Vec<GenerateRequest> {
        std::mem::take(&mut *self.0.asked.lock().unwrap())
    }
}

impl WorkerGroup for Workers {
    fn is_ready(&self) -> bool {
        self.0.is_ready.load(Ordering::Relaxed)
    }

    fn at_once(&self) -> Self {
        self.clone()
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection is lost")
}

fn full() -> Error {
    Error::invalid("too long").with_code("context_length_exceeded")
}

#[async_trait]
impl Engine<GenerateRequest> for Workers {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        self.0.asked.lock().unwrap().push(request.clone());
        let fate = self.0.fates.lock().unwrap().pop_front().unwrap_or(Fate::Fine);
        let (mut left, has_word) = match fate {
            Fate::Fine | Fate::Apart => (usize::MAX, false),
            Fate::Refused(kind) => return Err(Error::new(kind, "refused")),
            Fate::Full => return Err(full()),
            Fate::Cut(left, has_word) => (left, has_word),
        };
        if !self.is_ready() {
            return Err(lost());
        }
        let (source, mut is_over) = (self.0.source.clone(), false);
        let stream = self.0.engine.call(request, context).await?;
        let mut next = move |item: Option<Result<GenerateOutput>>| {
            if left == 0 {
                return (!std::mem::replace(&mut is_over, true) && has_word).then(|| Err(lost()));
            }
            let mut output = item?.unwrap();
            output.kv_source = source.clone().filter(|_| output.finish.is_some());
            if output.tokens.len() >= left {
                output.tokens.truncate(left);
                output.logprobs.truncate(left);
                (output.finish, output.usage, output.kv_source) = (None, None, None);
            }
            left -= output.tokens.len();
            Some(Ok(output))
        };
        // The last item is the end, which may have come with the last token.
        let items = stream.map(Some).chain(futures_util::stream::once(async { None }));
        let stream = items.scan((), move |(), item| std::future::ready(next(item)));
        match fate {
            Fate::Apart => Ok(Box::pin(stream.flat_map(apart))),
            _ => Ok(Box::pin(stream)),
        }
    }
}

/// Parts what an output ends from what it brings.
fn apart(
    output: Result<GenerateOutput>,
) -> impl futures_util::Stream<Item = Result<GenerateOutput>> {
    let output = output.unwrap();
    let GenerateOutput { finish, usage, index, .. } = output;
    let kv_source = output.kv_source.clone();
    let last = GenerateOutput { finish, usage, index, kv_source, ..GenerateOutput::default() };
    let first = GenerateOutput { finish: None, usage: None, kv_source: None, ..output };
    futures_util::stream::iter([Ok(first), Ok(last)])
}

fn pair(prompts: Workers, rest: Workers) -> Disaggregate<Workers> {
    let config = SplitConfig { min_tokens: 8, context_length: 100 };
    let counts = Counts { model: "m".into(), family: Family::default() };
    Disaggregate { prompts, rest, config, counts }
}

fn count(pair: &Disaggregate<Workers>, way: &'static str) -> u64 {
    let labels = WayLabels { model: "m".into(), way };
    pair.counts.family.get_or_create(&labels).get()
}

fn request(max_tokens: u32) -> GenerateRequest {
    let mut request = GenerateRequest::new(vec![97; 20], StopConditions::after(max_tokens));
    request.sampling = Sampling { temperature: 20.0, seed: Some(11), ..Sampling::default() };
    request.logprobs = Some(2);
    request
}

/// Requests of all kinds.
fn requests() -> Vec<(&'static str, GenerateRequest)> {
    let mut penalties = request(25);
    penalties.sampling.frequency_penalty = 1.5;
    penalties.sampling.repetition_penalty = 1.3;
    penalties.sampling.logit_bias = vec![(97, 60.0), (98, 60.0), (256, 40.0)];
    penalties.stop.min_tokens = 7;
    let mut guided = request(40);
    guided.guided = Some(Guided::new(Constraint::Regex("[0-9]{4}-[A-F]{1,12}(x|yy|z)?".into())));
    let mut short = request(40);
    short.guided = Some(Guided::new(Constraint::Choice(vec!["a".into(), "b".into()])));
    let mut stopped = request(40);
    stopped.stop.stop_token_ids = (0..200).collect();
    stopped.sampling = Sampling { logit_bias: vec![(97, 90.0)], ..Sampling::default() };
    let mut begun = request(20);
    begun.generated = 6;
    let eos = GenerateRequest {
        sampling: Sampling { logit_bias: vec![(256, 99.0)], ..Sampling::default() },
        ..request(20)
    };
    vec![
        ("seeded", request(25)),
        ("greedy", GenerateRequest { sampling: Sampling::default(), ..request(25) }),
        ("one token", request(1)),
        ("two tokens", request(2)),
        ("penalties and a minimum", penalties),
        ("guided", guided),
        ("guided, one token", short),
        ("a stop token at once", stopped),
        ("the end at once", eos),
        ("begun elsewhere", begun),
        ("several", GenerateRequest { choices: NonZeroU32::new(3).unwrap(), ..request(9) }),
        ("the prompt's", GenerateRequest { prompt_logprobs: Some(1), ..request(9) }),
        ("short", GenerateRequest { tokens: vec![97; 7].into(), ..request(9) }),
        ("all of the context", GenerateRequest { tokens: vec![97; 99].into(), ..request(1) }),
    ]
}

async fn answer<E: Engine<GenerateRequest>>(
    engine: &E,
    request: &GenerateRequest,
) -> Result<Vec<GenerateOutput>> {
    collect(engine.call(request.clone(), Context::new("r")).await?).await
}

#[tokio::test]
async fn every_text_is_that_of_one_worker() {
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    for (name, request) in requests() {
        let expected = answer(&one, &request).await.unwrap();
        let pair = pair(Workers::new(&prompts, Some("there")), Workers::new(&rest, None));
        assert_eq!(answer(&pair, &request).await.unwrap(), expected, "{name}");
        let (first, second) = (pair.prompts.asked(), pair.rest.asked());
        match name {
            "several" | "the prompt's" | "short" | "all of the context" => {
                assert_eq!((first.len(), second.len()), (0, 1), "{name}");
            }
            "one token" | "guided, one token" | "a stop token at once" | "the end at once" => {
                assert_eq!((first.len(), second.len()), (1, 0), "{name}");
                assert_eq!(count(&pair, "ended"), 1, "{name}");
            }
            _ => {
                let ([first], [second]) = (&first[..], &second[..]) else { panic!("{name}") };
                assert_eq!((first.stop.max_tokens, &first.tokens), (1, &request.tokens));
                assert_eq!(second.generated, request.generated + 1, "{name}");
                let Some(KvHandoff::At(source)) = &second.handoff else { panic!("{name}") };
                assert_eq!(source.address, "there");
                assert_eq!(count(&pair, "split"), 1, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn usage_tells_what_the_prefill_worker_found() {
    let (prompts, rest) = (scheduler(), scheduler());
    let pair = pair(Workers::new(&prompts, None), Workers::new(&rest, None));
    let request = GenerateRequest { tokens: vec![97; 40].into(), ..request(5) };
    for cached_tokens in [0, 32] {
        let mut stream = pair.call(request.clone(), Context::new("r")).await.unwrap();
        let mut usage = None;
        while let Some(output) = stream.next().await {
            usage = output.unwrap().usage.or(usage);
        }
        let expected = Usage { prompt_tokens: 40, completion_tokens: 5, cached_tokens };
        assert_eq!(usage, Some(expected));
    }
}

#[tokio::test]
async fn whatever_fails_the_text_is_the_same() {
    use Fate::{Cut, Fine, Full, Refused};
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    let busy = Refused(ErrorKind::Overloaded);
    let gone = Refused(ErrorKind::Unavailable);
    let wrong = Refused(ErrorKind::InvalidRequest);
    let fault = Refused(ErrorKind::Internal);
    let cases: [(&str, Vec<Fate>, Vec<Fate>, &str); 16] = [
        ("prefill is busy", vec![busy], vec![], "no_prefill"),
        ("prefill is gone", vec![gone], vec![], "no_prefill"),
        ("prefill has no room", vec![Full], vec![], "no_prefill"),
        ("prefill is lost before its token", vec![Cut(0, true)], vec![], "no_prefill"),
        ("the same without a word", vec![Cut(0, false)], vec![], "no_prefill"),
        ("prefill is lost behind its token", vec![Cut(1, true)], vec![], "no_prefill"),
        ("the same without a word", vec![Cut(1, false)], vec![], "no_prefill"),
        ("decode is busy", vec![Fine], vec![busy], "no_decode"),
        ("decode is gone", vec![Fine], vec![gone], "no_decode"),
        ("decode has no room", vec![Fine], vec![Full], "no_decode"),
        ("decode finds it wrong", vec![Fine], vec![wrong], "no_decode"),
        ("decode has a fault", vec![Fine], vec![fault], "no_decode"),
        ("prefill has no room for more", vec![Fine, Full], vec![busy], "no_decode"),
        ("a wrong one behind a lost one", vec![Cut(0, true), Fine], vec![wrong], "no_decode"),
        ("nobody takes the rest at first", vec![Fine, gone], vec![gone], "no_decode"),
        ("both are busy at first", vec![Cut(1, true), Fine], vec![busy], "no_decode"),
    ];
    for (name, first, second, way) in cases {
        for max_tokens in [1, 2, 12] {
            let request = request(max_tokens);
            let expected = answer(&one, &request).await.unwrap();
            let first = Workers::new(&prompts, Some("there")).fated(first.clone());
            let pair = pair(first, Workers::new(&rest, None).fated(second.clone()));
            let outcome = answer(&pair, &request).await;
            assert_eq!(outcome.unwrap(), expected, "{name}, {max_tokens} tokens");
            let is_counted = count(&pair, way) == 1;
            assert!(is_counted || max_tokens == 1, "{name}, {max_tokens} tokens");
        }
    }
}

#[tokio::test]
async fn an_end_may_come_behind_its_token() {
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    for max_tokens in [1, 2, 12] {
        let request = request(max_tokens);
        let expected = answer(&one, &request).await.unwrap();
        let first = Workers::new(&prompts, Some("there")).fated([Fate::Apart]);
        let pair = pair(first, Workers::new(&rest, None).fated([Fate::Apart]));
        assert_eq!(answer(&pair, &request).await.unwrap(), expected, "{max_tokens} tokens");
        assert_eq!(pair.rest.asked().len(), usize::from(max_tokens > 1));
        assert_eq!(
            (count(&pair, "ended"), count(&pair, "no_decode")),
            (u64::from(max_tokens == 1), 0)
        );
    }
}

#[tokio::test]
async fn memory_ends_a_text_where_it_ends_that_of_one_worker() {
    let (one, prompts, rest) = (scheduler_of(4), scheduler_of(4), scheduler_of(4));
    for prompt in [61, 62, 63] {
        let request = GenerateRequest { tokens: vec![97; prompt].into(), ..request(12) };
        let expected = answer(&one, &request).await.unwrap();
        assert_eq!(expected[0].tokens.len(), 65 - prompt);
        let pair = pair(Workers::new(&prompts, Some("there")), Workers::new(&rest, None));
        assert_eq!(answer(&pair, &request).await.unwrap(), expected, "{prompt} tokens");
        assert_eq!((pair.prompts.asked().len(), pair.rest.asked().len()), (1, 1));
    }
    // Where one part has more, it takes what the other one has no room for.
    let (one, large) = (scheduler_of(8), scheduler_of(8));
    for prompt in [64, 80] {
        let request = GenerateRequest { tokens: vec![97; prompt].into(), ..request(12) };
        let expected = answer(&one, &request).await.unwrap();
        assert_eq!(expected[0].tokens.len(), 12);
        for (prompts, rest, way) in [(&large, &rest, "no_decode"), (&prompts, &large, "no_prefill")]
        {
            let pair = pair(Workers::new(prompts, Some("there")), Workers::new(rest, None));
            assert_eq!(answer(&pair, &request).await.unwrap(), expected, "{prompt}, {way}");
            assert_eq!(count(&pair, way), 1, "{prompt}, {way}");
        }
    }
}

#[tokio::test]
async fn what_fits_nowhere_ends_behind_its_first_token() {
    use Fate::{Cut, Fine, Full, Refused};
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    let expected = answer(&one, &request(1)).await.unwrap();
    let busy = Refused(ErrorKind::Overloaded);
    for (first, second) in [
        (vec![Fine, Full], vec![Full]),
        (vec![Cut(1, true), Full], vec![Full]),
        (vec![Fine, Full], vec![busy, Full]),
    ] {
        let first = Workers::new(&prompts, Some("there")).fated(first);
        let pair = pair(first, Workers::new(&rest, None).fated(second));
        assert_eq!(answer(&pair, &request(12)).await.unwrap(), expected);
    }
    // Who is only busy may have room, and a text that was not begun is refused.
    for (first, second, kind) in [
        (vec![Fine, busy], vec![Full], ErrorKind::Overloaded),
        (vec![Cut(0, true), Full], vec![Full], ErrorKind::InvalidRequest),
    ] {
        let first = Workers::new(&prompts, Some("there")).fated(first);
        let pair = pair(first, Workers::new(&rest, None).fated(second));
        assert_eq!(answer(&pair, &request(12)).await.unwrap_err().kind(), kind);
    }
    for kind in [ErrorKind::DeadlineExceeded, ErrorKind::Cancelled] {
        let first = Workers::new(&prompts, Some("there"));
        let pair = pair(first, Workers::new(&rest, None).fated([Refused(kind)]));
        assert_eq!(answer(&pair, &request(12)).await.unwrap_err().kind(), kind);
        assert_eq!(pair.prompts.asked().len(), 1);
    }
}

#[tokio::test]
async fn what_is_lost_later_goes_on_from_the_beginning() {
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    let request = request(12);
    let expected = answer(&one, &request).await.unwrap();
    for cut in 0..11 {
        let fates = [Fate::Cut(cut, cut % 2 == 0), Fate::Cut(cut % 3, true)];
        let second = Workers::new(&rest, None).fated(fates);
        let pair = pair(Workers::new(&prompts, Some("there")), second);
        let count = Counter::default();
        let migrate = Migrate { engine: pair.clone(), limit: 3, count: count.clone() };
        assert_eq!(answer(&migrate, &request).await.unwrap(), expected, "behind {cut} tokens");
        assert!((1..=2).contains(&count.get()), "behind {cut} tokens");
        for asked in pair.prompts.asked() {
            assert!(asked.tokens.len() as u32 - asked.generated == 20 && asked.handoff.is_none());
        }
    }
}

#[tokio::test]
async fn one_part_does_it_all_when_the_other_is_away() {
    let (prompts, rest) = (scheduler(), scheduler());
    let (first, second) = (Workers::new(&prompts, None), Workers::new(&rest, None));
    let without = pair(first.clone().away(), second.clone());
    assert_eq!(answer(&without, &request(5)).await.unwrap()[0].tokens.len(), 5);
    assert_eq!((first.asked().len(), second.asked().len()), (0, 1));
    let (first, second) = (Workers::new(&prompts, None), Workers::new(&rest, None).away());
    let without = pair(first.clone(), second.clone());
    for request in [request(5), GenerateRequest { tokens: vec![1; 3].into(), ..request(5) }] {
        assert_eq!(answer(&without, &request).await.unwrap()[0].tokens.len(), 5);
        assert_eq!((first.asked().len(), second.asked().len()), (1, 0));
    }
    let neither = pair(first.away(), second);
    let error = answer(&neither, &request(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_text_of_one_worker_goes_to_others_until_something_of_it_came() {
    use Fate::{Cut, Fine, Refused};
    let (one, prompts, rest) = (scheduler(), scheduler(), scheduler());
    let gone = Refused(ErrorKind::Unavailable);
    let several = GenerateRequest { choices: NonZeroU32::new(3).unwrap(), ..request(9) };
    let short = GenerateRequest { tokens: vec![97; 7].into(), ..request(9) };
    for (first, second) in [
        (vec![Fine], vec![Cut(0, true)]),
        (vec![Fine], vec![Cut(0, false)]),
        (vec![gone], vec![Cut(0, true), Fine]),
        (vec![Cut(0, true)], vec![Cut(0, true), Fine]),
        (vec![Cut(0, true)], vec![gone, Fine]),
    ] {
        for request in [&short, &several] {
            let expected = answer(&one, request).await.unwrap();
            let part =
                |engine, fates: &[Fate]| Workers::new(engine, None).fated(fates.iter().copied());
            let pair = pair(part(&prompts, &first), part(&rest, &second));
            assert_eq!(answer(&pair, request).await.unwrap(), expected, "{first:?}, {second:?}");
            assert_eq!(count(&pair, "no_decode"), 1, "{first:?}, {second:?}");
        }
    }
    // When something came, or nobody is left, it is lost.
    for second in [vec![Cut(1, true)], vec![Cut(0, true), Cut(0, true)]] {
        let first = Workers::new(&prompts, None).fated([gone]);
        let pair = pair(first, Workers::new(&rest, None).fated(second));
        assert_eq!(answer(&pair, &short).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test]
async fn what_others_would_say_too_is_for_the_client() {
    let (prompts, rest) = (scheduler(), scheduler());
    for kind in [ErrorKind::InvalidRequest, ErrorKind::DeadlineExceeded, ErrorKind::Internal] {
        let first = Workers::new(&prompts, None).fated([Fate::Refused(kind)]);
        let pair = pair(first, Workers::new(&rest, None));
        assert_eq!(answer(&pair, &request(5)).await.unwrap_err().kind(), kind);
        assert!(pair.rest.asked().is_empty());
    }
    // A busy model refuses a short prompt as it would without prefill workers.
    let busy = Workers::new(&rest, None).fated([Fate::Refused(ErrorKind::Overloaded)]);
    let pair = pair(Workers::new(&prompts, None), busy);
    let short = GenerateRequest { tokens: vec![1; 3].into(), ..request(5) };
    assert_eq!(answer(&pair, &short).await.unwrap_err().kind(), ErrorKind::Overloaded);
    assert!(pair.prompts.asked().is_empty());
}

#[tokio::test]
async fn the_first_token_does_not_wait_for_the_rest() {
    let (prompts, rest) = (scheduler(), scheduler());
    let pair = pair(Workers::new(&prompts, None), Workers::new(&rest, None));
    let mut stream = pair.call(request(5), Context::new("r")).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.tokens.len(), first.finish, first.usage), (1, None, None));
    assert!(pair.rest.asked().is_empty());
    let last = collect(stream).await.unwrap().remove(0);
    assert_eq!((last.tokens.len(), last.finish), (4, Some(FinishReason::Length)));
}
