//! Row operations between the matrices: normalisation, activation, rotation, addition.
//!
//! Sums run over sixteen fixed lanes, so that they vectorise and always add in the same order.

use super::isa::dispatched;

/// The lanes of a sum.
pub(super) const LANES: usize = 16;

/// Returns `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Returns `e^x` to within some 2 units in the last place; below -87 it stays at `e^-87`.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Cephes' expf: x = n ln 2 + r, with ln 2 in two parts so that r is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 5] = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
    const ROUNDING: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = multiply_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUNDING);
    let n = rounded - ROUNDING;
    let r = multiply_add::<FMA>(n, -LN2_HIGH, clamped);
    let r = multiply_add::<FMA>(n, -LN2_LOW, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in POLYNOMIAL {
        p = multiply_add::<FMA>(p, r, coefficient);
    }
    let p = multiply_add::<FMA>(p * r, r, r + 1.0);
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// Returns the largest of some numbers, found by halves: exponentials wait for it.
#[inline(always)]
pub(super) fn largest(mut numbers: [f32; LANES]) -> f32 {
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            let other = numbers[lane + width];
            numbers[lane] = if other > numbers[lane] { other } else { numbers[lane] };
        }
    }
    numbers[0]
}

dispatched! {
    /// Writes `x / rms(x) * weight` into `out`; all three are one row.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = inverse_rms::<FMA>(x, epsilon);
    for ((out, value), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = value * scale * weight;
    }
}

dispatched! {
    /// Writes `x / rms(x) * weight` over each head `x`; `weight` is as long as one head.
    pub fn normalize_heads(heads: &mut [f32], weight: &[f32], epsilon: f32) = normalize_heads_body
}

#[inline(always)]
fn normalize_heads_body<const FMA: bool>(heads: &mut [f32], weight: &[f32], epsilon: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms::<FMA>(head, epsilon);
        for (value, weight) in head.iter_mut().zip(weight) {
            *value = *value * scale * weight;
        }
    }
}

/// Returns `1 / rms(x)`.
#[inline(always)]
fn inverse_rms<const FMA: bool>(x: &[f32], epsilon: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut sum: f32 = chunks.remainder().iter().map(|value| value * value).sum();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = multiply_add::<FMA>(*value, *value, *sum);
        }
    }
    sum += sums.iter().sum::<f32>();
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

dispatched! {
    /// Writes `silu(gate) * up` over `gate`.
    pub fn swiglu(gate: &mut [f32], up: &[f32]) = swiglu_body
}

#[inline(always)]
fn swiglu_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

dispatched! {
    /// Adds a row to another.
    pub fn add(sum: &mut [f32], other: &[f32]) = add_body
}

#[inline(always)]
fn add_body<const FMA: bool>(sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

dispatched! {
    /// Writes the exclusive or of all 64-bit words: reads all bytes and does nearly nothing else.
    pub fn xor(bytes: &[u8], out: &mut u64) = xor_body
}

#[inline(always)]
fn xor_body<const FMA: bool>(bytes: &[u8], out: &mut u64) {
    let mut lanes = [[0u8; 64]; 4];
    for four in bytes.as_chunks::<256>().0 {
        for (lane, line) in lanes.iter_mut().zip(four.as_chunks::<64>().0) {
            for (lane, byte) in lane.iter_mut().zip(line) {
                *lane ^= byte;
            }
        }
    }
    let words = lanes.as_flattened().as_chunks::<8>().0;
    *out = words.iter().fold(0, |all, word| all ^ u64::from_le_bytes(*word));
}

/// Rotary positions: how far each pair of a head's dimensions turns from one token to the next.
///
/// A pair is one dimension of the first half of what turns and its partner in the second half;
/// dimensions behind these stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians, a number for each pair.
    frequencies: Vec<f64>,
    /// What cosines and sines are multiplied by.
    magnitude: f64,
}

