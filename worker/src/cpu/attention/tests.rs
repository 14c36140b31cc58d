//! Attention against a float64 reference, and the promise that neither neighbours nor threads nor
//! segments matter.

use super::batch::PIECES_PER_THREAD;
use super::*;
use crate::cpu::Isa;
use crate::cpu::pool::Pool;

/// A cache with tokens in scattered blocks, and what is asked of it.
struct Case {
    cache: Cache,
    blocks: Vec<BlockId>,
    tokens: usize,
    geometry: Geometry,
    heads: usize,
}

fn number(token: usize, at: usize, salt: usize) -> f32 {
    ((token * 67 + at * 13 + salt) as f32 * 0.7).sin()
}

impl Case {
    fn new(head_dim: usize, heads: usize, tokens: usize) -> Self {
        let count = tokens.div_ceil(BLOCK_TOKENS);
        let geometry = Geometry { layers: 2, blocks: count + 2, kv_heads: 2, head_dim };
        let blocks = (0..count).map(|b| ((b * 7 + 3) % count) as BlockId);
        let blocks =
            if count.is_multiple_of(7) { (1..).take(count).collect() } else { blocks.collect() };
        let mut case =
            Self { cache: Cache::new(geometry).unwrap(), blocks, tokens, geometry, heads };
        let rows: Vec<[Vec<f32>; 2]> = (0..tokens)
            .map(|t| [1, 2].map(|salt| (0..2 * head_dim).map(|d| number(t, d, salt)).collect()))
            .collect();
        let places =
            Places::new((0..tokens).map(|t| (case.blocks[t / BLOCK_TOKENS], t % BLOCK_TOKENS)));
        let compute = Compute { pool: Pool::start(2).unwrap(), isa: Isa::best() };
        case.cache.write(&compute, 1, &places, rows.iter(), |row| (&row[0], &row[1]));
        case
    }

    fn shape(&self, window: usize) -> Shape {
        let scale = 1.0 / (self.geometry.head_dim as f32).sqrt();
        Shape { heads: self.heads, window, scale }
    }

    fn width(&self) -> usize {
        2 * self.heads * self.geometry.head_dim
    }

    /// Attends from the tokens `first..`, in groups of `group`.
    fn run(
        &self,
        (isa, threads): (Isa, usize),
        window: usize,
        first: usize,
        group: usize,
    ) -> Vec<f32> {
        let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
        let stride = self.width() + 5;
        let count = self.tokens - first;
        let queries: Vec<f32> =
            (0..count * stride).map(|i| number(first + i / stride, i % stride, 3)).collect();
        let groups: Vec<Group<'_>> = (first..self.tokens)
            .step_by(group)
            .map(|position| Group {
                tokens: group.min(self.tokens - position),
                position,
                blocks: &self.blocks,
            })
            .collect();
        let mut out = vec![0.0; count * self.width()];
        let pass = Pass::new((&self.cache, 1), &groups, (&queries, stride), self.shape(window));
        pass.attend(&compute, &mut Buffers::default(), &mut out);
        out
    }

    /// Attends from groups of some tokens at some places, in rounds of some pieces or of as many
    /// as there usually are.
    fn mixed(
        &self,
        (threads, most): (usize, Option<usize>),
        window: usize,
        places: &[(usize, usize)],
        buffers: &mut Buffers,
    ) -> Vec<f32> {
        let stride = self.width();
        let group = |&(tokens, position)| Group { tokens, position, blocks: &self.blocks };
        let groups: Vec<Group<'_>> = places.iter().map(group).collect();
        let all = places.iter().flat_map(|(tokens, position)| *position..position + tokens);
        let queries: Vec<f32> =
            all.flat_map(|token| (0..stride).map(move |at| number(token, at, 3))).collect();
        let mut out = vec![0.0; queries.len()];
        let compute = Compute { pool: Pool::start(threads).unwrap(), isa: Isa::best() };
        let shape = self.shape(window);
        let pass = Pass::new((&self.cache, 1), &groups, (&queries, stride), shape);
        match most {
            Some(most) => pass.attend_in_rounds(most, &compute, buffers, &mut out),
            None => pass.attend(&compute, buffers, &mut out),
        }
        out
    }

