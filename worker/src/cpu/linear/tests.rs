//! Every weight type on every instruction set against a float64 reference, and the promise that a
//! token's result depends on that token alone.

use half::{bf16, f16};

use super::*;
use std::ops::Range;

use crate::cpu::activations::{Activations, BASE, BLOCK};
use crate::gguf::WeightType;

const TYPES: [WeightType; 6] = [
    WeightType::F32,
    WeightType::F16,
    WeightType::Bf16,
    WeightType::Q4_0,
    WeightType::Q4_1,
    WeightType::Q8_0,
];

/// Numbers that look random and are the same everywhere.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    }
}

/// A stored matrix of a type, and its numbers.
fn matrix(kind: WeightType, rows: usize, columns: usize) -> (StoredTensor, Vec<f64>) {
    let mut next = noise(rows as u64 * 31 + columns as u64);
    let (mut data, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..rows * columns / BLOCK {
        let scale = f16::from_f32((next() % 100 + 1) as f32 / 500.0);
        let minimum = f16::from_f32((next() % 100) as f32 / -50.0);
        let bytes: Vec<u8> = (0..BLOCK).map(|_| next() as u8).collect();
        let (s, m) = (f64::from(scale), f64::from(minimum));
        let nibbles = bytes[..16].iter().map(|b| b & 15).chain(bytes[..16].iter().map(|b| b >> 4));
        match kind {
            WeightType::Bf16 => {
                for byte in &bytes {
                    let number = bf16::from_f32(f32::from(*byte) / 100.0 - 1.0);
                    numbers.push(f64::from(number));
                    data.extend(number.to_le_bytes());
                }
            }
            WeightType::F32 | WeightType::F16 => {
                for byte in &bytes {
                    let number = f16::from_f32(f32::from(*byte) / 100.0 - 1.0);
                    numbers.push(f64::from(number));
                    match kind {
                        WeightType::F32 => data.extend(number.to_f32().to_le_bytes()),
                        _ => data.extend(number.to_le_bytes()),
                    }
                }
            }
            WeightType::Q4_0 => {
                data.extend(scale.to_le_bytes());
                data.extend(&bytes[..16]);
                numbers.extend(nibbles.map(|n| s * (f64::from(n) - 8.0)));
            }
            WeightType::Q4_1 => {
                data.extend(scale.to_le_bytes());
                data.extend(minimum.to_le_bytes());
                data.extend(&bytes[..16]);
                numbers.extend(nibbles.map(|n| s * f64::from(n) + m));
            }
            WeightType::Q8_0 => {
                data.extend(scale.to_le_bytes());
                data.extend(&bytes);
                numbers.extend(bytes.iter().map(|&b| s * f64::from(b as i8)));
            }
        }
    }
    (StoredTensor { dims: vec![columns, rows], weight_type: kind, data }, numbers)
}

fn floats(count: usize) -> Vec<f32> {
    let mut next = noise(7);
    (0..count).map(|_| next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
}

/// Two digits where a block is above the mean.
const SOME: Precision = Precision { excess: 1.0 };

const PRECISIONS: [Precision; 3] = [Precision::NARROW, Precision::WIDE, SOME];

/// Fills in activations as a linear layer wants them.
fn filled(linear: &Linear, compute: &Compute, x: &[f32]) -> Activations {
    let mut activations = Activations::default();
    let columns = linear.columns();
    activations.floats(x.len() / columns, columns).copy_from_slice(x);
    activations.fill(compute, linear.precision(), |_, _| {});
    activations
}

/// The activations as the kernel sees them: floats, or what quantisation makes of them.
fn seen(activations: &Activations, precision: Option<Precision>) -> Vec<f64> {
    let view = activations.view();
    if precision.is_none() {
        return view.floats.iter().map(|&value| f64::from(value)).collect();
    }
    let number = |(i, &high): (usize, &i8)| {
        let (row, block) = (i / view.columns, i % view.columns / BLOCK);
        let is_wide = view.marks(row, block) & 1 == 1;
        let low = if is_wide { f64::from(view.low[i]) / f64::from(BASE) } else { 0.0 };
        (f64::from(high) + low) * f64::from(view.scales[i / BLOCK])
    };
    view.values.iter().enumerate().map(number).collect()
}

#[test]
fn products_match_a_float64_reference() {
    let (rows, columns, tokens) = (35, 96, 19);
    let x = floats(tokens * columns);
    for (kind, precision) in TYPES.into_iter().flat_map(|t| PRECISIONS.map(|p| (t, p))) {
        let (stored, weights) = matrix(kind, rows, columns);
        let mut linear = Linear::new(&[("w".into(), stored)]).unwrap();
        linear.set_precision(precision);
        for isa in Isa::available() {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let activations = filled(&linear, &compute, &x);
            let seen = seen(&activations, linear.precision());
            let mut out = vec![1.0; tokens * rows];
            linear.apply(&compute, activations.view(), Product::Set(&mut out));
            let mut twice = out.clone();
            linear.apply(&compute, activations.view(), Product::Add(&mut twice));
            for (at, got) in out.iter().enumerate() {
                assert_eq!(twice[at], got + got);
                let (token, row) = (at / rows, at % rows);
                let terms =
                    (0..columns).map(|c| seen[token * columns + c] * weights[row * columns + c]);
                let (exact, size) =
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + f64::abs(t)));
                let error = (f64::from(*got) - exact).abs();
                assert!(error <= size * 1e-6 + 1e-6, "{kind:?} {isa:?}: {got} is not {exact}");
            }
            let mut row = vec![0.0; columns];
            linear.unpack_row(rows - 1, &mut row);
            let exact = &weights[(rows - 1) * columns..];
            assert!(row.iter().zip(exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_batch() {
    let columns = 64;
    let x = floats(40 * columns);
    let stored = [("a".to_owned(), matrix(WeightType::Q4_1, 48, columns).0)];
    let mixed = [
        ("a".to_owned(), matrix(WeightType::Q8_0, 20, columns).0),
        ("b".to_owned(), matrix(WeightType::F16, 33, columns).0),
    ];
    let cases = [&stored[..], &mixed[..]].into_iter();
    for (parts, precision) in cases.flat_map(|parts| PRECISIONS.map(|p| (parts, p))) {
        let mut linear = Linear::new(parts).unwrap();
        linear.set_precision(precision);
        for isa in Isa::available() {
            let run = |threads: usize, tokens: Range<usize>| {
                let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
                let x = &x[tokens.start * columns..tokens.end * columns];
                let mut out = vec![0.0; tokens.len() * linear.rows()];
                let activations = filled(&linear, &compute, x);
                linear.apply(&compute, activations.view(), Product::Set(&mut out));
                out
            };
            let whole = run(1, 0..40);
            for (threads, tokens) in [(2, 0..40), (3, 0..17), (1, 5..6), (2, 39..40), (2, 3..7)] {
                let expected = &whole[tokens.start * linear.rows()..tokens.end * linear.rows()];
                assert!(run(threads, tokens.clone()) == expected, "{isa:?} {threads} {tokens:?}");
            }
        }
    }
}

#[test]
fn a_gated_product_is_silu_of_the_one_times_the_other() {
    let (rows, columns, tokens) = (40, 64, 21);
    let linear = |seed: usize, kind| {
        let stored = matrix(kind, rows + seed * ROWS, columns).0;
        let data = stored.data[..stored.data.len() / (rows + seed * ROWS) * rows].to_vec();
        let stored = StoredTensor { dims: vec![columns, rows], data, ..stored };
        Linear::new(&[("w".into(), stored)]).unwrap()
    };
    let (gate, up) = (linear(0, WeightType::Q4_1), linear(1, WeightType::Q8_0));
    let x = floats(tokens * columns);
    for isa in Isa::available() {
        let compute = Compute { pool: Pool::start(2).unwrap(), isa };
        let activations = filled(&gate, &compute, &x);
        let mut outs = [(); 3].map(|()| vec![0.0; tokens * rows]);
        gate.apply(&compute, activations.view(), Product::Set(&mut outs[0]));
        up.apply(&compute, activations.view(), Product::Set(&mut outs[1]));
        gate.apply_gated(&up, &compute, activations.view(), &mut outs[2]);
        let [gates, ups, gated] = outs;
        for ((gate, up), gated) in gates.iter().zip(ups).zip(gated) {
            let (gate, up) = (f64::from(*gate), f64::from(up));
            let exact = gate / (1.0 + (-gate).exp()) * up;
            assert!((f64::from(gated) - exact).abs() <= 1e-5 * exact.abs() + 1e-6, "{isa:?}");
        }
    }
}

#[test]
fn matrices_of_other_shapes_are_refused() {
    let odd = StoredTensor { dims: vec![33, 2], weight_type: WeightType::F32, data: vec![0; 264] };
    let flat = StoredTensor { dims: vec![64], weight_type: WeightType::F32, data: vec![0; 256] };
    for (tensor, fragment) in [(odd, "not rows of blocks of 32"), (flat, "expected 2 dimensions")] {
        let error = Linear::new(&[("w".into(), tensor)]).unwrap_err().to_string();
        assert!(error.contains(fragment) && error.contains("`w`"), "{error}");
    }
    let narrow = ("a".to_owned(), matrix(WeightType::Q8_0, 4, 32).0);
    let wide = ("b".to_owned(), matrix(WeightType::Q8_0, 4, 64).0);
    let error = Linear::new(&[narrow, wide]).unwrap_err().to_string();
    assert!(error.contains("tensor `b`: expected rows of 32, got 64"), "{error}");
}