impl Rope {
    /// Makes the usual ones: pair `i` of `pairs` turns by `base^(-i / pairs)`.
    pub fn new(pairs: usize, base: f32) -> Self {
        let frequency = |pair: usize| f64::from(base).powf(-(pair as f64) / pairs as f64);
        Self::with_frequencies((0..pairs).map(frequency).collect(), 1.0)
    }

    /// Makes given ones, in radians; `magnitude` stretches what they turn.
    pub fn with_frequencies(frequencies: Vec<f64>, magnitude: f64) -> Self {
        Self { frequencies, magnitude }
    }

    /// Returns the length of a token's row of turns: a cosine for each pair, then a sine for each.
    pub fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Writes the turns at a position, [`width`](Self::width) numbers.
    pub fn turns(&self, position: usize, out: &mut [f32]) {
        let (cosines, sines) = out.split_at_mut(self.frequencies.len());
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.frequencies) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cosine, *sine) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
        }
    }
}

dispatched! {
    /// Turns each head of `head_dim` numbers in `heads` by a token's row of turns.
    pub fn rotate(heads: &mut [f32], head_dim: usize, turns: &[f32]) = rotate_body
}

#[inline(always)]
fn rotate_body<const FMA: bool>(heads: &mut [f32], head_dim: usize, turns: &[f32]) {
    let pairs = turns.len() / 2;
    let (cosines, sines) = turns.split_at(pairs);
    for head in heads.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * pairs].split_at_mut(pairs);
        for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn exp_is_close_to_the_exact_one() {
        for step in -8700..8800 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            for value in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(value) - exact).abs() / exact;
                assert!(error < 3e-7, "exp({x}) = {value}, relative error {error:e}");
            }
        }
        assert!(exp::<false>(-1000.0) < 1e-37);
    }

    #[test]
    fn rows_match_a_float64_reference() {
        let x: Vec<f32> = (0..83).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let weight: Vec<f32> = (0..83).map(|i| 1.0 + i as f32 * 0.01).collect();
        let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / 83.0;
        for isa in Isa::available() {
            let mut out = vec![0.0; 83];
            rms_norm(isa, &x, &weight, 1e-5, &mut out);
            let mut gated = x.clone();
            swiglu(isa, &mut gated, &weight);
            for i in 0..83 {
                let (v, w) = (f64::from(x[i]), f64::from(weight[i]));
                let norm = v / (mean + 1e-5).sqrt() * w;
                let gate = v / (1.0 + (-v).exp()) * w;
                assert!((f64::from(out[i]) - norm).abs() < 1e-5, "{isa:?} norm {i}");
                assert!((f64::from(gated[i]) - gate).abs() < 1e-5, "{isa:?} gate {i}");
            }
            let mut heads = [&x[..], &x].concat();
            normalize_heads(isa, &mut heads, &weight, 1e-5);
            for head in heads.chunks_exact(83) {
                assert_eq!(head, out, "{isa:?}: heads are normalised as rows are");
            }
        }
    }

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_the_distance_alone() {
        let rope = Rope::new(4, 10_000.0);
        for isa in Isa::available() {
            let turned = |position: usize| {
                let mut turns = vec![0.0; rope.width()];
                let mut head = vec![1.0, 0.5, -0.25, 2.0, 0.0, 1.0, 3.0, -1.0, 7.0, 8.0];
                rope.turns(position, &mut turns);
                rotate(isa, &mut head, 10, &turns);
                assert_eq!(head[8..], [7.0, 8.0], "what lies behind the pairs has moved");
                head
            };
            let dot = |from: usize, to: usize| {
                turned(from).iter().zip(turned(to)).map(|(a, b)| a * b).sum::<f32>()
            };
            assert!((dot(5, 5) - dot(0, 0)).abs() < 1e-4);
            assert!((dot(3, 10) - dot(103, 110)).abs() < 1e-4);
            assert!((dot(3, 10) - dot(3, 11)).abs() > 1e-3);
        }
    }
}
