//! Laws of the blocks, against memory that knows which tokens were written where.

use std::collections::BTreeMap;

use engine::{KvEvent, KvEvents, KvNews, Salt, TokenId, prefix_hashes};

use super::*;
use crate::runner::BlockId;

/// Tokens of a block.
const SIZE: usize = 4;
/// Blocks there are.
const TOTAL: usize = 40;

/// What a cache holds at one place: the salt and all tokens up to there, as a number.
type Content = u64;

fn content(salt: Option<Salt>, tokens: &[TokenId]) -> Content {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    // Without a salt the content is that of the model itself.
    let salt = salt.unwrap_or_default().0;
    tokens.iter().fold(0xCBF2_9CE4_8422_2325 ^ salt ^ bytes.len() as u64, |hash, &token| {
        (hash ^ u64::from(token) ^ salt << 20).wrapping_mul(0x0100_0000_01B3).rotate_left(5)
    })
}

/// A sequence of the naive model.
struct Owner {
    tokens: Vec<TokenId>,
    computed: usize,
    table: Table,
    salt: Option<Salt>,
}

struct World {
    pool: BlockPool,
    memory: Vec<[Content; SIZE]>,
    owners: Vec<Owner>,
    random: fastrand::Rng,
    hits: usize,
    copies: usize,
    refused: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            pool: BlockPool::new(TOTAL, SIZE, KvEvents::new(1)),
            memory: vec![[0; SIZE]; TOTAL],
            owners: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            hits: 0,
            copies: 0,
            refused: 0,
        }
    }

    /// Starts a sequence of few kinds of tokens, so that prefixes meet.
    fn admit(&mut self) {
        let length = self.random.usize(1..30);
        let tokens: Vec<TokenId> = (0..length).map(|_| self.random.u32(..8) / 7).collect();
        let salt = [Some(Salt(0)), Some(Salt(0)), Some(Salt(9)), None][self.random.usize(..4)];
        let names = salt.map(|salt| prefix_hashes(&tokens, SIZE, salt).collect());
        let table = Table::new(names.unwrap_or_default(), salt);
        let mut owner = Owner { tokens, computed: 0, table, salt };
        self.attach(&mut owner);
        self.owners.push(owner);
    }

    fn attach(&mut self, owner: &mut Owner) {
        while (owner.computed + SIZE) < owner.tokens.len() {
            let tokens = &owner.tokens[owner.computed..][..SIZE];
            if !owner.table.extend(&mut self.pool, tokens) {
                return;
            }
            owner.computed += SIZE;
            self.hits += 1;
        }
    }

    /// Computes some tokens of a sequence, and draws new ones at its end.
    fn append(&mut self, index: usize) {
        let owner = &mut self.owners[index];
        if owner.computed == owner.tokens.len() {
            owner.tokens.push(self.random.u32(..8) / 7);
        }
        let (start, left) = (owner.computed, owner.tokens.len() - owner.computed);
        let end = start + self.random.usize(1..=left);
        let (before, available) = (owner.table.blocks().to_vec(), self.pool.available());
        let copy = match owner.table.grow(&mut self.pool, start, end) {
            Ok(copy) => copy,
            Err(missing) => {
                assert!(missing > available);
                assert_eq!(before, owner.table.blocks());
                self.refused += 1;
                return;
            }
        };
        if let Some(BlockCopy { from, to }) = copy {
            self.memory[to as usize] = self.memory[from as usize];
            self.copies += 1;
        }
        for position in start..end {
            let block = owner.table.blocks()[position / SIZE];
            assert!(!self.pool.is_shared(block), "block {block} has two writers");
            let written = content(owner.salt, &owner.tokens[..=position]);
            self.memory[block as usize][position % SIZE] = written;
        }
        owner.computed = end;
        owner.table.commit(&mut self.pool, &owner.tokens, end);
    }

    fn fork(&mut self, index: usize) {
        let owner = &self.owners[index];
        let table = owner.table.fork(&mut self.pool, owner.computed);
        let mut tokens = owner.tokens[..owner.computed].to_vec();
        tokens.push(self.random.u32(..8) / 7);
        let fork = Owner { tokens, computed: owner.computed, table, salt: owner.salt };
        self.owners.push(fork);
    }

    fn preempt(&mut self, index: usize) {
        let mut owner = self.owners.swap_remove(index);
        owner.table.release(&mut self.pool);
        owner.computed = 0;
        self.attach(&mut owner);
        self.owners.push(owner);
    }

    fn step(&mut self) {
        let index = self.random.usize(..self.owners.len().max(1));
        match self.random.u32(..100) {
            _ if self.owners.is_empty() => self.admit(),
            0..10 if self.owners.len() < 12 => self.admit(),
            10..15 if self.owners.len() < 12 => self.fork(index),
            15..20 => self.owners.swap_remove(index).table.release(&mut self.pool),
            20..25 => self.preempt(index),
            25 => self.pool.clear(),
            _ => self.append(index),
        }
    }

    fn check(&self) {
        let mut references = vec![0; TOTAL];
        let mut partial: BTreeMap<BlockId, usize> = BTreeMap::new();
        for owner in &self.owners {
            for &block in owner.table.blocks() {
                references[block as usize] += 1;
            }
            for position in 0..owner.computed {
                let block = owner.table.blocks()[position / SIZE];
                let expected = content(owner.salt, &owner.tokens[..=position]);
                assert_eq!(self.memory[block as usize][position % SIZE], expected);
            }
            if !owner.computed.is_multiple_of(SIZE) {
                *partial.entry(owner.table.blocks()[owner.computed / SIZE]).or_default() += 1;
            }
        }
        self.pool.check(&references);
        let counts = self.pool.counts();
        assert_eq!(counts.held, references.iter().filter(|&&count| count > 0).count());
        assert_eq!(counts.free + counts.idle + counts.held, TOTAL);
        assert_eq!(self.pool.available(), counts.free + counts.idle);
        // Sequences that share a block which is not full have not written behind their fork.
        for (block, count) in partial {
            assert_eq!(references[block as usize] as usize, count);
        }
    }
}

