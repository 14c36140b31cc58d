//! How fast a model runs here, beside what the machine's memory allows.

use std::time::Duration;

use engine::Sampling;

use crate::Error;
use crate::cpu::Isa;
use crate::cpu::memory::Pages;
use crate::cpu::pool::Pool;
use crate::cpu::vector::xor;
use crate::generate::{Rules, Sampler, Scorer, Scratch};
use crate::runner::{BlockId, Entry, Runner, Wants};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Tokens of the prompt whose prefill is timed.
    pub prompt: usize,
    /// How often the prefill is timed.
    pub prefills: usize,
    /// Tokens of each sequence before the first timed decode step.
    pub context: usize,
    /// Decode steps that are timed for each batch.
    pub steps: usize,
    /// Sequences that are decoded together, for each measurement.
    pub batches: Vec<usize>,
}

impl Default for Workload {
    fn default() -> Self {
        Self { prompt: 512, prefills: 4, context: 128, steps: 64, batches: vec![1, 8, 16] }
    }
}

/// Times of one kind of pass.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Tokens of a pass.
    pub tokens: usize,
    /// The median.
    pub median: Duration,
    /// The quarter of the passes that were fastest took no longer.
    pub quarter: Duration,
    /// The fastest.
    pub best: Duration,
}

impl Times {
    fn new(tokens: usize, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |index: usize| times.get(index).copied().unwrap_or_default();
        let count = times.len();
        Self { tokens, median: at(count / 2), quarter: at(count / 4), best: at(0) }
    }

    /// Returns the tokens per second of a pass of this time.
    pub fn rate(&self, time: Duration) -> f64 {
        self.tokens as f64 / time.as_secs_f64()
    }
}

/// Times prefills of one prompt, each from an empty cache.
///
/// Errors: the runner has too few blocks or too short a context, or fails.
pub fn prefill(
    runner: &mut dyn Runner,
    workload: &Workload,
    clock: impl Fn() -> Duration,
) -> Result<Times, Error> {
    let blocks = tables(runner, 1, workload.prompt)?.remove(0);
    let tokens = prompt(runner, workload.prompt);
    let mut times = Vec::new();
    for _ in 0..workload.prefills {
        let started = clock();
        for (index, chunk) in tokens.chunks(runner.limits().batch_tokens.max(1)).enumerate() {
            let start = index * runner.limits().batch_tokens;
            let is_last = start + chunk.len() == tokens.len();
            let wants = if is_last { Wants::Last } else { Wants::Nothing };
            runner.forward(&[Entry {
                tokens: chunk,
                start,
                blocks: &blocks,
                prompt: 0,
                adapter: None,
                wants,
            }])?;
        }
        times.push(clock().saturating_sub(started));
    }
    Ok(Times::new(workload.prompt, times))
}

/// Times draws from each row of logits in turn, `rounds` times; with `top`, with log-probabilities of
/// the token and of so many of the likeliest.
pub fn draw(
    sampling: &Sampling,
    top: Option<usize>,
    rows: &[Vec<f32>],
    rounds: usize,
    clock: impl Fn() -> Duration,
) -> Times {
    let isa = Isa::best();
    let (mut scratch, mut scorer) = (Scratch::new(isa), Scorer::new(isa));
    let mut sampler = Sampler::new(sampling, &[], 0);
    let mut times = Vec::with_capacity(rounds * rows.len());
    for row in std::iter::repeat_n(rows, rounds).flatten() {
        let started = clock();
        let token = sampler.draw(row, Rules::default(), &mut scratch);
        if let (Some(token), Some(top)) = (token, top) {
            std::hint::black_box(scorer.score(row, token, top));
        }
        std::hint::black_box(token);
        times.push(clock().saturating_sub(started));
    }
    Times::new(1, times)
}

