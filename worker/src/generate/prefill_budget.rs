//! How many tokens of prompts a pass may take that others draw from.
//!
//! Who draws waits for the whole pass, and for those of other models on the same threads. So a pass
//! with prompts may take some times as long as one without; how many tokens that allows is learned
//! from the passes that were.

use std::time::Duration;

use crate::turns::{Others, PrefillCost};

/// The fewest tokens of prompts in a pass: with fewer they would hardly get on.
const LEAST_TOKENS: usize = 4;

/// Passes with prompts between two without, so that the time of these stays known.
const MIXED_AT_ONCE: u32 = 24;

/// Passes without prompts that say how long one takes, and the most that are looked at in a row.
const LOOKS: usize = 3;

/// A pass that takes this many times as long as another one takes longer for a reason.
const FAR: f64 = 1.3;

/// Passes in a row that are much faster than expected after which the next one has no prompts.
const FAST_PASSES: u32 = 2;

/// Sizes of batches that are told apart: nothing, and then each up to twice as large as the one
/// before.
const SIZES: usize = 17;

/// What is known of the passes' times.
#[derive(Debug)]
pub(super) struct PrefillBudget {
    /// How many times as long as one without prompts a pass with prompts may take.
    stretch: f64,
    /// The times of passes without prompts, for each size of the batch; none: not seen yet.
    plain: [Option<Times>; SIZES],
    /// What prompts add to them.
    cost: PrefillCost,
    /// Passes with prompts since the last one without.
    mixed: u32,
    /// Passes without prompts since the last one with some.
    looks: usize,
    /// Passes in a row that were much faster than expected.
    fast: u32,
}

/// The seconds of the latest passes that were alike, the first time in all places.
#[derive(Clone, Copy, Debug)]
struct Times([f64; LOOKS]);

impl Times {
    fn add(&mut self, seconds: f64) {
        self.0.rotate_left(1);
        self.0[LOOKS - 1] = seconds;
    }

    /// Returns the time that is believed: the middle one, but the least where that is far below.
    /// What else the machine does makes passes slow and never fast, so one that is much faster is
    /// believed at once, and slower ones when nothing else is seen any more.
    fn believed(&self) -> f64 {
        let mut sorted = self.0;
        sorted.sort_unstable_by(f64::total_cmp);
        let [least, middle, _] = sorted;
        if middle > FAR * least { least } else { middle }
    }
}

impl PrefillBudget {
    pub(super) fn new(stretch: f32) -> Self {
        let (stretch, plain, cost) = (f64::from(stretch), [None; SIZES], PrefillCost::default());
        Self { stretch, plain, cost, mixed: 0, looks: 0, fast: 0 }
    }

    /// Returns how many tokens of prompts a pass may take beside `drawn` tokens that sequences of the
    /// model draw, and those of others: none, or the fewest, if a pass without prompts is due, and
    /// never more than `most`.
    pub(super) fn prompt_tokens(&self, drawn: usize, others: Others, most: usize) -> usize {
        let none = as_none(drawn);
        let plain = self.plain(drawn).filter(|_| self.mixed < MIXED_AT_ONCE);
        let Some(plain) = plain else { return none.min(most) };
        let allowed = self.cost.tokens(others.allowance(plain, self.stretch));
        none.saturating_add(allowed.max(LEAST_TOKENS)).min(most)
    }

    /// Returns the seconds of a pass without prompts in which sequences draw so many tokens; none:
    /// not seen yet.
    pub(super) fn plain(&self, drawn: usize) -> Option<f64> {
        self.plain[size(drawn)].as_ref().map(Times::believed)
    }

