//! Every weight type on every instruction set against a float64 reference, and the promise that a
//! token's result depends on that token alone.

use half::{bf16, f16};

use super::*;
use std::ops::Range;

use crate::cpu::activations::{Activations, BLOCK, Form};
use crate::weights::gguf::WeightType;

/// Rows of every type as gguf's Python package reads them; see `make_quants.py` beside the file.
const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/quants.bin");

/// Numbers that look random and are the same everywhere.
fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 33
    }
}

/// A stored matrix of a type: random bytes, with scales of a sensible size.
fn matrix(kind: WeightType, rows: usize, columns: usize) -> StoredTensor {
    let mut next = noise(rows as u64 * 31 + columns as u64);
    let (elements, block_bytes) = kind.block();
    let mut data = Vec::new();
    for _ in 0..rows * columns / elements {
        let number = (next() % 2048) as f32 / 1000.0 - 1.0;
        let mut block: Vec<u8> = (0..block_bytes).map(|_| next() as u8).collect();
        let scale = f16::from_f32((next() % 100 + 1) as f32 / 500.0).to_le_bytes();
        let minimum = f16::from_f32((next() % 100) as f32 / -50.0).to_le_bytes();
        match kind {
            WeightType::F32 => block.copy_from_slice(&number.to_le_bytes()),
            WeightType::F16 => block.copy_from_slice(&f16::from_f32(number).to_le_bytes()),
            WeightType::Bf16 => block.copy_from_slice(&bf16::from_f32(number).to_le_bytes()),
            WeightType::Q6K => block[208..].copy_from_slice(&scale),
            WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => {
                block[..2].copy_from_slice(&scale);
            }
            WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
                block[..2].copy_from_slice(&scale);
                block[2..4].copy_from_slice(&minimum);
            }
        }
        data.extend(block);
    }
    StoredTensor { dims: vec![columns, rows], weight_type: kind, data }
}

/// The numbers of a matrix, row after row.
fn numbers(linear: &Linear) -> Vec<f64> {
    let mut row = vec![0.0; linear.columns()];
    let rows = (0..linear.rows()).flat_map(|index| {
        linear.unpack_row(index, &mut row);
        row.iter().map(|&number| f64::from(number)).collect::<Vec<_>>()
    });
    rows.collect()
}

/// A width that a type allows, with more than one tile.
fn columns(kind: WeightType) -> usize {
    (3 * BLOCK).max(2 * kind.block().0)
}

#[test]
fn stored_rows_mean_what_ggml_means() {
    let mut golden = GOLDEN;
    let mut take = |count: usize| golden.split_off(..count).unwrap();
    for kind in WeightType::ALL {
        assert_eq!(take(8).split(|&byte| byte == 0).next(), Some(kind.name().as_bytes()));
        let fields = take(20).as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        let [number, elements, bytes, rows, columns] = fields.collect::<Vec<_>>()[..] else {
            unreachable!("twenty bytes are five numbers");
        };
        assert_eq!(WeightType::from_number(number), Some(kind));
        assert_eq!(kind.block(), (elements as usize, bytes as usize), "{kind:?}");
        let (rows, columns) = (rows as usize, columns as usize);
        let data = take(rows * columns / elements as usize * bytes as usize).to_vec();
        let stored = StoredTensor { dims: vec![columns, rows], weight_type: kind, data };
        let linear = Linear::new(&[("w".into(), stored)]).unwrap();
        let mut row = vec![0.0; columns];
        for index in 0..rows {
            linear.unpack_row(index, &mut row);
            let expected = take(4 * columns).as_chunks::<4>().0.iter().copied();
            let expected: Vec<f32> = expected.map(f32::from_le_bytes).collect();
            assert!(row == expected, "{kind:?}: {row:?} is not {expected:?}");
        }
    }
    assert!(golden.is_empty());
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
    activations.fill(compute, linear.form(compute.isa), |_, _| {});
    activations
}

/// The activations as the kernel sees them: floats, or what quantisation or rounding makes of them.
fn seen(activations: &Activations, form: Form, isa: Isa) -> Vec<f64> {
    activations.read(isa, 0, |view| {
        let numbers = (0..view.floats.len()).map(|i| match form {
            Form { digits: Some(_), .. } => view.number(i / view.columns, i % view.columns),
            Form { bf16: true, .. } => view.rounded_number(i / view.columns, i % view.columns),
            _ => f64::from(view.floats[i]),
        });
        numbers.collect()
    })
}

