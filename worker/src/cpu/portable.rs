//! The tile kernels in plain Rust: the meaning of the faster ones, and what other processors run.

use super::activations::{BASE, BLOCK, View};
use super::packed::{Layout, ROWS, read_f16};

/// Multiplies a group of 16 rows with some rows of quantised activations.
pub(super) fn quantized(
    layout: Layout,
    group: &[u8],
    x: View<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let blocks = x.columns / BLOCK;
    for (row, out) in out.iter_mut().enumerate() {
        let row = first + row;
        *out = [0.0; ROWS];
        for (b, tile) in group.chunks_exact(layout.tile_bytes()).enumerate() {
            let (at, block) = (row * x.columns + b * BLOCK, row * blocks + b);
            let mut add = |values: &[i8], sum: f32, worth: f32| {
                let values: [i32; BLOCK] = std::array::from_fn(|k| i32::from(values[at + k]));
                for (out, product) in out.iter_mut().zip(products(layout, tile, &values, sum)) {
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

/// Returns the products of 32 columns of 16 rows, without the scale of the activations.
fn products(layout: Layout, tile: &[u8], values: &[i32; BLOCK], sum: f32) -> [f32; ROWS] {
    let mut dots = [0i32; ROWS];
    let (scales, bytes) = match layout {
        Layout::Q4 => tile.split_at(4 * ROWS),
        Layout::Q8 | Layout::F32 => tile.split_at(2 * ROWS),
    };
    // Four columns of all rows lie together, row after row.
    for (k, columns) in bytes.chunks_exact(4 * ROWS).enumerate() {
        for (dot, bytes) in dots.iter_mut().zip(columns.as_chunks::<4>().0) {
            for (j, &byte) in bytes.iter().enumerate() {
                *dot += match layout {
                    Layout::Q4 => {
                        let (low, high) = (4 * k + j, 4 * k + j + BLOCK / 2);
                        i32::from(byte & 15) * values[low] + i32::from(byte >> 4) * values[high]
                    }
                    Layout::Q8 | Layout::F32 => i32::from((byte ^ 0x80) as i8) * values[4 * k + j],
                };
            }
        }
    }
    let mut products = [0.0; ROWS];
    for (lane, (product, dot)) in products.iter_mut().zip(dots).enumerate() {
        let minimum = if layout == Layout::Q4 { read_f16(scales, ROWS + lane) * sum } else { 0.0 };
        *product = read_f16(scales, lane) * dot as f32 + minimum;
    }
    products
}
