//! A model that gives what is no number fails the sequence that it gave it to, and no other.

use super::*;
use crate::runner::Wants;

/// The token behind which the model gives no numbers.
const ODD: TokenId = 7;

/// A mock runner that gives NaN behind a certain token.
struct Odd {
    mock: MockRunner,
    logits: Vec<f32>,
    hidden: Vec<f32>,
}

impl Runner for Odd {
    fn limits(&self) -> Limits {
        self.mock.limits()
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        let limits = self.mock.limits();
        let outputs = self.mock.forward(batch)?;
        self.logits = outputs.logits.to_vec();
        self.hidden = outputs.hidden.to_vec();
        let (mut logits, mut hidden) = (0, 0);
        for entry in batch {
            let last = entry.tokens.len() - 1;
            for (place, &token) in entry.tokens.iter().enumerate() {
                let is_odd = token == ODD;
                if entry.wants == Wants::Hidden {
                    self.hidden[hidden] = if is_odd { f32::NAN } else { self.hidden[hidden] };
                    hidden += limits.dimensions;
                }
                let has_row = match entry.wants {
                    Wants::All => true,
                    Wants::Last => place == last,
                    Wants::Hidden | Wants::Nothing => false,
                };
                if has_row {
                    let row = &mut self.logits[logits..][..limits.vocabulary];
                    // One number is enough.
                    row[9] = if is_odd { f32::NAN } else { row[9] };
                    logits += limits.vocabulary;
                }
            }
        }
        Ok(Outputs { logits: &self.logits, hidden: &self.hidden, ..outputs })
    }

    fn copy_block(&mut self, _: BlockId, _: BlockId) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn read_block(&mut self, _: BlockId, _: &mut Vec<u8>) -> std::result::Result<(), crate::Error> {
        Ok(())
    }

    fn write_block(&mut self, _: BlockId, _: &[u8]) -> std::result::Result<(), crate::Error> {
        Ok(())
    }
}

fn odd(pace: Duration) -> GenerateEngine {
    let mock = MockConfig { pace, ..MockConfig::default() };
    let runner = Odd { mock: MockRunner::new(mock), logits: Vec::new(), hidden: Vec::new() };
    let config = SchedulerConfig::default();
    GenerateEngine::start(Box::new(runner), &mock::vocabulary(), vec![], config).unwrap()
}

fn prompt(tokens: &[TokenId], max_tokens: u32) -> GenerateRequest {
    GenerateRequest::new(tokens.to_vec(), StopConditions::after(max_tokens))
}

#[tokio::test]
async fn logits_that_are_no_numbers_fail_their_sequence_alone() {
    let engine = odd(Duration::from_millis(2));
    let mut sound = call(&engine, request(3, 50)).await;
    sound.next().await.unwrap().unwrap();
    let mut warm = prompt(&[1, ODD], 5);
    warm.sampling.temperature = 1.0;
    let mut scored = prompt(&[ODD, 1], 5);
    scored.prompt_logprobs = Some(0);
    for request in [prompt(&[1, ODD], 5), warm, scored] {
        let error = collect(call(&engine, request).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("logits that are not numbers"), "{error}");
    }
    let outputs = collect(sound).await.unwrap();
    assert_eq!(outputs[0].finish, Some(FinishReason::Length), "the other one goes on");
    settles(&engine).await;
}

#[tokio::test]
async fn a_vector_that_is_none_is_an_error() {
    let engine = odd(Duration::ZERO);
    let embed = async |tokens: &[TokenId]| {
        let request = EmbedRequest { tokens: tokens.into(), adapter: None };
        let mut stream = engine.call(request, Context::new("test")).await.unwrap();
        stream.next().await.unwrap()
    };
    assert!(embed(&[1, 2]).await.is_ok());
    let error = embed(&[1, ODD]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.message().contains("a vector of what are not numbers"), "{error}");
}
