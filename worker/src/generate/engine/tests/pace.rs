//! A long prompt that comes while others are read: the passes that they share.

use std::sync::{Arc, Mutex};

use super::*;
use crate::turns::PassScheduler;

/// What a pass takes by the runner's own time, and what each of its tokens adds.
const PASS: Duration = Duration::from_millis(16);
const TOKEN: Duration = Duration::from_micros(400);

/// What a pass takes by the clock: long enough to get a word in while a text is read.
const REAL_PASS: Duration = Duration::from_millis(4);

/// Tokens drawn, tokens of prompts, and the time that it took, pass by pass.
pub(super) type Passes = Arc<Mutex<Vec<(usize, usize, Duration)>>>;

/// A mock runner whose passes take time for every token: by its own time, which no busy machine
/// stretches, or by the clock.
struct Timed {
    mock: MockRunner,
    turns: PassScheduler,
    passes: Passes,
    time: Duration,
    has_own_time: bool,
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
        self.time = PASS + TOKEN * (drawn + prompt) as u32;
        std::thread::sleep(if self.has_own_time { REAL_PASS } else { self.time });
        self.passes.lock().unwrap().push((drawn, prompt, self.time));
        self.mock.forward(batch)
    }

    fn turns(&self) -> PassScheduler {
        self.turns.clone()
    }

    fn pass_time(&self) -> Option<Duration> {
        self.has_own_time.then_some(self.time)
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

pub(super) fn timed(config: SchedulerConfig, mock: MockConfig) -> (GenerateEngine, Passes) {
    timed_on(&PassScheduler::default(), true, config, mock)
}

fn timed_on(
    turns: &PassScheduler,
    has_own_time: bool,
    config: SchedulerConfig,
    mock: MockConfig,
) -> (GenerateEngine, Passes) {
    let passes = Passes::default();
    let (mock, turns, time) = (MockRunner::new(mock), turns.clone(), Duration::ZERO);
    let runner = Timed { mock, turns, passes: passes.clone(), time, has_own_time };
    let (vocabulary, eos) = (mock::vocabulary(), Vec::new());
    (GenerateEngine::start(Box::new(runner), &vocabulary, eos, config).unwrap(), passes)
}

/// Reads four texts while a prompt comes in, and returns how many times as long as one without the
/// passes with tokens of it took, at the median.
async fn stretched(stretch: f32) -> f64 {
    let config = SchedulerConfig { mixed_pass_stretch: stretch, ..SchedulerConfig::default() };
    let (engine, passes) = timed(config, MockConfig::default());
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut reader = call(&engine, request(1, 5000)).await;
        reader.next().await.unwrap().unwrap();
        readers.push(reader);
    }
    let before = passes.lock().unwrap().len();
    assert!(comes(|| passes.lock().unwrap().len() > before + 30).await);
    let outputs = collect(call(&engine, request(1200, 1)).await).await.unwrap();
    assert_eq!(outputs[0].tokens.len(), 1);
    let passes = passes.lock().unwrap().clone();
    let prompts: usize = passes.iter().map(|(_, prompt, _)| prompt).sum();
    assert_eq!(prompts, 4 + 1200, "no token is computed twice");
    let median = |is_mixed: bool| {
        let of_four = passes.iter().filter(|(drawn, ..)| *drawn == 4);
        let alike = of_four.filter(|(_, prompt, _)| (*prompt > 0) == is_mixed);
        let mut times: Vec<f64> = alike.map(|(.., time)| time.as_secs_f64()).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    };
    median(true) / median(false)
}

#[tokio::test]
async fn a_long_prompt_keeps_the_time_between_tokens_within_the_stretch() {
    for stretch in [2.0, 4.0] {
        let times = stretched(stretch).await;
        // Whole blocks make it a little more or less.
        let share = times / f64::from(stretch);
        assert!((0.5..=1.4).contains(&share), "{times} times as long, {stretch} are allowed");
    }
}

#[tokio::test]
async fn a_prompt_comes_in_beside_a_text_that_is_guessed_all_along() {
    // Every pass has guesses, so that none takes as long as one token alone would.
    let mock = MockConfig { reply: Some("one two ".repeat(800)), ..MockConfig::default() };
    let config = SchedulerConfig { draft_tokens: 6, ..SchedulerConfig::default() };
    let (engine, passes) = timed(config, mock);
    let mut reader = call(&engine, request(8, 6000)).await;
    for _ in 0..30 {
        reader.next().await.unwrap().unwrap();
    }
    assert!(engine.totals().accepted_tokens > 5, "{:?}", engine.totals());
    let asked = call(&engine, request(20, 1)).await;
    let before = passes.lock().unwrap().len();
    collect(asked).await.unwrap();
    let passes = passes.lock().unwrap();
    let last = passes.iter().rposition(|(_, prompt, _)| *prompt > 0).unwrap();
    let drawn: usize = passes.iter().take(last).skip(before).map(|(drawn, ..)| drawn).sum();
    assert!(drawn < 3000, "the prompt waited for {drawn} tokens of the text");
}

/// Returns how long a pass without prompts takes of the model that sequences draw from.
fn drawing(turns: &PassScheduler) -> Option<f64> {
    turns.state().1.iter().find_map(|demand| demand.drawing)
}

/// Starts to read a text, and waits until those on the same threads know of it.
async fn read(engine: &GenerateEngine, turns: &PassScheduler) -> OutputStream<GenerateRequest> {
    let reader = call(engine, request(1, 5000)).await;
    assert!(comes(|| drawing(turns).is_some_and(|seconds| seconds > 0.0)).await);
    reader
}

#[tokio::test]
async fn a_prompt_leaves_time_to_those_who_read_from_another_model() {
    let turns = PassScheduler::default();
    let (first, _) = timed_on(&turns, true, SchedulerConfig::default(), MockConfig::default());
    // Prompts may add nothing, so that no clock decides how much that is.
    let config = SchedulerConfig {
        mixed_pass_stretch: 1.0,
        has_prefix_cache: false,
        ..SchedulerConfig::default()
    };
    let (second, passes) = timed_on(&turns, true, config, MockConfig::default());
    let prompts = || -> Vec<usize> {
        std::mem::take(&mut *passes.lock().unwrap()).iter().map(|(_, prompt, _)| *prompt).collect()
    };
    let reader = read(&first, &turns).await;
    collect(call(&second, request(200, 1)).await).await.unwrap();
    let taken = prompts();
    assert_eq!(taken.iter().sum::<usize>(), 200);
    assert!(taken.iter().all(|&tokens| tokens <= 8), "{taken:?}");
    // Nobody waits any more.
    drop(reader);
    settles(&first).await;
    collect(call(&second, request(200, 1)).await).await.unwrap();
    assert_eq!(prompts(), [200]);
}

#[tokio::test]
async fn the_wait_for_other_models_is_no_time_of_a_pass() {
    const HELD: Duration = Duration::from_millis(400);
    let turns = PassScheduler::default();
    // The clock counts here. Three passes in a row would have to take twelve times as long as one does.
    let (engine, passes) =
        timed_on(&turns, false, SchedulerConfig::default(), MockConfig::default());
    let other = turns.join();
    let _reader = read(&engine, &turns).await;
    let before = passes.lock().unwrap().len();
    while passes.lock().unwrap().len() < before + 5 {
        let turn = other.begin();
        tokio::time::sleep(HELD).await;
        drop(turn);
    }
    // All of the latest passes waited that long, and took some 17 ms.
    let plain = drawing(&turns).unwrap();
    assert!(plain < HELD.as_secs_f64() / 2.0, "{plain}");
}
