//! Adapters of random numbers over a small shape.

use super::*;
use crate::cpu::Isa;
use crate::cpu::pool::Pool;
use crate::model::bert::tests::Made;

pub(crate) const SHAPE: Shape =
    Shape { layers: 2, hidden: 32, query: 32, kv: 16, feed_forward: 48 };

pub(crate) fn settings(targets: &[Target]) -> Settings {
    let targets = Some(targets.iter().copied().collect());
    Settings { rank: 4, scale: 0.5, targets, layers: None }
}

/// The tensors of an adapter of rank 4.
pub(crate) fn tensors(targets: &[Target], seed: u64) -> Made {
    tensors_of(SHAPE, targets, seed)
}

/// The tensors of an adapter of rank 4 for a base of this shape.
pub(crate) fn tensors_of(shape: Shape, targets: &[Target], seed: u64) -> Made {
    let (mut made, mut random) = (Made::default(), fastrand::Rng::with_seed(seed));
    for layer in 0..shape.layers {
        for &target in targets {
            let (columns, rows) = shape.of(target);
            let [down, up] = names(layer, target);
            made.add(down, &[columns, 4], &mut random);
            made.add(up, &[4, rows], &mut random);
        }
    }
    made
}

fn adapter(targets: &[Target], seed: u64) -> Adapter {
    Adapter::read(&tensors(targets, seed), &settings(targets), SHAPE).unwrap()
}

#[test]
fn what_does_not_fit_is_named() {
    use Target::{Down, Query};
    let read = |made: &Made, settings: &Settings| {
        Adapter::read(made, settings, SHAPE).unwrap_err().to_string()
    };
    let up = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    let both = settings(&[Query, Down]);
    let mut made = tensors(&[Query, Down], 1);
    made.remove(up);
    assert!(read(&made, &both).contains(&format!("tensor `{up}`: is missing")));
    made.add(up.to_owned(), &[4, 31], &mut fastrand::Rng::new());
    assert!(read(&made, &both).contains("down_proj.lora_B.weight`: expected [4, 32], got [4, 31]"));
    let made = tensors(&[Query], 1);
    let other = Settings { rank: 8, ..settings(&[Query]) };
    assert!(read(&made, &other).contains("q_proj.lora_A.weight`: expected [32, 8], got [32, 4]"));
    assert!(read(&made, &both).contains("layers.0.mlp.down_proj.lora_A.weight`: is missing"));
    let mut made = tensors(&[Query], 1);
    made.add("base_model.model.lm_head.lora_A.weight".into(), &[32, 4], &mut fastrand::Rng::new());
    assert!(read(&made, &settings(&[Query])).contains("`base_model.model.lm_head.lora_A.weight`"));
    let far = Settings { layers: Some([2].into()), ..settings(&[Query]) };
    assert!(read(&made, &far).contains("layer 2 is updated, the base has 2 layers"));
    let none = Settings { targets: None, ..settings(&[]) };
    assert!(read(&Made::default(), &none).contains("updates nothing"));
}

#[test]
fn layers_that_are_not_meant_may_be_missing() {
    let mut made = tensors(&[Target::Up], 1);
    names(0, Target::Up).iter().for_each(|name| made.remove(name));
    let settings = Settings { layers: Some([1].into()), ..settings(&[Target::Up]) };
    let adapter = Adapter::read(&made, &settings, SHAPE).unwrap();
    assert!(adapter.update(0, Target::Up).is_none() && adapter.update(1, Target::Up).is_some());
    // A pattern is answered by the tensors.
    let pattern = Settings { targets: None, layers: None, ..settings };
    let other = Adapter::read(&made, &pattern, SHAPE).unwrap();
    assert_eq!(other.fingerprint(), adapter.fingerprint());
}

#[test]
fn content_has_a_number_of_its_own() {
    let one = adapter(&[Target::Query], 1).fingerprint();
    assert_eq!(one, adapter(&[Target::Query], 1).fingerprint());
    assert_ne!(one, adapter(&[Target::Query], 2).fingerprint());
    let scaled = Settings { scale: 0.25, ..settings(&[Target::Query]) };
    let scaled = Adapter::read(&tensors(&[Target::Query], 1), &scaled, SHAPE).unwrap();
    assert_ne!(one, scaled.fingerprint());
}

#[test]
fn tokens_of_several_adapters_and_of_none_are_as_each_alone() {
    let (a, b) = (adapter(&[Target::Key], 1), adapter(&[Target::Key, Target::Down], 2));
    let other = adapter(&[Target::Query], 3);
    let mut random = fastrand::Rng::with_seed(8);
    let mut draw = |count: usize| (0..count).map(|_| random.f32()).collect::<Vec<f32>>();
    let (tokens, stride, first) = (9, 64, 32);
    let (x, base) = (draw(tokens * SHAPE.hidden), draw(tokens * stride));
    let owners =
        [None, Some(&a), Some(&a), None, Some(&b), Some(&other), Some(&a), Some(&b), Some(&b)];
    for isa in Isa::available() {
        for threads in [1, 3] {
            let compute = Compute { pool: Pool::start(threads).unwrap(), isa };
            let run = |owners: &[Option<&Adapter>], x: &[f32], base: &[f32]| {
                let mut deltas = Deltas::default();
                for (token, owner) in owners.iter().enumerate() {
                    owner.iter().for_each(|adapter| deltas.push(token, 1, adapter));
                }
                let mut rows = base.to_vec();
                let out = Part { rows: &mut rows, stride, first };
                deltas.add(&compute, (1, Target::Key), x, out);
                rows
            };
            let together = run(&owners, &x, &base);
            for token in 0..tokens {
                let x = &x[token * SHAPE.hidden..][..SHAPE.hidden];
                let row = &base[token * stride..][..stride];
                let got = &together[token * stride..][..stride];
                assert_eq!(run(&owners[token..=token], x, row), got, "{isa:?} token {token}");
                let is_touched = owners[token].is_some_and(|own| !std::ptr::eq(own, &other));
                assert_eq!(
                    got[first..first + SHAPE.kv] != row[first..first + SHAPE.kv],
                    is_touched
                );
                assert_eq!(got[..first], row[..first]);
                assert_eq!(got[first + SHAPE.kv..], row[first + SHAPE.kv..]);
            }
        }
    }
}
