//! How many tokens of prompts a pass may take that others draw from.
//!
//! Who draws waits for the whole pass. So a pass with prompts may take some times as long as one
//! without; how many tokens that allows is learned from the passes that were.

use std::time::Duration;

/// The fewest tokens of prompts in a pass: with fewer they would hardly get on.
const LEAST_TOKENS: usize = 4;

/// Passes with prompts between two without, so that the time of these stays known.
const MIXED_AT_ONCE: u32 = 24;

/// The weight of the latest time in a mean.
const WEIGHT: f64 = 0.3;

/// What a pass with prompts still counts after the next one.
const KEPT: f64 = 0.9;

/// How many times as many tokens as were seen of late a pass may take.
const GROWTH: f64 = 2.0;

/// A pass that is this many times as much slower as expected, or more, counts as so much slower:
/// the system may have been busy with other things.
const MOST_TIMES: f64 = 4.0;

/// Sizes of batches that are told apart: each up to twice as large as the one before.
const SIZES: usize = 16;

/// What is known of the passes' times.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many times as long as one without prompts a pass with prompts may take.
    stretch: f64,
    /// Seconds of a pass without prompts, for each size of the batch; none: not seen yet.
    plain: [Option<f64>; SIZES],
    /// Seconds that prompts have added to passes, the older the less.
    added: f64,
    /// How many tokens they had, counted alike: passes with many say more of what one costs.
    tokens: f64,
    /// Passes with prompts since the last one without.
    mixed: u32,
}

impl Pace {
    pub(super) fn new(stretch: f32) -> Self {
        let (stretch, plain) = (f64::from(stretch), [None; SIZES]);
        Self { stretch, plain, added: 0.0, tokens: 0.0, mixed: 0 }
    }

    /// Returns how many tokens of prompts a pass may take beside `drawn` tokens of others, at least
    /// one: none if a pass without prompts is due, and never more than `most`.
    pub(super) fn prompt_tokens(&self, drawn: usize, most: usize) -> usize {
        let plain = self.plain[size(drawn)].filter(|_| self.mixed < MIXED_AT_ONCE);
        let Some(plain) = plain else { return 0 };
        // Infinite where they seem to cost nothing.
        let tokens = plain * (self.stretch - 1.0) / self.per_token();
        let tokens = tokens.min(GROWTH * self.tokens);
        (tokens as usize).clamp(LEAST_TOKENS.min(most), most)
    }

    /// Returns the seconds that a prompt's token adds, NaN if that was not seen yet.
    fn per_token(&self) -> f64 {
        self.added / self.tokens
    }

    /// Learns from a pass in which sequences drew `drawn` tokens and prompts had `prompt`.
    pub(super) fn observe(&mut self, drawn: usize, prompt: usize, time: Duration) {
        if drawn == 0 {
            return;
        }
        let seconds = time.as_secs_f64();
        let plain = &mut self.plain[size(drawn)];
        match (prompt, *plain) {
            (0, _) => {
                self.mixed = 0;
                blend(plain, seconds);
            }
            (_, None) => self.mixed = MIXED_AT_ONCE,
            (prompt, Some(plain)) => {
                self.mixed += 1;
                let (tokens, added) = (prompt as f64, (seconds - plain).max(0.0));
                let expected = self.per_token() * tokens;
                let most = if expected > 0.0 { MOST_TIMES * expected } else { f64::INFINITY };
                self.added = KEPT * self.added + added.min(most);
                self.tokens = KEPT * self.tokens + tokens;
            }
        }
    }
}

/// Returns which size of batch so many tokens are.
fn size(drawn: usize) -> usize {
    (drawn.max(1).ilog2() as usize).min(SIZES - 1)
}

