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
const WEIGHT: f64 = 0.2;

/// What is known of the passes' times.
#[derive(Debug)]
pub(super) struct Pace {
    /// How many times as long as one without prompts a pass with prompts may take.
    stretch: f64,
    /// Seconds of a pass without prompts; none: not seen yet.
    plain: Option<f64>,
    /// Seconds that a prompt's token adds; none: not seen yet.
    per_token: Option<f64>,
    /// Passes with prompts since the last one without.
    mixed: u32,
}

impl Pace {
    pub(super) fn new(stretch: f32) -> Self {
        Self { stretch: f64::from(stretch), plain: None, per_token: None, mixed: 0 }
    }

    /// Returns how many tokens of prompts the next pass may take beside others' tokens: none if a
    /// pass without prompts is due, and never more than `most`.
    pub(super) fn prompt_tokens(&self, most: usize) -> usize {
        let Some(plain) = self.plain.filter(|_| self.mixed < MIXED_AT_ONCE) else { return 0 };
        let tokens = match self.per_token {
            Some(per_token) if per_token > 0.0 => plain * (self.stretch - 1.0) / per_token,
            Some(_) => f64::INFINITY,
            None => LEAST_TOKENS as f64,
        };
        (tokens as usize).clamp(LEAST_TOKENS.min(most), most)
    }

    /// Learns from a pass in which sequences drew `drawn` tokens and prompts had `prompt`.
    pub(super) fn observe(&mut self, drawn: u64, prompt: u64, time: Duration) {
        let seconds = time.as_secs_f64();
        match (drawn, prompt) {
            (0, _) => {}
            (_, 0) => {
                self.mixed = 0;
                blend(&mut self.plain, seconds);
            }
            (_, prompt) => {
                self.mixed += 1;
                let more = (seconds - self.plain.unwrap_or_default()).max(0.0);
                blend(&mut self.per_token, more / prompt as f64);
            }
        }
    }
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

    /// Runs passes of a model that takes 10 ms and 0.5 ms for each token of a prompt.
    fn run(pace: &mut Pace, passes: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..passes {
            let tokens = pace.prompt_tokens(512);
            pace.observe(4, tokens as u64, 10 * MS + tokens as u32 * MS / 2);
            taken.push(tokens);
        }
        taken
    }

    #[test]
    fn a_pass_takes_as_long_as_it_may() {
        let mut pace = Pace::new(2.5);
        let taken = run(&mut pace, 12);
        // First one without prompts, then few tokens, then what 15 ms allow.
        assert_eq!(taken[..2], [0, LEAST_TOKENS]);
        assert!(taken[2..].iter().all(|&tokens| tokens == 30 || tokens == 29), "{taken:?}");
    }

    #[test]
    fn the_time_without_prompts_is_looked_at_again() {
        let mut pace = Pace::new(2.5);
        let taken = run(&mut pace, 100);
        let plain: Vec<usize> = (0..100).filter(|&pass| taken[pass] == 0).collect();
        assert_eq!(plain, [0, 25, 50, 75]);
        // Sequences that draw have become many: their pass takes four times as long.
        for _ in 0..40 {
            pace.observe(64, 0, 40 * MS);
        }
        assert!((115..=120).contains(&pace.prompt_tokens(512)), "{pace:?}");
    }

    #[test]
    fn bounds_hold_whatever_the_clock_says() {
        let mut pace = Pace::new(1.0);
        run(&mut pace, 3);
        assert_eq!((pace.prompt_tokens(512), pace.prompt_tokens(3)), (LEAST_TOKENS, 3));
        let mut pace = Pace::new(3.0);
        pace.observe(1, 0, MS);
        pace.observe(1, 100, MS / 2);
        assert_eq!(pace.prompt_tokens(200), 200);
        // A prompt alone says nothing of others.
        pace.observe(0, 512, 1000 * MS);
        assert_eq!(pace.prompt_tokens(200), 200);
        // One slow pass is not believed.
        pace.observe(1, 0, 100 * MS);
        assert!(pace.plain.is_some_and(|plain| plain < 0.0013), "{pace:?}");
    }
}
