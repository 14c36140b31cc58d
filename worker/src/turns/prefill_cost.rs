//! What a token of a prompt costs, learned from the passes that were.

/// What a pass still counts after the next one.
const KEPT: f64 = 0.9;

/// How many times as many tokens as were seen of late fit into anything.
const GROWTH: f64 = 2.0;

/// What is left of the past's weight when it is doubted.
const DOUBTED: f64 = 0.2;

/// A pass that is this many times as much slower as expected, or more, counts as so much slower:
/// the system may have been busy with other things.
const MOST_TIMES: f64 = 4.0;

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct PrefillCost {
    /// Seconds that prompts have added to passes, the older the less.
    added: f64,
    /// How many tokens they had, counted alike: passes with many say more of what one costs.
    tokens: f64,
}

impl PrefillCost {
    /// Returns how many tokens fit into some seconds; none if none were seen yet.
    pub(crate) fn tokens(&self, seconds: f64) -> usize {
        if seconds <= 0.0 {
            return 0;
        }
        // Infinite where they seem to cost nothing, and not a number where none were seen.
        let tokens = seconds * self.tokens / self.added;
        tokens.min(GROWTH * self.tokens) as usize
    }

    /// Returns the seconds of some tokens; none were seen: not a number.
    pub(crate) fn seconds(&self, tokens: usize) -> f64 {
        tokens as f64 * self.added / self.tokens
    }

    /// Learns from a pass that took so much longer for so many tokens. It is believed up to
    /// `plausible` seconds, however little was expected: few tokens may have cost next to nothing.
    pub(crate) fn learn(&mut self, tokens: usize, seconds: f64, plausible: f64) {
        let expected = self.seconds(tokens);
        let most = if expected > 0.0 { MOST_TIMES * expected } else { f64::INFINITY };
        let most = most.max(plausible);
        self.added = KEPT * self.added + seconds.min(most);
        self.tokens = KEPT * self.tokens + tokens as f64;
    }

    /// Lets the next passes count for more than those before: the price may have been another one.
    pub(crate) fn doubt(&mut self) {
        self.added *= DOUBTED;
        self.tokens *= DOUBTED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_learned_from_what_was_seen() {
        let mut price = PrefillCost::default();
        assert_eq!((price.tokens(1.0), price.seconds(1).is_nan()), (0, true));
        price.learn(10, 0.1, 0.0);
        assert_eq!((price.tokens(0.055), price.tokens(0.0)), (5, 0));
        assert_eq!(price.tokens(100.0), 20, "not many times as many as were seen");
        // Ten times as slow counts as four times.
        price.learn(10, 1.0, 0.0);
        assert!((price.seconds(19) - 0.49).abs() < 1e-9, "{price:?}");
        price.doubt();
        assert!((price.seconds(19) - 0.49).abs() < 1e-9, "{price:?}");
        for _ in 0..4 {
            price.learn(10, 0.02, 0.0);
        }
        assert!(price.seconds(10) < 0.04, "{price:?}");
        let mut free = PrefillCost::default();
        free.learn(10, 0.0, 0.0);
        assert_eq!((free.tokens(0.1), free.tokens(0.0)), (20, 0));
    }
}