/// Times decode steps of a batch of sequences, with logits for each.
///
/// Errors: the runner has too few blocks or too short a context, or fails.
pub fn decode(
    runner: &mut dyn Runner,
    workload: &Workload,
    batch: usize,
    clock: impl Fn() -> Duration,
) -> Result<Times, Error> {
    let tables = tables(runner, batch, workload.context + workload.steps)?;
    let tokens = prompt(runner, workload.context);
    for blocks in &tables {
        for (index, tokens) in tokens.chunks(runner.limits().batch_tokens.max(1)).enumerate() {
            let start = index * runner.limits().batch_tokens;
            runner.forward(&[Entry {
                tokens,
                start,
                blocks,
                prompt: 0,
                adapter: None,
                wants: Wants::Nothing,
            }])?;
        }
    }
    let mut times = Vec::new();
    for step in 0..workload.steps {
        let start = workload.context + step;
        let entry = |blocks| Entry {
            tokens: &[5],
            start,
            blocks,
            prompt: 0,
            adapter: None,
            wants: Wants::Last,
        };
        let entries: Vec<Entry<'_>> = tables.iter().map(|table| entry(&table[..])).collect();
        let started = clock();
        runner.forward(&entries)?;
        times.push(clock().saturating_sub(started));
    }
    Ok(Times::new(batch, times))
}

/// Makes some tokens.
fn prompt(runner: &dyn Runner, length: usize) -> Vec<u32> {
    let vocabulary = runner.limits().vocabulary.max(1);
    (0..length).map(|i| ((i * 37 + 20) % vocabulary) as u32).collect()
}

/// Makes tables of blocks for sequences of a length.
fn tables(runner: &dyn Runner, count: usize, tokens: usize) -> Result<Vec<Vec<BlockId>>, Error> {
    let limits = runner.limits();
    let each = tokens.div_ceil(limits.block_size);
    if tokens > limits.context_length || count * each > limits.blocks {
        return Err(Error::Model(format!(
            "expected room for {count} sequences of {tokens} tokens, got {} blocks of {} and a \
             context of {}",
            limits.blocks, limits.block_size, limits.context_length
        )));
    }
    Ok((0..count).map(|i| ((i * each) as BlockId..((i + 1) * each) as BlockId).collect()).collect())
}

/// Measures how many bytes a second the threads read of a buffer in large pages; the best of
/// `rounds`.
///
/// Errors: no memory, or no threads.
pub fn read_bandwidth(
    threads: usize,
    bytes: usize,
    rounds: usize,
    clock: impl Fn() -> Duration,
) -> Result<f64, Error> {
    /// Bytes that a thread takes at a time.
    const PART: usize = 64 << 10;
    let missing = |error| Error::Device(format!("no memory or threads to measure with: {error}"));
    let mut buffer = Pages::<u8>::take(bytes).map_err(missing)?;
    buffer.fill(1);
    let pool = Pool::start(threads).map_err(missing)?;
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        let started = clock();
        pool.share(bytes.div_ceil(PART), 4, |_, parts| {
            let part = &buffer[parts.start * PART..bytes.min(parts.end * PART)];
            let mut out = 0;
            xor(Isa::best(), part, &mut out);
            std::hint::black_box(out);
        });
        best = best.min(clock().saturating_sub(started));
    }
    Ok(bytes as f64 / best.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::runner::mock::{MockConfig, MockRunner};

    #[test]
    fn passes_are_timed_by_the_clock_that_is_given() {
        let mut runner = MockRunner::new(MockConfig::default());
        let ticks = Cell::new(0);
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_millis(10 * ticks.get())
        };
        let workload = Workload { prompt: 40, context: 20, ..Workload::default() };
        let times = prefill(&mut runner, &workload, clock).unwrap();
        assert_eq!(times.rate(times.best), 4000.0);
        let times = decode(&mut runner, &workload, 2, clock).unwrap();
        assert_eq!(times.rate(times.median), 200.0);
        let bandwidth = read_bandwidth(2, 1_000_000, 2, clock).unwrap();
        assert_eq!(bandwidth, 1e8);
        let rows = [vec![0.0, 9.0], vec![9.0, 0.0]];
        let times = draw(&Sampling::default(), Some(1), &rows, 3, clock);
        assert_eq!(times.rate(times.median), 100.0);
        let much = Workload { prompt: usize::MAX / 2, ..workload };
        let error = prefill(&mut runner, &much, clock).unwrap_err().to_string();
        assert!(error.contains("expected room for 1 sequences"), "{error}");
    }
}
