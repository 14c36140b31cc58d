//! Activations in bf16, for processors that multiply bf16 with bf16.

use super::BLOCK;
use crate::cpu::isa::dispatched;

/// A block of a row, rounded to bf16: a word holds the numbers of two columns, the lower column in
/// its lower half.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Rounded {
    pub pairs: [u32; BLOCK / 2],
}

dispatched! {
    /// Rounds rows of `columns` numbers to bf16, in panels of so many rows.
    pub(super) fn round(floats: &[f32], rounded: &mut [Rounded], columns: usize, rows: usize)
        = round_body
}

#[inline(always)]
fn round_body<const FMA: bool>(
    floats: &[f32],
    rounded: &mut [Rounded],
    columns: usize,
    rows: usize,
) {
    let panels = rounded.chunks_exact_mut(columns / BLOCK * rows);
    for (floats, panel) in floats.chunks(rows * columns).zip(panels) {
        for (row, x) in floats.chunks_exact(columns).enumerate() {
            for (x, blocks) in x.as_chunks::<BLOCK>().0.iter().zip(panel.chunks_exact_mut(rows)) {
                for (pair, out) in x.as_chunks::<2>().0.iter().zip(&mut blocks[row].pairs) {
                    let [low, high] = pair.map(bf16_bits);
                    *out = low | high << 16;
                }
            }
        }
    }
}

/// Returns the bits of the nearest bf16, ties to even.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could make infinity of NaN, which stays one with any bit of its fraction.
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

#[cfg(test)]
impl super::View<'_> {
    /// Returns what rounding made of a number.
    pub(in crate::cpu) fn rounded_number(&self, row: usize, column: usize) -> f64 {
        let rows = self.rounded_rows;
        let panel = row / rows * (self.columns / BLOCK) + column / BLOCK;
        let word = self.rounded[panel * rows + row % rows].pairs[column % BLOCK / 2];
        let [low, high] = [word << 16, word & 0xffff_0000];
        f64::from(f32::from_bits(if column.is_multiple_of(2) { low } else { high }))
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::Isa;
    use crate::cpu::activations::{Activations, Form};
    use crate::cpu::linear::Compute;
    use crate::cpu::pool::Pool;

    #[test]
    fn rounding_to_bf16_is_to_the_nearest() {
        const COLUMNS: usize = 64;
        let odd = [0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
        let ties = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0x7f80_0001, 0x0000_8001];
        let mut x: Vec<f32> = (0..5 * COLUMNS).map(|i| (i as f32 * 1.7).sin()).collect();
        let special = odd.into_iter().chain(ties.map(f32::from_bits));
        x.iter_mut().zip(special).for_each(|(x, number)| *x = number);
        for isa in Isa::available() {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let mut activations = Activations::default();
            activations.floats(5, COLUMNS).copy_from_slice(&x);
            activations.fill(&compute, Form { digits: None, bf16: true }, |_, _| {});
            let view = activations.view(&activations.digits, &activations.tiles);
            for (at, &x) in x.iter().enumerate() {
                let got = view.rounded_number(at / COLUMNS, at % COLUMNS) as f32;
                let nearest = half::bf16::from_f32(x).to_f32();
                let is_right = got.to_bits() == nearest.to_bits() || got.is_nan() && x.is_nan();
                assert!(is_right, "{isa:?}: {x} became {got}, not {nearest}");
            }
        }
    }
}