#[test]
fn a_hundred_thousand_random_steps_lose_no_block_and_mix_up_no_content() {
    let mut world = World::new(7);
    for _ in 0..100_000 {
        world.step();
        world.check();
    }
    let World { hits, copies, refused, .. } = world;
    assert!(hits > 1000 && copies > 500 && refused > 500, "{hits} {copies} {refused}");
    for mut owner in std::mem::take(&mut world.owners) {
        owner.table.release(&mut world.pool);
    }
    world.check();
    world.pool.clear();
    assert_eq!(world.pool.counts(), Counts { free: TOTAL, idle: 0, held: 0 });
}

/// Computes a whole sequence and returns its table.
fn whole(pool: &mut BlockPool, tokens: &[TokenId]) -> Table {
    let mut table = Table::new(Vec::new(), Some(Salt(0)));
    table.grow(pool, 0, tokens.len()).unwrap();
    table.commit(pool, tokens, tokens.len());
    table
}

#[test]
fn chains_are_given_up_from_their_ends_the_longest_unused_first() {
    let events = KvEvents::new(64);
    let mut pool = BlockPool::new(6, SIZE, events.clone());
    let tokens: Vec<TokenId> = (0..12).collect();
    let others: Vec<TokenId> = (50..62).collect();
    whole(&mut pool, &tokens).release(&mut pool);
    whole(&mut pool, &others).release(&mut pool);
    assert_eq!(pool.counts(), Counts { free: 0, idle: 6, held: 0 });
    // The first block of the first chain is used again, so the second chain's end is older.
    let mut again = Table::new(Vec::new(), Some(Salt(0)));
    assert!(again.extend(&mut pool, &tokens[..SIZE]));
    again.release(&mut pool);
    pool.keep_evicted();
    let taken: Vec<BlockId> = (0..6).map(|_| pool.allocate().unwrap()).collect();
    assert_eq!(pool.allocate(), None);
    let evicted = pool.take_evicted();
    assert_eq!(evicted.iter().map(|block| block.block).collect::<Vec<_>>(), taken);
    let ends = [&tokens[..], &tokens[..8], &others[..], &others[..8], &others[..4], &tokens[..4]];
    assert!(evicted.iter().map(|block| &block.tokens[..]).eq(ends));
    let names: Vec<_> = prefix_hashes(&tokens, SIZE, Salt(0)).collect();
    assert_eq!([evicted[0].name, evicted[1].name, evicted[5].name], [names[2], names[1], names[0]]);
}

#[tokio::test]
async fn events_tell_what_can_be_found() {
    let events = KvEvents::new(8);
    let mut reader = events.subscribe();
    let mut pool = BlockPool::new(2, SIZE, events);
    let tokens: Vec<TokenId> = (0..8).collect();
    let names: Vec<_> = prefix_hashes(&tokens, SIZE, Salt(0)).collect();
    whole(&mut pool, &tokens).release(&mut pool);
    for (place, parent) in [(0, None), (1, Some(names[0]))] {
        let Some(KvNews::Event(KvEvent::Stored { parent: told, blocks, block_tokens })) =
            reader.next().await
        else {
            panic!("block {place} was not told of")
        };
        assert_eq!((told, blocks[0].sequence, block_tokens), (parent, names[place], 4));
    }
    pool.allocate().unwrap();
    let removed = KvEvent::Removed { blocks: vec![names[1]] };
    assert_eq!(reader.next().await, Some(KvNews::Event(removed)));
    pool.clear();
    let removed = KvEvent::Removed { blocks: vec![names[0]] };
    assert_eq!(reader.next().await, Some(KvNews::Event(removed)));
    assert_eq!(reader.next().await, Some(KvNews::Event(KvEvent::Cleared)));
}

#[test]
fn an_equal_name_is_not_an_equal_prefix() {
    let mut pool = BlockPool::new(8, SIZE, KvEvents::new(1));
    let (ones, twos): ([TokenId; SIZE], [TokenId; SIZE]) = ([1; SIZE], [2; SIZE]);
    let name = prefix_hashes(&ones, SIZE, Salt(0)).next().unwrap();
    let _held = whole(&mut pool, &ones);
    // A sequence whose tokens differ and whose name is, by accident, the same.
    let mut other = Table::new(vec![name], Some(Salt(0)));
    assert!(!other.extend(&mut pool, &twos));
    other.grow(&mut pool, 0, SIZE).unwrap();
    other.commit(&mut pool, &twos, SIZE);
    assert_eq!(other.salt(), None, "nothing behind it may be found");
    assert_eq!(pool.counts(), Counts { free: 6, idle: 0, held: 2 });
    other.release(&mut pool);
    assert_eq!(pool.counts(), Counts { free: 7, idle: 0, held: 1 });
    // The same tokens under another salt are another prefix.
    assert_eq!(pool.find(name, None, &ones, Salt(1)), None);
    assert!(pool.find(name, None, &ones, Salt(0)).is_some());
}
