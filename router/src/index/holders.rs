//! Interned sets of workers: equal sets are stored once and have one number.

use hashbrown::HashTable;

use super::Tier;

/// The number of a set.
pub(super) type SetId = u32;

/// The set without workers. It is never counted and never freed.
pub(super) const EMPTY: SetId = 0;

/// The bits of one word.
const WORD: usize = u64::BITS as usize;

/// Three bit sets of worker slots, one behind the other: those that hold a block in the device's
/// memory, in the host's, and on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    words: Box<[u64]>,
    /// How many entries of the table point here.
    uses: u32,
}

impl Set {
    /// Returns how many words one tier has.
    pub(super) fn width(&self) -> usize {
        self.words.len() / 3
    }

    fn word(&self, tier: usize, index: usize) -> u64 {
        let width = self.width();
        if index < width { self.words[tier * width + index] } else { 0 }
    }

    /// Returns a word of those that hold a block in the device's memory, of those that hold it at
    /// best in the host's, and of those that hold it only on disk.
    pub(super) fn best(&self, index: usize) -> [u64; 3] {
        let [device, host, disk] = [0, 1, 2].map(|tier| self.word(tier, index));
        [device, host & !device, disk & !host & !device]
    }

    /// Returns whether a worker holds a block in any tier.
    pub(super) fn holds(&self, slot: usize) -> bool {
        let any = (0..3).fold(0, |any, tier| any | self.word(tier, slot / WORD));
        any >> (slot % WORD) & 1 == 1
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.words) + size_of::<Self>() + 2 * size_of::<SetId>()
    }
}

/// All sets.
#[derive(Debug)]
pub(super) struct Holders {
    sets: Vec<Set>,
    by_content: HashTable<SetId>,
    free: Vec<SetId>,
    /// Sets that lost their last use. They keep their numbers until [`collect`](Self::collect).
    unused: Vec<SetId>,
    bytes: usize,
}

impl Default for Holders {
    fn default() -> Self {
        Self {
            sets: vec![Set::default()],
            by_content: HashTable::new(),
            free: Vec::new(),
            unused: Vec::new(),
            bytes: 0,
        }
    }
}

fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0, |hash: u64, word| {
        (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    })
}

impl Holders {
    pub(super) fn get(&self, id: SetId) -> &Set {
        &self.sets[id as usize]
    }

    /// Returns the set with a worker added in a tier, or taken away.
    pub(super) fn changed(&mut self, id: SetId, slot: usize, tier: Tier, is_held: bool) -> SetId {
        let old = self.get(id);
        let width = old.width().max(slot / WORD + 1);
        let mut words = vec![0; 3 * width];
        for plane in 0..3 {
            for index in 0..old.width() {
                words[plane * width + index] = old.word(plane, index);
            }
        }
        let place = tier as usize * width + slot / WORD;
        let bit = 1 << (slot % WORD);
        match is_held {
            true => words[place] |= bit,
            false => words[place] &= !bit,
        }
        self.intern(words)
    }

    /// Returns the set without a worker in any tier.
    pub(super) fn without(&mut self, id: SetId, slot: usize) -> SetId {
        let old = self.get(id);
        if !old.holds(slot) {
            return id;
        }
        let (width, mut words) = (old.width(), old.words.to_vec());
        for plane in 0..3 {
            words[plane * width + slot / WORD] &= !(1 << (slot % WORD));
        }
        self.intern(words)
    }

    fn intern(&mut self, words: Vec<u64>) -> SetId {
        if words.iter().all(|word| *word == 0) {
            return EMPTY;
        }
        let hashed = hash(&words);
        let sets = &self.sets;
        let same = |id: &SetId| *sets[*id as usize].words == *words;
        if let Some(id) = self.by_content.find(hashed, same) {
            return *id;
        }
        let set = Set { words: words.into(), uses: 0 };
        self.bytes += set.bytes();
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id as usize] = set;
                id
            }
            None => {
                self.sets.push(set);
                (self.sets.len() - 1) as SetId
            }
        };
        // Until something points to it, it is one that may go.
        self.unused.push(id);
        let sets = &self.sets;
        self.by_content.insert_unique(hashed, id, |id| hash(&sets[*id as usize].words));
        id
    }

    /// Counts one more use of a set.
    pub(super) fn retain(&mut self, id: SetId) {
        if id != EMPTY {
            self.sets[id as usize].uses += 1;
        }
    }

    /// Counts one use less.
    pub(super) fn release(&mut self, id: SetId) {
        if id != EMPTY {
            let set = &mut self.sets[id as usize];
            set.uses -= 1;
            if set.uses == 0 {
                self.unused.push(id);
            }
        }
    }

    /// Frees the sets that nothing points to. Numbers that were returned before and are not in use
    /// are invalid from then on.
    pub(super) fn collect(&mut self) {
        while let Some(id) = self.unused.pop() {
            let set = &mut self.sets[id as usize];
            // It may be in use again, or be listed twice.
            if set.uses > 0 || set.words.is_empty() {
                continue;
            }
            self.bytes -= set.bytes();
            let hashed = hash(&set.words);
            set.words = Box::default();
            if let Ok(entry) = self.by_content.find_entry(hashed, |other| *other == id) {
                entry.remove();
            }
            self.free.push(id);
        }
    }

    /// Returns about how many bytes the sets take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives memory back that a larger number of sets took.
    pub(super) fn shrink(&mut self) {
        if self.sets.len() - self.free.len() == 1 {
            *self = Self::default();
        }
    }
}
