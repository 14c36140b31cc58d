//! The tile kernels in plain Rust: the meaning of the faster ones, and what other processors run.

use super::activations::{BLOCK, View};
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
        let values = &x.values[row * x.columns..][..x.columns];
        *out = [0.0; ROWS];
        for (b, tile) in group.chunks_exact(layout.tile_bytes()).enumerate() {
            let values = &values[b * BLOCK..][..BLOCK];
            let (scale, sum) = (x.scales[row * blocks + b], x.sums[row * blocks + b]);
            for (lane, out) in out.iter_mut().enumerate() {
                *out += scale * product(layout, tile, lane, values, sum);
            }
        }
    }
}

/// Returns the product of 32 columns of a row, without the scale of the activations.
fn product(layout: Layout, tile: &[u8], lane: usize, values: &[i8], sum: f32) -> f32 {
    let mut dot = 0i32;
    if layout == Layout::Q4 {
        for k in 0..BLOCK / 2 {
            let byte = tile[4 * ROWS + k / 4 * 64 + lane * 4 + k % 4];
            dot += i32::from(byte & 15) * i32::from(values[k]);
            dot += i32::from(byte >> 4) * i32::from(values[k + BLOCK / 2]);
        }
        read_f16(tile, lane) * dot as f32 + read_f16(tile, ROWS + lane) * sum
    } else {
        for (k, value) in values.iter().enumerate() {
            let byte = tile[2 * ROWS + k / 4 * 64 + lane * 4 + k % 4];
            dot += i32::from((byte ^ 0x80) as i8) * i32::from(*value);
        }
        read_f16(tile, lane) * dot as f32
    }
}