    /// What a query head of a token attends to, in float64.
    fn reference(&self, token: usize, window: usize, head: usize) -> Vec<f64> {
        let dim = self.geometry.head_dim;
        let kv = head / self.heads * dim;
        let weights: Vec<f64> = ((token + 1).saturating_sub(window)..=token)
            .map(|t| {
                let products = (0..dim).map(|d| {
                    let key = f64::from(f16::from_f32(number(t, kv + d, 1)));
                    f64::from(number(token, head * dim + d, 3)) * key
                });
                (products.sum::<f64>() / (dim as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        let first = token + 1 - weights.len();
        let value = |t: usize, d: usize| f64::from(f16::from_f32(number(first + t, kv + d, 2)));
        (0..dim)
            .map(|d| weights.iter().enumerate().map(|(t, w)| w * value(t, d)).sum::<f64>() / total)
            .collect()
    }
}

#[test]
fn attention_matches_a_float64_reference_over_scattered_blocks() {
    for (head_dim, heads, tokens, window) in [
        (32, 3, 37, usize::MAX),
        (64, 3, 300, usize::MAX),
        (80, 1, 40, 9),
        (96, 4, 33, usize::MAX),
        (128, 8, 280, 270),
        (256, 2, 17, usize::MAX),
        (20, 7, 21, usize::MAX),
        // More rows of a token than a tile has.
        (32, 14, 290, usize::MAX),
    ] {
        let case = Case::new(head_dim, heads, tokens);
        for isa in Isa::available() {
            let first = tokens - 17;
            let out = case.run((isa, 2), window, first, case.shape(window).group_tokens());
            for (row, out) in out.chunks_exact(head_dim).enumerate() {
                let (token, head) = (first + row / (2 * heads), row % (2 * heads));
                for (got, exact) in out.iter().zip(case.reference(token, window, head)) {
                    let error = (f64::from(*got) - exact).abs();
                    assert!(error < 1e-5, "{isa:?} {head_dim}: {got} is not {exact}");
                }
            }
        }
    }
}

#[test]
fn neighbours_and_threads_do_not_change_a_bit() {
    for (heads, window) in [(3, usize::MAX), (3, 261), (1, 40), (5, usize::MAX), (14, usize::MAX)] {
        let case = Case::new(64, heads, 530);
        for isa in Isa::available() {
            let whole = case.run((isa, 1), window, 500, 1);
            for (threads, group) in [(1, 4), (2, 12), (3, 2), (2, 1)] {
                let other = case.run((isa, threads), window, 500, group);
                assert!(other == whole, "{isa:?} {heads} {threads} {group}");
            }
            // One token alone, whose segments the threads share.
            let last = case.run((isa, 2), window, 529, 1);
            assert!(last == whole[29 * case.width()..], "{isa:?} {heads} alone");
        }
    }
}

#[test]
fn deep_and_shallow_groups_of_a_pass_keep_their_bits() {
    for (heads, window) in [(3, usize::MAX), (2, 300)] {
        let case = Case::new(64, heads, 1100);
        for threads in [2, 3] {
            let mut buffers = Buffers::default();
            for places in [
                &[(1, 3), (8, 1050), (1, 20), (4, 0)][..],
                &[(1, 1000), (2, 40), (1, 900), (4, 1024), (1, 1099)],
                &[(4, 500), (4, 504), (4, 508), (3, 512), (1, 7), (1, 8), (1, 9)],
            ] {
                let alone = case.mixed((1, None), window, places, &mut Buffers::default());
                let shared = case.mixed((threads, None), window, places, &mut buffers);
                assert!(shared == alone, "{heads} {threads} {places:?}");
            }
        }
    }
}

#[test]
fn rounds_of_any_size_give_the_same_bits_within_their_memory() {
    for (heads, window) in [(3, usize::MAX), (2, 300), (14, usize::MAX)] {
        let case = Case::new(64, heads, 1100);
        for places in [
            // Two segments or five of each KV head, of a token or of several.
            &[(1, 1099)][..],
            &[(4, 1090), (1, 3), (1, 1000), (2, 700)],
            // KV heads as a whole beside others.
            &[(4, 500), (4, 504), (4, 508), (3, 512), (1, 7), (1, 8), (1, 9)],
        ] {
            let alone = case.mixed((1, None), window, places, &mut Buffers::default());
            let tokens = places.iter().map(|(tokens, _)| *tokens).max().unwrap();
            let piece = tokens * heads * case.geometry.state_width();
            for (threads, most) in [(2, 1), (3, 2), (2, 3), (3, 7), (2, 1000)] {
                let mut buffers = Buffers::default();
                // Twice, since memory is kept.
                for _ in 0..2 {
                    let ours = case.mixed((threads, Some(most)), window, places, &mut buffers);
                    assert!(ours == alone, "{heads} {threads} {most} {places:?}");
                }
                // Beside those of a round, the states of a KV head before it and behind it.
                let (taken, bound) = (buffers.states_capacity(), (most + 2) * piece);
                assert!(taken <= bound, "{taken} numbers, not {bound}: {most} {places:?}");
            }
        }
    }
}

#[test]
fn a_long_context_takes_no_more_memory_than_a_round() {
    let most = 2 * PIECES_PER_THREAD;
    let case = Case::new(16, 1, (PIECES_PER_THREAD + 2) * SEGMENT_TOKENS);
    let piece = case.geometry.state_width();
    // As many pieces as fit in both KV heads together, and then some more.
    for (tokens, pieces) in [(most / 2 * SEGMENT_TOKENS, most), (case.tokens, most)] {
        let (last, mut buffers) = ([(1, tokens - 1)], Buffers::default());
        let alone = case.mixed((1, None), usize::MAX, &last, &mut Buffers::default());
        let ours = case.mixed((2, None), usize::MAX, &last, &mut buffers);
        assert!(ours == alone, "{tokens} tokens");
        assert_eq!(buffers.states_capacity(), (pieces + 2) * piece, "{tokens} tokens");
    }
}

#[test]
fn two_tokens_cannot_go_to_the_same_place() {
    let twice = || Places::new([(3, 1), (2, 1), (3, 1)].into_iter());
    assert!(std::panic::catch_unwind(twice).is_err());
}

#[test]
fn a_block_is_copied_read_and_written_in_all_layers() {
    let geometry = Geometry { layers: 3, blocks: 5, kv_heads: 2, head_dim: 8 };
    let mut cache = Cache::new(geometry).unwrap();
    let compute = Compute { pool: Pool::start(2).unwrap(), isa: Isa::best() };
    let places = Places::new((0..BLOCK_TOKENS).map(|place| (1, place)));
    for layer in 0..3 {
        let row = |place: usize, salt: usize| -> Vec<f32> {
            (0..16).map(|d| (layer * 1000 + place * 16 + d + salt) as f32).collect()
        };
        let rows: Vec<[Vec<f32>; 2]> =
            (0..BLOCK_TOKENS).map(|place| [row(place, 0), row(place, 500)]).collect();
        cache.write(&compute, layer, &places, rows.iter(), |row| (&row[0], &row[1]));
    }
    let read = |cache: &Cache, block| {
        let mut bytes = Vec::new();
        cache.read_block(block, &mut bytes);
        bytes
    };
    let bytes = read(&cache, 1);
    assert_eq!(bytes.len(), geometry.block_bytes());
    cache.copy_block(1, 4);
    cache.write_block(0, &bytes).unwrap();
    assert!(read(&cache, 4) == bytes && read(&cache, 0) == bytes);
    assert!(read(&cache, 2).iter().all(|&byte| byte == 0));
    assert!(cache.write_block(0, &bytes[1..]).is_err());
}
