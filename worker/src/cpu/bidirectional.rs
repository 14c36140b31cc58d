//! Attention in which every token of a text sees every other: what encoders do.
//!
//! The result of a token depends on its own text alone, to the last bit: sums over a text's tokens
//! run in their order, and how queries are grouped changes no sum.

use super::Isa;
use super::isa::dispatched;
use super::pool::Pool;
use super::vector::{LANES, exp, largest, multiply_add};

/// Queries that share one reading of the keys.
const TOGETHER: usize = 4;

/// Queries of one piece of work.
const QUERIES: usize = 16;

/// The shape of all heads together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads.
    pub count: usize,
    /// Dimensions of a head.
    pub dimensions: usize,
}

impl Heads {
    /// Returns the length of a row of all heads.
    pub fn width(self) -> usize {
        self.count * self.dimensions
    }
}

/// Texts that lie one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// `[tokens, 3 * width]`: query, key and value of every token.
    pub qkv: &'a [f32],
    /// The tokens of each text; together as many as there are rows.
    pub lengths: &'a [usize],
}

/// Computes softmax(query * key / sqrt(dimensions)) * value of each text into `out`, which is
/// `[tokens, width]`; `keys` is memory that is kept between calls.
pub fn attend(
    (pool, isa): (&Pool, Isa),
    heads: Heads,
    texts: Texts<'_>,
    keys: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = heads.width();
    assert_eq!(texts.lengths.iter().sum::<usize>() * width, out.len());
    assert_eq!(3 * out.len(), texts.qkv.len());
    turn_keys(pool, heads, texts, keys);
    let mut jobs = Vec::new();
    let (mut qkv, mut keys, mut out) = (texts.qkv, keys.as_slice(), out);
    for &length in texts.lengths {
        let (own_qkv, rest) = qkv.split_at(length * 3 * width);
        let (own_keys, rest_keys) = keys.split_at(length.next_multiple_of(LANES) * width);
        let (own_out, rest_out) = std::mem::take(&mut out).split_at_mut(length * width);
        (qkv, keys, out) = (rest, rest_keys, rest_out);
        for (index, out) in own_out.chunks_mut(QUERIES * width).enumerate() {
            let text = Text { heads, qkv: own_qkv, keys: own_keys, first: index * QUERIES };
            jobs.push((text, out));
        }
    }
    pool.each(jobs.into_iter(), |_, (text, out)| attend_some(isa, text, &mut Vec::new(), out));
}

/// Writes the keys of each text as `[head, dimension, tokens]`, the tokens filled up with zeros.
fn turn_keys(pool: &Pool, heads: Heads, texts: Texts<'_>, keys: &mut Vec<f32>) {
    let width = heads.width();
    let padded = |length: usize| length.next_multiple_of(LANES);
    keys.resize(texts.lengths.iter().map(|&length| padded(length) * width).sum(), 0.0);
    let mut jobs = Vec::new();
    let (mut qkv, mut keys) = (texts.qkv, keys.as_mut_slice());
    for &length in texts.lengths {
        let (own, rest) = qkv.split_at(length * 3 * width);
        let (turned, others) = std::mem::take(&mut keys).split_at_mut(padded(length) * width);
        (qkv, keys) = (rest, others);
        if length > 0 {
            let part = heads.dimensions * padded(length);
            jobs.extend(turned.chunks_mut(part).enumerate().map(|(head, part)| (own, head, part)));
        }
    }
    pool.each(jobs.into_iter(), |_, (rows, head, turned)| {
        let first = width + head * heads.dimensions;
        let tokens = turned.len() / heads.dimensions;
        for (dimension, line) in turned.chunks_exact_mut(tokens).enumerate() {
            let found = rows.chunks_exact(3 * width).map(|row| row[first + dimension]);
            let found = found.chain(std::iter::repeat(0.0));
            line.iter_mut().zip(found).for_each(|(to, key)| *to = key);
        }
    });
}

/// Some neighbouring queries of one text.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    heads: Heads,
    /// The rows of the whole text.
    qkv: &'a [f32],
    /// Its keys, turned.
    keys: &'a [f32],
    /// The first of the queries.
    first: usize,
}

dispatched! {
    /// Attends from as many queries as `out` has rows; `scores` is memory to work in.
    pub fn attend_some(text: Text<'_>, scores: &mut Vec<f32>, out: &mut [f32]) = attend_some_body
}

#[inline(always)]
fn attend_some_body<const FMA: bool>(text: Text<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let Heads { count, dimensions } = text.heads;
    let width = text.heads.width();
    let part = text.keys.len() / count;
    scores.resize(TOGETHER * part / dimensions, 0.0);
    for head in 0..count {
        let keys = &text.keys[head * part..][..part];
        let mut first = text.first;
        for out in out.chunks_mut(TOGETHER * width) {
            match out.len() / width {
                TOGETHER => {
                    together::<FMA, TOGETHER>(&text, (head, first), keys, scores, out);
                }
                _ => {
                    for (index, out) in out.chunks_exact_mut(width).enumerate() {
                        together::<FMA, 1>(&text, (head, first + index), keys, scores, out);
                    }
                }
            }
            first += TOGETHER;
        }
    }
}

/// Attends from `N` queries of one head.
#[inline(always)]
fn together<const FMA: bool, const N: usize>(
    text: &Text<'_>,
    (head, first): (usize, usize),
    keys: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let (width, dimensions) = (text.heads.width(), text.heads.dimensions);
    let length = text.qkv.len() / (3 * width);
    let padded = keys.len() / dimensions;
    let query = |index: usize| &text.qkv[(first + index) * 3 * width + head * dimensions..];
    let queries: [&[f32]; N] = std::array::from_fn(|index| &query(index)[..dimensions]);
    for start in (0..padded).step_by(LANES) {
        let mut sums = [[0f32; LANES]; N];
        for dimension in 0..dimensions {
            let keys = &keys[dimension * padded + start..][..LANES];
            for (sums, query) in sums.iter_mut().zip(&queries) {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = multiply_add::<FMA>(query[dimension], *key, *sum);
                }
            }
        }
        for (row, sums) in scores.chunks_exact_mut(padded).zip(&sums) {
            row[start..start + LANES].copy_from_slice(sums);
        }
    }
    let scale = (dimensions as f32).sqrt().recip();
    let mut totals = [0f32; N];
    for (row, total) in scores.chunks_exact_mut(padded).zip(&mut totals) {
        *total = softmax::<FMA>(row, length, scale);
    }
    let values = &text.qkv[2 * width + head * dimensions..];
    let mut start = 0;
    while start < dimensions {
        let lanes = LANES.min(dimensions - start);
        let sums = weighted::<FMA, N>((values, 3 * width), (start, lanes), scores, length);
        for ((out, sums), total) in out.chunks_exact_mut(width).zip(&sums).zip(&totals) {
            let out = &mut out[head * dimensions + start..][..lanes];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / total);
        }
        start += lanes;
    }
}

