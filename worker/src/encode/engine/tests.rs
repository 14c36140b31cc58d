//! The engine over a tiny encoder of random weights.

use engine::Embedding;
use futures_util::StreamExt;

use super::*;
use crate::cpu::Isa;
use crate::cpu::linear::Compute;
use crate::cpu::pool::Pool;
use crate::encode::Pipeline;
use crate::model::bert::{Bert, tests::tiny};

const CONFIG: EncodeConfig = EncodeConfig { max_waiting_requests: 64, batch_tokens: 48 };

fn encoder(max_tokens: Option<usize>) -> Encoder {
    let (sizes, made) = tiny("bert");
    let compute = Compute { pool: Pool::start(2).unwrap(), isa: Isa::best() };
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
