//! A long prompt that comes while others are read: the passes that they share.

use std::sync::{Arc, Mutex};

use super::*;

/// What a pass takes, and what each of its tokens adds.
const PASS: Duration = Duration::from_millis(4);
const TOKEN: Duration = Duration::from_micros(100);

/// Tokens drawn and tokens of prompts, pass by pass.
type Passes = Arc<Mutex<Vec<(usize, usize)>>>;

/// A mock runner that takes its time for every token.
struct Timed {
    mock: MockRunner,
    passes: Passes,
}

impl Runner for Timed {
    fn limits(&self) -> Limits {
        self.mock.limits()
    }

    fn forward(&mut self, batch: &[Entry<'_>]) -> std::result::Result<Outputs<'_>, crate::Error> {
        let (mut drawn, mut prompt) = (0, 0);
        for entry in batch {
            match entry.start >= entry.prompt {
                true => drawn += entry.tokens.len(),
                false => prompt += entry.tokens.len(),
            }
        }
        std::thread::sleep(PASS + TOKEN * (drawn + prompt) as u32);
        self.passes.lock().unwrap().push((drawn, prompt));
        self.mock.forward(batch)
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

/// Reads four texts while a prompt comes in, and returns the passes with tokens of both.
async fn mixed_passes(stretch: f32) -> Vec<(usize, usize)> {
    let passes = Passes::default();
    let runner = Timed { mock: MockRunner::new(MockConfig::default()), passes: passes.clone() };
    let config = SchedulerConfig { mixed_pass_stretch: stretch, ..SchedulerConfig::default() };
    let (vocabulary, eos) = (mock::vocabulary(), Vec::new());
    let engine = GenerateEngine::start(Box::new(runner), &vocabulary, eos, config).unwrap();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut reader = call(&engine, request(1, 5000)).await;
        reader.next().await.unwrap().unwrap();
        readers.push(reader);
    }
    let outputs = collect(call(&engine, request(1200, 1)).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 1);
    let passes = passes.lock().unwrap().clone();
    let prompts: usize = passes.iter().map(|(_, prompt)| prompt).sum();
    assert_eq!(prompts, 4 + 1200, "no token is computed twice");
    passes.into_iter().filter(|&(drawn, prompt)| drawn == 4 && prompt > 0).collect()
}

#[tokio::test]
async fn a_long_prompt_keeps_the_time_between_tokens_within_the_stretch() {
    let plain = PASS + TOKEN * 4;
    for stretch in [2.0, 4.0] {
        let mixed = mixed_passes(stretch).await;
        let mut tokens: Vec<usize> = mixed.iter().map(|&(_, prompt)| prompt).collect();
        tokens.sort_unstable();
        // A busy machine makes single passes longer, and with them what the others may take.
        let median = PASS + TOKEN * (4 + tokens[tokens.len() / 2]) as u32;
        let times = median.as_secs_f64() / plain.as_secs_f64();
        let stretch = f64::from(stretch);
        assert!(times <= 1.3 * stretch, "{times} times as long: {tokens:?}");
        assert!(times >= 0.6 * stretch, "{times} times as long, the prompt waits: {tokens:?}");
    }
}