    /// Learns from a pass in which sequences drew `drawn` tokens and prompts had `prompt`. The time
    /// is that of the computing, without the wait for other models.
    pub(super) fn observe(&mut self, drawn: usize, prompt: usize, time: Duration) {
        let (seconds, none) = (time.as_secs_f64(), as_none(drawn));
        if prompt <= none {
            return self.look(drawn, seconds);
        }
        // Without that time it says nothing: a prompt alone, for one, says nothing of others.
        let Some(plain) = self.plain(drawn) else { return };
        let tokens = prompt - none;
        // Not a number as long as nothing is expected.
        let expected = plain + self.cost.seconds(tokens);
        let is_fast = seconds < expected - plain / 2.0;
        self.fast = if is_fast { self.fast + 1 } else { 0 };
        // Passes become that fast when those without prompts take less than is believed.
        let is_due = self.fast >= FAST_PASSES;
        self.mixed = if is_due { MIXED_AT_ONCE } else { self.mixed + 1 };
        self.looks = 0;
        self.cost.learn(tokens, (seconds - plain).max(0.0), plain);
    }

    /// Learns from a pass without prompts. One that is far too slow is looked at again at once, so
    /// that what stays slow is believed soon and what was an accident is not.
    fn look(&mut self, drawn: usize, seconds: f64) {
        let times = self.plain[size(drawn)].get_or_insert(Times([seconds; LOOKS]));
        times.add(seconds);
        let is_slow = seconds > FAR * times.believed();
        self.looks += 1;
        if self.fast >= FAST_PASSES {
            // Where this time was right it was the cost that was not.
            self.cost.doubt();
        }
        self.fast = 0;
        self.mixed = if is_slow && self.looks < LOOKS { MIXED_AT_ONCE } else { 0 };
    }
}

/// Returns how many tokens of prompts count as none. A pass needs a token, so where nobody draws one
/// the fewest of a prompt stand for it.
fn as_none(drawn: usize) -> usize {
    if drawn == 0 { LEAST_TOKENS } else { 0 }
}