/// Moves a mean towards a value. One that is much larger, as when the system was busy with other
/// things, counts as twice the mean.
fn blend(mean: &mut Option<f64>, value: f64) {
    *mean = Some(match *mean {
        Some(mean) if mean > 0.0 => mean + WEIGHT * (value.min(2.0 * mean) - mean),
        _ => value,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Runs passes of a model that takes 6 ms, 0.5 ms for each token drawn and 0.5 ms for each of a
    /// prompt; returns the prompts' tokens.
    fn run(pace: &mut Pace, drawn: usize, passes: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..passes {
            let tokens = pace.prompt_tokens(drawn, 512);
            pace.observe(drawn, tokens, 6 * MS + (drawn + tokens) as u32 * MS / 2);
            taken.push(tokens);
        }
        taken
    }

    #[test]
    fn a_pass_takes_as_long_as_it_may() {
        let mut pace = Pace::new(2.5);
        let taken = run(&mut pace, 8, 12);
        // First one without prompts, then few tokens, then more and more up to what 15 ms allow.
        assert_eq!(taken[..4], [0, LEAST_TOKENS, 2 * LEAST_TOKENS, 23]);
        assert!(taken[4..].iter().all(|&tokens| tokens == 30 || tokens == 29), "{taken:?}");
    }

    #[test]
    fn a_noisy_clock_makes_no_pass_much_too_long() {
        let mut state = 7u64;
        let mut noise = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        for drawn in [1, 8] {
            let mut pace = Pace::new(2.0);
            let mut taken = Vec::new();
            for _ in 0..5000 {
                let tokens = pace.prompt_tokens(drawn, 512);
                let busy = if noise() < 0.05 { 4.0 } else { 1.0 };
                let ms = (6.0 + (drawn + tokens) as f64 / 2.0) * (0.8 + 0.5 * noise()) * busy;
                pace.observe(drawn, tokens, Duration::from_secs_f64(ms / 1e3));
                taken.push(tokens);
            }
            taken.retain(|&tokens| tokens > 0);
            taken.sort_unstable();
            let allowed = 12 + drawn;
            let [median, last] = [taken.len() / 2, taken.len() * 99 / 100].map(|at| taken[at]);
            assert!(median.abs_diff(allowed) <= allowed / 2, "{median} of {allowed}");
            assert!(last <= 3 * allowed, "{last} of {allowed}");
        }
    }

    #[test]
    fn the_time_without_prompts_is_looked_at_again() {
        let mut pace = Pace::new(2.5);
        let taken = run(&mut pace, 8, 100);
        let plain: Vec<usize> = (0..100).filter(|&pass| taken[pass] == 0).collect();
        assert_eq!(plain, [0, 25, 50, 75]);
        // What lies behind the sequences has grown: a pass takes four times as long.
        for _ in 0..40 {
            pace.observe(8, 0, 40 * MS);
        }
        assert!((115..=120).contains(&pace.prompt_tokens(8, 512)), "{pace:?}");
    }

    #[test]
    fn batches_that_grow_and_shrink_keep_their_pace() {
        let mut pace = Pace::new(2.0);
        run(&mut pace, 4, 40);
        for drawn in [64, 4, 1, 64, 2] {
            let taken = run(&mut pace, drawn, 10);
            // Two passes to learn, and from then on as long as it may be.
            let allowed = 12 + drawn;
            for &tokens in taken[2..].iter().filter(|&&tokens| tokens > 0) {
                assert!(tokens.abs_diff(allowed) <= 1, "{tokens} of {allowed} beside {drawn}");
            }
        }
    }

    #[test]
    fn bounds_hold_whatever_the_clock_says() {
        let mut pace = Pace::new(1.0);
        run(&mut pace, 1, 3);
        assert_eq!((pace.prompt_tokens(1, 512), pace.prompt_tokens(1, 3)), (LEAST_TOKENS, 3));
        let mut pace = Pace::new(3.0);
        pace.observe(1, 0, MS);
        pace.observe(1, 100, MS / 2);
        assert_eq!(pace.prompt_tokens(1, 200), 200);
        // A prompt alone says nothing of others.
        pace.observe(0, 512, 1000 * MS);
        assert_eq!(pace.prompt_tokens(1, 200), 200);
        // One slow pass is not believed.
        pace.observe(1, 0, 100 * MS);
        assert!(pace.plain[0].is_some_and(|plain| plain < 0.0014), "{pace:?}");
        assert_eq!(pace.prompt_tokens(usize::MAX, 200), 0);
    }
}
