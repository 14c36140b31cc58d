//! The tile kernels in plain Rust: the meaning of the faster ones, and what other processors run.

use super::activations::{BLOCK, PANEL_ROWS, View};
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
    let (x, lane) = (x.rows(first, out.len()), first % PANEL_ROWS);
    let add = |out: &mut [f32; ROWS], weights: &Weights, values: &[i8; BLOCK], sum, worth: f32| {
        for (out, product) in out.iter_mut().zip(weights.products(values, sum)) {
            *out += worth * product;
        }
    };
    let weights = |b: usize| {
        let (header, inner, bytes) = codes.find(group, b);
        Weights::new(codes, header, inner, bytes)
    };
    out.fill([0.0; ROWS]);
    for b in 0..blocks {
        let weights = weights(b);
        for (row, out) in out.iter_mut().enumerate() {
            let panel = &x.panels[(lane + row) / PANEL_ROWS * blocks + b];
            let row = (lane + row) % PANEL_ROWS;
            add(out, &weights, &panel.values[row], panel.sum(row), panel.scales[row]);
        }
    }
    for (quad, seconds) in x.seconds().enumerate() {
        for second in seconds {
            let row = (quad * PANEL_ROWS + second.row as usize).wrapping_sub(lane);
            if row >= out.len() {
                continue;
            }
            let weights = weights(second.block as usize);
            add(&mut out[row], &weights, &second.values, second.sum() as f32, second.scale);
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
    fn products(&self, values: &[i8; BLOCK], sum: f32) -> [f32; ROWS] {
        let mut dots = [[0i32; ROWS]; 2];
        let values = values.as_chunks::<4>().0;
        for (k, (plane, values)) in self.planes.iter().zip(values).enumerate() {
            let dots = &mut dots[k * 2 / PLANES];
            // A sum of 32 products of 8 bits is far from overflowing. A check would keep the compiler
            // from taking several at once in builds that have checks, which the tests are.
            *dots = std::array::from_fn(|lane| {
                let products: [i32; 4] = std::array::from_fn(|column| {
                    i32::from(plane[4 * lane + column]) * i32::from(values[column])
                });
                dots[lane].wrapping_add(products.iter().sum())
            });
        }
        let halves = [0, 1].map(|half| {
            values[half * 4..][..4]
                .as_flattened()
                .iter()
                .map(|&value| i32::from(value))
                .sum::<i32>()
        });
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
    out.fill([0.0; ROWS]);
    for (index, tile) in tiles.enumerate() {
        for column in 0..BLOCK {
            let weights: [f32; ROWS] = std::array::from_fn(|lane| dense.number(tile, lane, column));
            for (x, sums) in x.chunks_exact(columns).zip(&mut *out) {
                let value = x[index * BLOCK + column];
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += weight * value;
                }
            }
        }
    }
}
