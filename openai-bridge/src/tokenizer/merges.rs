//! Byte-pair merging: the best pair of neighbours becomes one, until there is none.
//!
//! Of equally good pairs the leftmost is first. A short word is searched anew for each merge; a
//! long one has a queue, so that time stays near linear in whatever a client sends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;

/// The longest word, in symbols, whose pairs are searched one after the other.
const SHORT: usize = 32;

/// No neighbour, or a pair that does not merge.
const NONE: u32 = u32::MAX;

/// What two neighbours become, and how early: the lower the rank, the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) symbol: u32,
}

/// The pairs that merge.
#[derive(Debug, Default)]
pub(super) struct Merges {
    pairs: AHashMap<u64, Merge>,
}

/// Working memory, kept from word to word.
#[derive(Debug, Default)]
pub(super) struct Memory {
    ranks: Vec<Merge>,
    previous: Vec<u32>,
    next: Vec<u32>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

/// A pair in the queue: by rank, then by place. It is out of date if its symbols have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    place: u32,
    symbol: u32,
}

impl Merges {
    /// Adds a pair; one that is there already gives way.
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        self.pairs.insert(key(left, right), merge);
    }

    fn get(&self, left: u32, right: u32) -> Merge {
        let none = Merge { rank: NONE, symbol: NONE };
        self.pairs.get(&key(left, right)).copied().unwrap_or(none)
    }

    /// Merges the symbols of a word.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, memory: &mut Memory) {
        match symbols.len() {
            0 | 1 => {}
            2..=SHORT => self.apply_short(symbols, memory),
            _ => self.apply_long(symbols, memory),
        }
    }

    fn apply_short(&self, symbols: &mut Vec<u32>, memory: &mut Memory) {
        let ranks = &mut memory.ranks;
        ranks.clear();
        ranks.extend(symbols.windows(2).map(|pair| self.get(pair[0], pair[1])));
        loop {
            let best = ranks.iter().enumerate().min_by_key(|(_, merge)| merge.rank);
            let Some((place, merge)) = best.filter(|(_, merge)| merge.rank != NONE) else {
                return;
            };
            symbols[place] = merge.symbol;
            symbols.remove(place + 1);
            ranks.remove(place);
            if place > 0 {
                ranks[place - 1] = self.get(symbols[place - 1], symbols[place]);
            }
            if place < ranks.len() {
                ranks[place] = self.get(symbols[place], symbols[place + 1]);
            }
        }
    }

    fn apply_long(&self, symbols: &mut Vec<u32>, memory: &mut Memory) {
        let count = symbols.len() as u32;
        let Memory { previous, next, queue, .. } = memory;
        previous.clear();
        previous.extend((0..count).map(|place| place.wrapping_sub(1)));
        next.clear();
        next.extend((1..count).chain([NONE]));
        queue.clear();
        let candidate = |symbols: &[u32], place: u32, right: u32| {
            let Merge { rank, symbol } = self.get(symbols[place as usize], symbols[right as usize]);
            (rank != NONE).then_some(Reverse(Candidate { rank, place, symbol }))
        };
        queue.extend((1..count).filter_map(|right| candidate(symbols, right - 1, right)));
        while let Some(Reverse(Candidate { rank, place, symbol })) = queue.pop() {
            let right = next[place as usize];
            // A symbol that was merged away is `NONE`, which is part of no pair.
            if right == NONE
                || self.get(symbols[place as usize], symbols[right as usize])
                    != (Merge { rank, symbol })
            {
                continue;
            }
            symbols[place as usize] = symbol;
            symbols[right as usize] = NONE;
            let after = next[right as usize];
            next[place as usize] = after;
            if after != NONE {
                previous[after as usize] = place;
                queue.extend(candidate(symbols, place, after));
            }
            let before = previous[place as usize];
            if before != NONE {
                queue.extend(candidate(symbols, before, place));
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The law of both ways, said as plainly as can be.
        #[test]
        fn both_ways_take_the_best_pair_again_and_again(
            word in prop::collection::vec(0u32..4, 0..80),
            pairs in prop::collection::vec((0u32..12, 0u32..12), 0..40),
        ) {
            let mut merges = Merges::default();
            for (rank, (left, right)) in (0..).zip(pairs) {
                merges.insert(left, right, Merge { rank, symbol: 4 + rank % 8 });
            }
            let mut plain = word.clone();
            loop {
                let places = 1..plain.len();
                let merge = |place: usize| merges.get(plain[place - 1], plain[place]);
                let Some(place) = places.min_by_key(|&place| merge(place).rank) else { break };
                let merge = merge(place);
                if merge.rank == NONE { break }
                plain[place - 1] = merge.symbol;
                plain.remove(place);
            }
            let mut memory = Memory::default();
            let (mut short, mut long) = (word.clone(), word);
            merges.apply_short(&mut short, &mut memory);
            if !long.is_empty() {
                merges.apply_long(&mut long, &mut memory);
            }
            prop_assert_eq!(&short, &plain);
            prop_assert_eq!(&long, &plain);
        }
    }
}
