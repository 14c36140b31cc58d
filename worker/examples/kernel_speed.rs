//! Measures the matrix products of every weight type: `kernel_speed [TYPE [INSTRUCTIONS]]`.
//!
//! For one token the figure is the packed weights that are read in a second, which memory bounds;
//! for 16 and 64 tokens it is multiplications. The best of some repetitions counts.

use std::time::Instant;

use worker::cpu::Isa;
use worker::cpu::activations::Activations;
use worker::cpu::linear::{Compute, Linear, Product};
use worker::cpu::pool::Pool;
use worker::weights::gguf::{StoredTensor, WeightType};

/// Columns of the matrix.
const COLUMNS: usize = 4096;

/// Rows of the matrix: no type fits into a third-level cache of 32 MiB.
const ROWS: usize = 16384;

/// The least time that one figure is measured, in seconds.
const LEAST_SECONDS: f64 = 0.25;

#[expect(clippy::print_stdout, reason = "the example's purpose is to print")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted =
        |index: usize, name: &str| wanted.get(index).is_none_or(|text| name.contains(text));
    println!("type  instructions threads  m=1 GB/s  m=16 GMAC/s  m=64 GMAC/s");
    for kind in WeightType::ALL.into_iter().filter(|kind| is_wanted(0, kind.name())) {
        for isa in Isa::available() {
            let name = format!("{isa:?}");
            if !is_wanted(1, &name) {
                continue;
            }
            let linear = matrix(kind, if name.contains("Portable") { ROWS / 32 } else { ROWS })?;
            for threads in [1, 2] {
                let compute = Compute { pool: Pool::start(threads)?, isa };
                let [one, some, many] = [1, 16, 64].map(|tokens| best(&linear, &compute, tokens));
                let products = (linear.rows() * COLUMNS) as f64 / 1e9;
                println!(
                    "{:5} {name:16} {threads}  {:9.1} {:12.1} {:12.1}",
                    kind.name(),
                    linear.bytes() as f64 / 1e9 / one,
                    16.0 * products / some,
                    64.0 * products / many,
                );
            }
        }
    }
    Ok(())
}

/// A matrix of zero scales, which cost what others cost.
fn matrix(kind: WeightType, rows: usize) -> Result<Linear, worker::Error> {
    let (elements, bytes) = kind.block();
    let data = vec![0; rows * COLUMNS / elements * bytes];
    let stored = StoredTensor { dims: vec![COLUMNS, rows], weight_type: kind, data };
    Linear::new(&[("weight".to_owned(), stored)])
}

/// Returns the seconds of the fastest product with some tokens.
fn best(linear: &Linear, compute: &Compute, tokens: usize) -> f64 {
    let x: Vec<f32> = (0..tokens * COLUMNS).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut out = vec![0.0; tokens * linear.rows()];
    let mut activations = Activations::default();
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while started.elapsed().as_secs_f64() < LEAST_SECONDS {
        let step = Instant::now();
        activations.floats(tokens, COLUMNS).copy_from_slice(&x);
        activations.fill(compute, linear.form(compute.isa), |_, _| {});
        linear.apply(compute, &activations, Product::Set(&mut out));
        best = best.min(step.elapsed().as_secs_f64());
    }
    best
}