/// Numbers with blocks of zeros, and others far larger and far smaller than the rest of their rows.
fn outliers(tokens: usize, columns: usize) -> Vec<f32> {
    let mut x = floats(tokens * columns);
    for (row, x) in x.chunks_exact_mut(columns).enumerate() {
        match row % 5 {
            0 => x[row] = 1e30,
            1 => x[..BLOCK].fill(0.0),
            2 => x[..BLOCK].iter_mut().for_each(|x| *x *= 1e-42),
            3 => x[row] = -3000.0,
            // The largest sums of digits that there are.
            4 => x.fill(if row.is_multiple_of(2) { 1.0 } else { -1.0 }),
            _ => {}
        }
    }
    x
}

#[test]
fn products_match_a_float64_reference() {
    let (rows, tokens) = (35, 19);
    for (kind, precision) in WeightType::ALL.into_iter().flat_map(|t| PRECISIONS.map(|p| (t, p))) {
        let columns = columns(kind);
        let x = outliers(tokens, columns);
        let stored = ("w".to_owned(), matrix(kind, rows, columns));
        let mut linear = Linear::new(&[stored]).unwrap();
        linear.set_precision(precision);
        let weights = numbers(&linear);
        for isa in Isa::available() {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let activations = filled(&linear, &compute, &x);
            let seen = seen(&activations, linear.form(isa), isa);
            let mut out = vec![1.0; tokens * rows];
            linear.apply(&compute, &activations, Product::Set(&mut out));
            let mut twice = out.clone();
            linear.apply(&compute, &activations, Product::Add(&mut twice));
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
        }
    }
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_any_batch() {
    for (kind, precision) in WeightType::ALL.into_iter().flat_map(|t| PRECISIONS.map(|p| (t, p))) {
        let columns = columns(kind);
        let x = floats(50 * columns);
        // One matrix, and three of different types that share their activations.
        let three = [
            ("a".to_owned(), matrix(kind, 33, columns)),
            ("b".to_owned(), matrix(WeightType::F16, 20, columns)),
            ("c".to_owned(), matrix(WeightType::Bf16, 17, columns)),
        ];
        for parts in [&three[..1], &three[..]] {
            let mut linear = Linear::new(parts).unwrap();
            linear.set_precision(precision);
            for isa in Isa::available() {
                let run = |threads: usize, tokens: Range<usize>| {
                    let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
                    let x = &x[tokens.start * columns..tokens.end * columns];
                    let mut out = vec![0.0; tokens.len() * linear.rows()];
                    let activations = filled(&linear, &compute, x);
                    linear.apply(&compute, &activations, Product::Set(&mut out));
                    out
                };
                let whole = run(1, 0..50);
                for (threads, tokens) in
                    [(2, 0..50), (3, 0..17), (1, 5..6), (2, 49..50), (2, 3..7), (1, 0..8)]
                        .into_iter()
                        .chain([9, 11, 12, 13].map(|count| (1, 0..count)))
                {
                    let expected = &whole[tokens.start * linear.rows()..tokens.end * linear.rows()];
                    let got = run(threads, tokens.clone());
                    assert!(got == expected, "{kind:?} {isa:?} {threads} {tokens:?}");
                }
            }
        }
    }
}

#[test]
fn codes_give_the_same_bits_on_instructions_for_whole_tiles() {
    let Some(isa) = Isa::available().into_iter().find(|isa| isa.has_tiles()) else {
        return eprintln!("SKIPPED: this processor has no AMX");
    };
    // Rows of more blocks than are unpacked at once, and tiles that are full or are not.
    let (rows, columns) = (33, 40 * BLOCK);
    let x = outliers(70, columns);
    for (kind, precision) in WeightType::ALL.into_iter().flat_map(|t| PRECISIONS.map(|p| (t, p))) {
        let mut linear = Linear::new(&[("w".to_owned(), matrix(kind, rows, columns))]).unwrap();
        linear.set_precision(precision);
        if linear.form(isa).digits.is_none() {
            continue;
        }
        for tokens in [1, 11, 12, 16, 20, 31, 64, 70] {
            let [tiled, plain] = [isa, isa.without_bf16()].map(|isa| {
                let compute = Compute { pool: Pool::start(1).unwrap(), isa };
                let activations = filled(&linear, &compute, &x[..tokens * columns]);
                let mut out = vec![0.0; tokens * rows];
                linear.apply(&compute, &activations, Product::Set(&mut out));
                out
            });
            let are_equal =
                tiled.iter().zip(&plain).all(|(one, other)| one.to_bits() == other.to_bits());
            assert!(are_equal, "{kind:?} {precision:?}: {tokens} tokens");
        }
    }
}

#[test]
fn what_is_no_number_makes_none_of_its_token_and_harms_no_other() {
    const ODD: [(usize, f32); 4] =
        [(1, f32::NAN), (2, f32::INFINITY), (5, f32::NEG_INFINITY), (6, -f32::NAN)];
    let rows = 35;
    let kinds = WeightType::ALL.into_iter().flat_map(|t| PRECISIONS.map(|p| (t, p)));
    // Few rows, and more than one tile of them.
    for ((kind, precision), tokens) in kinds.flat_map(|kind| [(kind, 9), (kind, 21)]) {
        let columns = columns(kind);
        let stored = |name: &str| (name.to_owned(), matrix(kind, rows, columns));
        let mut linear = Linear::new(&[stored("w")]).unwrap();
        linear.set_precision(precision);
        let x = floats(tokens * columns);
        for (isa, place) in Isa::available().into_iter().flat_map(|isa| [(isa, 0), (isa, 77)]) {
            let compute = Compute { pool: Pool::start(2).unwrap(), isa };
            let run = |x: &[f32]| {
                let activations = filled(&linear, &compute, x);
                let mut outs = [(); 2].map(|()| vec![0.0; tokens * rows]);
                linear.apply(&compute, &activations, Product::Set(&mut outs[0]));
                linear.apply_gated(&linear, &compute, &activations, &mut outs[1]);
                outs
            };
            let sound = run(&x);
            let mut odd = x.clone();
            ODD.iter().for_each(|&(token, number)| odd[token * columns + place] = number);
            for (sound, got) in sound.iter().zip(run(&odd)) {
                for (at, (sound, got)) in sound.iter().zip(&got).enumerate() {
                    let number = ODD.iter().find(|(token, _)| *token == at / rows);
                    let is_right = match number {
                        None => sound.to_bits() == got.to_bits(),
                        // What is stored as floats follows their rules, which know infinity.
                        Some((_, number)) if linear.form(isa).digits.is_none() => {
                            got.is_nan() || (number.is_infinite() && !sound.is_nan())
                        }
                        Some(_) => got.is_nan(),
                    };
                    assert!(is_right, "{kind:?} {isa:?}: {sound} became {got} by {number:?}");
                }
            }
        }
    }
}

#[test]
fn rows_that_were_there_before_change_nothing() {
    for kind in WeightType::ALL {
        let columns = columns(kind);
        let linear = Linear::new(&[("w".to_owned(), matrix(kind, 20, columns))]).unwrap();
        let (odd, x) = (vec![f32::NAN; 16 * columns], floats(13 * columns));
        for isa in Isa::available() {
            let compute = Compute { pool: Pool::start(1).unwrap(), isa };
            let [fresh, used] = [&[&x][..], &[&odd, &x]].map(|fillings| {
                let mut activations = Activations::default();
                for x in fillings {
                    activations.floats(x.len() / columns, columns).copy_from_slice(x);
                    activations.fill(&compute, linear.form(isa), |_, _| {});
                }
                let mut out = vec![0.0; 13 * linear.rows()];
                linear.apply(&compute, &activations, Product::Set(&mut out));
                out
            });
            assert!(fresh == used && fresh.iter().all(|x| x.is_finite()), "{kind:?} {isa:?}");
        }
    }
}

#[test]
fn a_gated_product_is_silu_of_the_one_times_the_other() {
    let (rows, columns, tokens) = (40, 64, 70);
    let linear = |seed: usize, kind| {
        let stored = matrix(kind, rows + seed * ROWS, columns);
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
        gate.apply(&compute, &activations, Product::Set(&mut outs[0]));
        up.apply(&compute, &activations, Product::Set(&mut outs[1]));
        gate.apply_gated(&up, &compute, &activations, &mut outs[2]);
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
    let stored = |kind: WeightType, dims: Vec<usize>| {
        let (elements, bytes) = kind.block();
        let data = vec![0; dims.iter().product::<usize>() / elements * bytes];
        StoredTensor { dims, weight_type: kind, data }
    };
    let mut cut = stored(WeightType::Q8_0, vec![64, 2]);
    cut.data.pop();
    for (tensor, fragment) in [
        (stored(WeightType::F32, vec![33, 2]), "a multiple of 32 for F32, got 2 rows of 33"),
        (stored(WeightType::Q6K, vec![288, 3]), "a multiple of 256 for Q6_K, got 3 rows of 288"),
        (stored(WeightType::F32, vec![64]), "expected 2 dimensions"),
        (cut, "135 bytes are not 2 rows of 64"),
    ] {
        let error = Linear::new(&[("w".into(), tensor)]).unwrap_err().to_string();
        assert!(error.contains(fragment) && error.contains("`w`"), "{error}");
    }
    let narrow = ("a".to_owned(), matrix(WeightType::Q8_0, 4, 32));
    let wide = ("b".to_owned(), matrix(WeightType::Q8_0, 4, 64));
    let error = Linear::new(&[narrow, wide]).unwrap_err().to_string();
    assert!(error.contains("tensor `b`: expected rows of 32, got 64"), "{error}");
}
