//! Updates of low rank to a product: a row through two narrow matrices, added to what is there.
//!
//! Everything is f32, and sums run over sixteen fixed lanes in one order.

use super::isa::dispatched;
use super::vector::{LANES, multiply_add};

/// An update `scale * B * A` of a matrix.
#[derive(Debug)]
pub struct LowRank {
    rank: usize,
    scale: f32,
    /// `A`, `[rank, columns]`
    down: Vec<f32>,
    /// `B` turned, `[rank, rows]`
    up: Vec<f32>,
}

impl LowRank {
    /// Makes an update of `A`, `[rank, columns]`, and `B`, `[rows, rank]`.
    pub fn new(rank: usize, scale: f32, down: Vec<f32>, up: &[f32]) -> Self {
        let rows = up.len() / rank;
        let mut turned = vec![0.0; up.len()];
        for (row, values) in up.chunks_exact(rank).enumerate() {
            for (index, value) in values.iter().enumerate() {
                turned[index * rows + row] = *value;
            }
        }
        Self { rank, scale, down, up: turned }
    }

    /// Returns the length of an input row.
    pub fn columns(&self) -> usize {
        self.down.len() / self.rank
    }

    /// Returns the length of an output row.
    pub fn rows(&self) -> usize {
        self.up.len() / self.rank
    }

    /// Returns all that it is made of, as bits.
    pub fn words(&self) -> impl Iterator<Item = u32> + '_ {
        let shape = [self.rank as u32, self.columns() as u32, self.scale.to_bits()];
        let values = self.down.iter().chain(&self.up).map(|value| value.to_bits());
        shape.into_iter().chain(values)
    }
}

dispatched! {
    /// Adds the update of a row `x` to `out`; `middle` is memory to work in.
    pub fn add_update(update: &LowRank, x: &[f32], middle: &mut Vec<f32>, out: &mut [f32])
        = add_update_body
}

#[inline(always)]
fn add_update_body<const FMA: bool>(
    update: &LowRank,
    x: &[f32],
    middle: &mut Vec<f32>,
    out: &mut [f32],
) {
    middle.clear();
    for row in update.down.chunks_exact(x.len()) {
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        let (x_chunks, x_rest) = x.as_chunks::<LANES>();
        for (weights, values) in chunks.iter().zip(x_chunks) {
            for ((lane, weight), value) in lanes.iter_mut().zip(weights).zip(values) {
                *lane = multiply_add::<FMA>(*weight, *value, *lane);
            }
        }
        for ((lane, weight), value) in lanes.iter_mut().zip(rest).zip(x_rest) {
            *lane = multiply_add::<FMA>(*weight, *value, *lane);
        }
        middle.push(lanes.iter().sum::<f32>() * update.scale);
    }
    for (row, factor) in update.up.chunks_exact(out.len()).zip(middle) {
        for (out, weight) in out.iter_mut().zip(row) {
            *out = multiply_add::<FMA>(*factor, *weight, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn an_update_is_as_its_product() {
        let (rank, columns, rows) = (3, 37, 21);
        let mut random = fastrand::Rng::with_seed(3);
        let mut draw = |count: usize| (0..count).map(|_| random.f32() - 0.5).collect::<Vec<f32>>();
        let (down, up) = (draw(rank * columns), draw(rows * rank));
        let (x, base) = (draw(columns), draw(rows));
        let update = LowRank::new(rank, 0.5, down.clone(), &up);
        assert_eq!((update.columns(), update.rows()), (columns, rows));
        for isa in Isa::available() {
            let mut out = base.clone();
            add_update(isa, &update, &x, &mut Vec::new(), &mut out);
            for (row, got) in out.iter().enumerate() {
                let mut expected = f64::from(base[row]);
                for k in 0..rank {
                    let dot = |c: usize| f64::from(down[k * columns + c]) * f64::from(x[c]);
                    let middle: f64 = (0..columns).map(dot).sum();
                    expected += 0.5 * f64::from(up[row * rank + k]) * middle;
                }
                assert!((f64::from(*got) - expected).abs() < 1e-6, "{isa:?} row {row}");
            }
        }
    }
}
