//! The engine over a tiny encoder of random weights.

use engine::Embedding;
use futures_util::StreamExt;

use super::*;
use crate::cpu::Isa;
use crate::cpu::linear::Compute;
use crate::cpu::pool::Pool;
use crate::encode::Pipeline;
use crate::model::bert::{Bert, tests::tiny};
use crate::turns::Demand;

const CONFIG: EncodeConfig =
    EncodeConfig { max_waiting_requests: 64, batch_tokens: 48, mixed_pass_stretch: 2.0 };

fn encoder(max_tokens: Option<usize>) -> Encoder {
    encoder_on(Pool::start(2).unwrap(), max_tokens)
}

fn encoder_on(pool: Pool, max_tokens: Option<usize>) -> Encoder {
    let (sizes, made) = tiny("bert");
    let compute = Compute { pool, isa: Isa::best() };
    let pipeline = Pipeline { normalizes: true, max_tokens, ..Pipeline::default() };
    Encoder::new(Bert::read(&made, sizes).unwrap(), compute, pipeline)
}

async fn ask(engine: &EncodeEngine, tokens: Vec<TokenId>) -> Result<Embedding> {
    let request = EmbedRequest { tokens: tokens.into(), adapter: None };
    let mut stream = engine.call(request, Context::new("r")).await?;
    let vector = stream.next().await.unwrap();
    assert!(stream.next().await.is_none(), "there is exactly one");
    vector
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_are_as_each_alone() {
    let mut alone = encoder(None);
    let engine = EncodeEngine::start(encoder(None), CONFIG).unwrap();
    let texts: Vec<Vec<TokenId>> =
        (1..40).map(|length| (0..length).map(|place| (place * length) % 50).collect()).collect();
    let asked = texts.iter().map(|text| ask(&engine, text.clone()));
    let answers = futures_util::future::join_all(asked).await;
    for (text, answer) in texts.iter().zip(answers) {
        let answer = answer.unwrap();
        assert_eq!(answer, alone.embed(&[text])[0]);
        let length: f32 = answer.values.iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
    assert_eq!(engine.load(), WorkerLoad::default());
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_with_the_numbers() {
    let engine = EncodeEngine::start(encoder(Some(9)), CONFIG).unwrap();
    let table = [
        (vec![], "the text has no tokens"),
        (vec![0; 10], "the text has 10 tokens, the model takes at most 9"),
        (vec![1, 50], "token 50 is not one of the vocabulary's 50"),
    ];
    for (tokens, expected) in table {
        let error = ask(&engine, tokens).await.unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidRequest, expected));
    }
    assert!(ask(&engine, vec![0; 9]).await.is_ok());
}

#[tokio::test]
async fn an_engine_that_stops_says_so() {
    let engine = EncodeEngine::start(encoder(None), CONFIG).unwrap();
    assert!(engine.is_healthy());
    engine.queue.close(&stopped());
    assert!(!engine.is_healthy());
    let error = ask(&engine, vec![1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn a_text_lets_by_who_is_drawn_from_between_its_layers() {
    let text: Vec<TokenId> = (0..30).collect();
    let alone = encoder(None).embed(&[&text]);
    let pool = Pool::start(2).unwrap();
    let turns = pool.turns().clone();
    let mut encoder = encoder_on(pool, None);
    let (first, drawn) = (turns.join(), turns.join());
    // Its passes take no time, so that any text takes longer.
    drawn.tell(Demand { drawing: Some(0.0), has_prompts: false });
    let turn = first.begin();
    let asked = |passes| {
        while turns.state().0 < passes {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let embedding = scope.spawn(|| encoder.embed(&[&text]));
        asked(2);
        let draws = scope.spawn(|| drop(drawn.begin()));
        asked(3);
        drop(turn);
        draws.join().unwrap();
        assert_eq!(embedding.join().unwrap(), alone);
    });
    assert_eq!(turns.state().0, 4, "the text went on behind the one that waited");
}

#[cfg(target_os = "linux")]
#[test]
fn the_thread_of_an_encoder_keeps_to_its_core_where_others_do() {
    use crate::cpu::cores::tests::kernel;
    for (pool, kept) in [(Pool::start(1), kernel()), (Pool::start_pinned(1), vec![kernel()[0]])] {
        let mut encoder = encoder_on(pool.unwrap(), None);
        let thread = std::thread::spawn(move || {
            encoder.embed(&[&[1, 2]]);
            kernel()
        });
        assert_eq!(thread.join().unwrap(), kept);
    }
}

#[test]
fn texts_leave_time_to_those_who_draw_from_other_models() {
    let pool = Pool::start(1).unwrap();
    let drawn = pool.turns().join();
    let mut encoder = encoder_on(pool, None);
    assert_eq!(encoder.pass_tokens(48, 2.0), 48);
    // What a token costs is not known yet, so that one text comes after the other.
    drawn.tell(Demand { drawing: Some(1e9), has_prompts: false });
    assert_eq!(encoder.pass_tokens(48, 2.0), 0);
    encoder.embed(&[&[1; 10]]);
    assert_eq!(encoder.pass_tokens(48, 2.0), 20, "not many times as many as were seen");
    for drawing in [Some(0.0), Some(1e-12)] {
        drawn.tell(Demand { drawing, has_prompts: false });
        assert_eq!(encoder.pass_tokens(48, 2.0), 0);
    }
    drop(drawn);
    assert_eq!(encoder.pass_tokens(48, 2.0), 48);
}