/// Returns which size of batch so many tokens are.
fn size(drawn: usize) -> usize {
    ((usize::BITS - drawn.leading_zeros()) as usize).min(SIZES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Nobody draws from other models.
    const ALONE: Others = Others { are_drawing: false, plain: 0.0, with_prompts: 0 };

    /// Runs passes of a model that takes 6 ms, 0.5 ms for each token drawn and 0.5 ms for each of a
    /// prompt; returns the prompts' tokens.
    fn run(budget: &mut PrefillBudget, drawn: usize, passes: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        for _ in 0..passes {
            let tokens = budget.prompt_tokens(drawn, ALONE, 512);
            budget.observe(drawn, tokens, 6 * MS + (drawn + tokens) as u32 * MS / 2);
            taken.push(tokens);
        }
        taken
    }

    #[test]
    fn a_pass_takes_as_long_as_it_may() {
        let mut budget = PrefillBudget::new(2.5);
        let taken = run(&mut budget, 8, 12);
        // First one without prompts, then few tokens, then more and more up to what 15 ms allow.
        assert_eq!(taken[..4], [0, LEAST_TOKENS, 2 * LEAST_TOKENS, 23]);
        assert!(taken[4..].iter().all(|&tokens| tokens == 30 || tokens == 29), "{taken:?}");
    }

    #[test]
    fn tokens_that_cost_next_to_nothing_at_first_make_no_pass_much_too_long() {
        // The first four of a pass hide behind the reading of the weights.
        for first in [1, 10, 100] {
            let mut budget = PrefillBudget::new(2.5);
            for _ in 0..100 {
                let tokens = budget.prompt_tokens(1, ALONE, 512);
                let added = match tokens {
                    0 => Duration::ZERO,
                    1..=4 => Duration::from_micros(first),
                    _ => (tokens - 4) as u32 * MS / 2,
                };
                budget.observe(1, tokens, 10 * MS + added);
                assert!(added < 25 * MS, "{tokens} tokens take {added:?}");
            }
        }
    }

    #[test]
    fn a_noisy_clock_makes_no_pass_much_too_long() {
        let mut state = 7u64;
        let mut noise = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        for drawn in [1, 8] {
            let mut budget = PrefillBudget::new(2.0);
            let mut taken = Vec::new();
            for _ in 0..5000 {
                let tokens = budget.prompt_tokens(drawn, ALONE, 512);
                let busy = if noise() < 0.05 { 4.0 } else { 1.0 };
                let ms = (6.0 + (drawn + tokens) as f64 / 2.0) * (0.8 + 0.5 * noise()) * busy;
                budget.observe(drawn, tokens, Duration::from_secs_f64(ms / 1e3));
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
        let mut budget = PrefillBudget::new(2.5);
        let taken = run(&mut budget, 8, 100);
        let plain: Vec<usize> = (0..100).filter(|&pass| taken[pass] == 0).collect();
        assert_eq!(plain, [0, 25, 50, 75]);
        // What lies behind the sequences has grown: a pass takes four times as long.
        for _ in 0..40 {
            budget.observe(8, 0, 40 * MS);
        }
        assert!((115..=120).contains(&budget.prompt_tokens(8, ALONE, 512)), "{budget:?}");
    }

    #[test]
    fn batches_that_grow_and_shrink_keep_their_pace() {
        let mut budget = PrefillBudget::new(2.0);
        run(&mut budget, 4, 40);
        for drawn in [64, 4, 1, 64, 2] {
            let taken = run(&mut budget, drawn, 10);
            // Two passes to learn, and from then on as long as it may be.
            let allowed = 12 + drawn;
            for &tokens in taken[2..].iter().filter(|&&tokens| tokens > 0) {
                assert!(tokens.abs_diff(allowed) <= 1, "{tokens} of {allowed} beside {drawn}");
            }
        }
    }

    #[test]
    fn bounds_hold_whatever_the_clock_says() {
        let mut budget = PrefillBudget::new(1.0);
        run(&mut budget, 1, 3);
        assert_eq!(
            (budget.prompt_tokens(1, ALONE, 512), budget.prompt_tokens(1, ALONE, 3)),
            (LEAST_TOKENS, 3)
        );
        let mut budget = PrefillBudget::new(3.0);
        budget.observe(1, 0, MS);
        budget.observe(1, 100, MS / 2);
        assert_eq!(budget.prompt_tokens(1, ALONE, 200), 200);
        // A prompt alone says nothing of others.
        budget.observe(0, 512, 1000 * MS);
        assert_eq!(budget.prompt_tokens(1, ALONE, 200), 200);
        // One slow pass is not believed.
        budget.observe(1, 0, 100 * MS);
        assert!(budget.plain(1).is_some_and(|plain| plain < 0.0014), "{budget:?}");
        assert_eq!(budget.prompt_tokens(usize::MAX, ALONE, 200), 0);
    }
    /// Runs passes that take the microseconds of one without prompts, and so many for each token of
    /// a prompt; returns these tokens and how many times as long as without them each pass took.
    fn drive(
        budget: &mut PrefillBudget,
        passes: usize,
        (drawn, others): (usize, Others),
        [plain, token]: [usize; 2],
    ) -> Vec<(usize, f64)> {
        let pass = |_| {
            let tokens = budget.prompt_tokens(drawn, others, 512);
            let taken = plain + token * tokens;
            budget.observe(drawn, tokens, Duration::from_micros(taken as u64));
            (tokens, taken as f64 / plain as f64)
        };
        (0..passes).map(pass).collect()
    }

    /// Returns how far passes may stretch, and numbers of passes that end at any distance from the
    /// last one without prompts.
    fn moments() -> impl Iterator<Item = (f32, usize)> {
        let all = |stretch| (200..225).map(move |settled| (stretch, settled));
        [1.5, 2.0, 4.0].into_iter().flat_map(all)
    }

    #[test]
    fn a_time_that_is_no_longer_true_breaks_the_stretch_for_a_few_passes_only() {
        // Streams with much behind them give way to as many with little, or the machine gets faster.
        let changes = [([60_000, 500], [14_000, 500]), ([56_000, 2000], [14_000, 500])];
        for (stretch, settled) in moments() {
            for (before, after) in changes {
                let mut budget = PrefillBudget::new(stretch);
                drive(&mut budget, settled, (8, ALONE), before);
                let passes = drive(&mut budget, 100, (8, ALONE), after);
                let far = 1.25 * f64::from(stretch);
                let broken = passes.iter().filter(|(_, times)| *times > far).count();
                assert!(broken <= 3, "{stretch}, {settled}: {broken} of {passes:?}");
                let last = passes[40..].iter().filter(|(tokens, _)| *tokens > 0);
                let least = last.map(|(_, times)| *times).fold(f64::INFINITY, f64::min);
                let half = 1.0 + (f64::from(stretch) - 1.0) / 2.0;
                assert!(least >= half, "{stretch}, {settled}: {least} times in {passes:?}");
            }
        }
    }

    #[test]
    fn prompts_get_on_again_soon_after_passes_became_slower() {
        let changes = [([14_000, 500], [60_000, 500]), ([14_000, 500], [56_000, 2000])];
        for (stretch, settled) in moments() {
            for (before, after) in changes {
                let mut budget = PrefillBudget::new(stretch);
                drive(&mut budget, settled, (8, ALONE), before);
                let passes = drive(&mut budget, 120, (8, ALONE), after);
                let half = 1.0 + (f64::from(stretch) - 1.0) / 2.0;
                let is_slow = |(tokens, times): &(usize, f64)| *tokens > 0 && *times < half;
                let slow = passes.iter().filter(|pass| is_slow(pass)).count();
                assert!(slow <= 45, "{stretch}, {settled}: {slow} of {passes:?}");
                assert!(!passes[60..].iter().any(is_slow), "{stretch}, {settled}: {passes:?}");
            }
        }
    }

    #[test]
    fn an_accident_is_believed_for_no_time() {
        let mut budget = PrefillBudget::new(2.0);
        drive(&mut budget, 205, (8, ALONE), [14_000, 500]);
        let before = budget.prompt_tokens(8, ALONE, 512);
        // Two passes without prompts were slow in a row; the third one is not.
        for ms in [60, 60] {
            budget.observe(8, 0, ms * MS);
            assert_eq!(budget.prompt_tokens(8, ALONE, 512), 0, "it is looked at again at once");
        }
        budget.observe(8, 0, 14 * MS);
        assert_eq!(budget.prompt_tokens(8, ALONE, 512), before);
        // Times that are never the same hold no prompt up for longer than that.
        budget.observe(8, 10, 19 * MS);
        let times = [10, 30, 90, 270, 810, 2430];
        let asked = times.map(|ms| {
            budget.observe(8, 0, ms * MS);
            budget.prompt_tokens(8, ALONE, 512)
        });
        assert!(asked[2..].iter().all(|&tokens| tokens > 0), "{asked:?}");
    }

    #[test]
    fn a_prompt_leaves_time_to_those_who_draw_from_other_models() {
        // A pass of 7 ms waits for those of this model, which take as long without prompts.
        let others = Others { are_drawing: true, plain: 0.007, with_prompts: 0 };
        let mut budget = PrefillBudget::new(2.0);
        let passes = drive(&mut budget, 60, (0, others), [7000, 700]);
        let tokens: Vec<usize> = passes.iter().map(|(tokens, _)| *tokens).collect();
        assert_eq!(tokens[..3], [LEAST_TOKENS, 2 * LEAST_TOKENS, 3 * LEAST_TOKENS]);
        // Both together may take twice 7 ms and 9.8 ms, the time of the fewest tokens.
        assert!(tokens[4..24].iter().all(|tokens| (26..=28).contains(tokens)), "{tokens:?}");
        assert_eq!(tokens[25], LEAST_TOKENS, "the time of these stays known");
        // Where another model has prompts too, each adds half of that.
        let shared = Others { with_prompts: 1, ..others };
        let half = budget.prompt_tokens(0, shared, 512);
        assert!((15..=16).contains(&half), "{half}");
        // Those who draw from this model wait as well.
        let mut budget = PrefillBudget::new(2.0);
        let passes = drive(&mut budget, 20, (8, others), [14_000, 700]);
        assert!((29..=30).contains(&passes[19].0), "{passes:?}");
        assert_eq!(budget.prompt_tokens(8, others, 3), 3);
    }
}
