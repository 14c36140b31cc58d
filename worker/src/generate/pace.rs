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

/// Sizes of batches that are told apart: each up to twice as large as the one before.
const SIZES: usize = 16;

/// What is known of the passes' times.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many times as long as one without prompts a pass with prompts may take.
    stretch: f64,
    /// Seconds of a pass without prompts, for each size of the batch; none: not seen yet.
    plain: [Option<f64>; SIZES],
    /// Seconds that a prompt's token adds; none: not seen yet.
    per_token: Option<f64>,
    /// Passes with prompts since the last one without.
    mixed: u32,
}

impl Pace {
    pub(super) fn new(stretch: f32) -> Self {
        Self { stretch: f64::from(stretch), plain: [None; SIZES], per_token: None, mixed: 0 }
    }

    /// Returns how many tokens of prompts a pass may take beside `drawn` tokens of others, at least
    /// one: none if a pass without prompts is due, and never more than `most`.
    pub(super) fn prompt_tokens(&self, drawn: usize, most: usize) -> usize {
        let plain = self.plain[size(drawn)].filter(|_| self.mixed < MIXED_AT_ONCE);
        let Some(plain) = plain else { return 0 };
        let tokens = match self.per_token {
            Some(per_token) if per_token > 0.0 => plain * (self.stretch - 1.0) / per_token,
            Some(_) => f64::INFINITY,
            None => LEAST_TOKENS as f64,
        };
        (tokens as usize).clamp(LEAST_TOKENS.min(most), most)
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
                blend(&mut self.per_token, (seconds - plain).max(0.0) / prompt as f64);
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
        // First one without prompts, then few tokens, then what 15 ms allow.
        assert_eq!(taken[..2], [0, LEAST_TOKENS]);
        assert!(taken[2..].iter().all(|&tokens| tokens == 30 || tokens == 29), "{taken:?}");
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
