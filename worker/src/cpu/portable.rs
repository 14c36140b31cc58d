//! The tile kernels in plain Rust: the meaning of the faster ones, and what other processors run.

use super::activations::{BASE, BLOCK, View};
use super::packed::{Codes, Dense, Layout, PLANES, ROWS, Scales};

/// Multiplies a group of 16 rows of codes with some rows of quantised activations.
pub(super) fn coded(
    codes: Codes,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let blocks = x.columns / BLOCK;
    out.fill([0.0; ROWS]);
    for (index, tile) in group.chunks_exact(codes.tile_bytes()).enumerate() {
        let (header, bytes) = tile.split_at(codes.header_bytes());
        for (inner, bytes) in bytes.chunks_exact(codes.block_bytes()).enumerate() {
            let b = index * codes.blocks() + inner;
            let weights = Weights::new(codes, header, inner, bytes);
            for (row, out) in out.iter_mut().enumerate() {
                let row = first + row;
                let (at, block) = (row * x.columns + b * BLOCK, row * blocks + b);
                let mut add = |values: &[i8], sum: f32, worth: f32| {
                    let values = std::array::from_fn(|k| i32::from(values[at + k]));
                    for (out, product) in out.iter_mut().zip(weights.products(&values, sum)) {
                        *out += worth * product;
                    }
                };
                add(x.values, x.sums[block], x.scales[block]);
                if x.marks(row, b) & 1 == 1 {
                    add(x.low, x.low_sums[block], x.scales[block] * (1.0 / BASE));
                }
            }
        }
    }
}

/// 32 columns of 16 rows, unpacked for as many rows of activations as there are.
struct Weights {
    codes: Codes,
    planes: [[u8; 4 * ROWS]; PLANES],
    scales: [[f32; 2]; ROWS],
    minima: [f32; ROWS],
}

impl Weights {
    fn new(codes: Codes, header: &[u8], block: usize, bytes: &[u8]) -> Self {
        Self {
            codes,
            planes: codes.load(bytes, 0),
            scales: std::array::from_fn(|lane| codes.scale(header, block, lane)),
            minima: std::array::from_fn(|lane| codes.minimum(header, block, lane)),
        }
    }

    /// Returns the products with 32 numbers, without their scale. The second 16 columns have sums
    /// of their own only where they have scales of their own.
    fn products(&self, values: &[i32; BLOCK], sum: f32) -> [f32; ROWS] {
        let mut dots = [[0i32; ROWS]; 2];
        let values = values.as_chunks::<4>().0;
        for (k, (plane, values)) in self.planes.iter().zip(values).enumerate() {
            for (dot, codes) in dots[k * 2 / PLANES].iter_mut().zip(plane.as_chunks::<4>().0) {
                for (&code, value) in codes.iter().zip(values) {
                    *dot += i32::from(code) * value;
                }
            }
        }
        let halves = [0, 1].map(|half| values[half * 4..][..4].as_flattened().iter().sum::<i32>());
        let centre = self.codes.centre();
        std::array::from_fn(|lane| {
            let [first, second] = [dots[0][lane], dots[1][lane]];
            let [scale, other] = self.scales[lane];
            match self.codes.scales() {
                Scales::Centred => scale * (first + second - centre * sum as i32) as f32,
                Scales::Minimum | Scales::Nested => {
                    scale * (first + second) as f32 + self.minima[lane] * sum
                }
                Scales::Halves => {
                    let first = scale * (first - centre * halves[0]) as f32;
                    other * (second - centre * halves[1]) as f32 + first
                }
            }
        })
    }
}

/// Multiplies a group of 16 rows of floats with some rows of activations.
pub(super) fn dense(dense: Dense, group: &[u8], x: &[f32], out: &mut [[f32; ROWS]]) {
    let tiles = group.chunks_exact(Layout::Dense(dense).tile_bytes());
    let columns = tiles.len() * BLOCK;
    // Columns of even and of odd numbers have sums of their own, as in the faster kernels.
    let mut sums = vec![[[0f32; ROWS]; 2]; out.len()];
    for (index, tile) in tiles.enumerate() {
        for column in 0..BLOCK {
            let weights: [f32; ROWS] = std::array::from_fn(|lane| dense.number(tile, lane, column));
            for (x, sums) in x.chunks_exact(columns).zip(&mut sums) {
                let value = x[index * BLOCK + column];
                for (sum, weight) in sums[column % 2].iter_mut().zip(weights) {
                    *sum += weight * value;
                }
            }
        }
    }
    for (out, [even, odd]) in out.iter_mut().zip(sums) {
        *out = std::array::from_fn(|lane| even[lane] + odd[lane]);
    }
}