/// Sums up some dimensions of the values, which are `stride` apart, by their weights.
#[inline(always)]
fn weighted<const FMA: bool, const N: usize>(
    (values, stride): (&[f32], usize),
    (start, lanes): (usize, usize),
    weights: &[f32],
    length: usize,
) -> [[f32; LANES]; N] {
    let padded = length.next_multiple_of(LANES);
    let rows: [&[f32]; N] = std::array::from_fn(|index| &weights[index * padded..][..length]);
    let mut sums = [[0f32; LANES]; N];
    for token in 0..length {
        let value = &values[token * stride + start..][..lanes];
        if let Some(value) = value.first_chunk::<LANES>() {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = multiply_add::<FMA>(row[token], *value, *sum);
                }
            }
        } else {
            for (sums, row) in sums.iter_mut().zip(&rows) {
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = multiply_add::<FMA>(row[token], *value, *sum);
                }
            }
        }
    }
    sums
}

/// Turns the first `length` scores into weights of which the largest is 1, clears the others and
/// returns the sum.
#[inline(always)]
fn softmax<const FMA: bool>(scores: &mut [f32], length: usize, scale: f32) -> f32 {
    scores[length..].fill(f32::NEG_INFINITY);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks_exact(LANES) {
        for (lane, &score) in lanes.iter_mut().zip(chunk) {
            *lane = if score > *lane { score } else { *lane };
        }
    }
    let top = largest(lanes);
    let mut sums = [0f32; LANES];
    for chunk in scores.chunks_exact_mut(LANES) {
        for (score, sum) in chunk.iter_mut().zip(&mut sums) {
            let weight = exp::<FMA>((*score - top) * scale);
            *score = if score.is_finite() { weight } else { 0.0 };
            *sum += *score;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(heads: Heads, qkv: &[f32], length: usize) -> Vec<f64> {
        let (width, dimensions) = (heads.width(), heads.dimensions);
        let at = |token: usize, part: usize, head: usize, dimension: usize| {
            f64::from(qkv[token * 3 * width + part * width + head * dimensions + dimension])
        };
        let mut out = Vec::new();
        for query in 0..length {
            for head in 0..heads.count {
                let score = |key: usize| {
                    let dot = |d| at(query, 0, head, d) * at(key, 1, head, d);
                    (0..dimensions).map(dot).sum::<f64>() / (dimensions as f64).sqrt()
                };
                let weights: Vec<f64> = (0..length).map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dimensions {
                    let sum: f64 = (0..length).map(|key| weights[key] * at(key, 2, head, d)).sum();
                    out.push(sum / total);
                }
            }
        }
        out
    }

    #[test]
    fn texts_attend_to_themselves_alone_whatever_stands_beside_them() {
        for heads in [Heads { count: 3, dimensions: 32 }, Heads { count: 2, dimensions: 20 }] {
            let lengths = [1, 5, 16, 37, 2];
            let row = 3 * heads.width();
            let count: usize = lengths.iter().sum();
            let mut random = fastrand::Rng::with_seed(7);
            let qkv: Vec<f32> = (0..count * row).map(|_| random.f32() * 4.0 - 2.0).collect();
            for isa in Isa::available() {
                let mut seen: Option<Vec<f32>> = None;
                for threads in [1, 3] {
                    let pool = Pool::start(threads).unwrap();
                    let run = |lengths: &[usize], qkv: &[f32]| {
                        let mut out = vec![0.0; qkv.len() / 3];
                        let texts = Texts { qkv, lengths };
                        // Memory that an earlier call left full.
                        let mut keys = vec![f32::NAN; 99_999];
                        attend((&pool, isa), heads, texts, &mut keys, &mut out);
                        out
                    };
                    let all = run(&lengths, &qkv);
                    let mut start = 0;
                    for &length in &lengths {
                        let own = &qkv[start * row..][..length * row];
                        let own_out = &all[start * heads.width()..][..length * heads.width()];
                        assert_eq!(run(&[length], own), own_out, "{isa:?}, {length} tokens");
                        for (got, expected) in own_out.iter().zip(reference(heads, own, length)) {
                            assert!((f64::from(*got) - expected).abs() < 2e-6, "{isa:?}");
                        }
                        start += length;
                    }
                    assert_eq!(*seen.get_or_insert_with(|| all.clone()), all);
                }
            }
        }
    }
}
