//! Blocks as ggml stores them, taken apart into codes and scales and put into a tile.

use super::{Codes, Format, NESTED_MINIMA, ROWS, Scales, with_format};
use crate::cpu::activations::BLOCK;
use crate::weights::gguf::WeightType;

/// Puts one row's block, which is as long as a tile is wide, into that tile.
pub(super) fn pack(kind: WeightType, codes: Codes, tile: &mut [u8], lane: usize, block: &[u8]) {
    with_format!(codes, pack_format(kind, tile, lane, block));
}

fn pack_format<F: Format>(kind: WeightType, tile: &mut [u8], lane: usize, block: &[u8]) {
    let codes = F::CODES;
    let (header, tile) = tile.split_at_mut(codes.header_bytes());
    let mut put = |at: usize, half: &[u8]| header[at + 2 * lane..][..2].copy_from_slice(&half[..2]);
    match codes.scales() {
        Scales::Centred => put(0, block),
        Scales::Minimum => {
            put(0, block);
            put(2 * ROWS, &block[2..]);
        }
        Scales::Nested => {
            put(0, block);
            put(2 * ROWS, &block[2..]);
            for index in 0..8 {
                let (scale, minimum) = nested(&block[4..16], index);
                header[(4 + index) * ROWS + lane] = scale;
                header[NESTED_MINIMA + index * ROWS + lane] = minimum;
            }
        }
        Scales::Halves => {
            put(0, &block[208..]);
            for (index, &scale) in block[192..208].iter().enumerate() {
                header[(2 + index) * ROWS + lane] = scale;
            }
        }
    }
    for (index, tile) in tile.chunks_exact_mut(codes.block_bytes()).enumerate() {
        codes.store(tile, lane, &read(kind, block, index));
    }
}

/// Returns the 6-bit scale and minimum of a block of 32 out of the 12 bytes that hold all eight.
fn nested(bytes: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        return (bytes[index] & 63, bytes[4 + index] & 63);
    }
    let (scale, minimum, low) = (bytes[index - 4], bytes[index], bytes[4 + index]);
    (low & 15 | scale >> 6 << 4, low >> 4 | minimum >> 6 << 4)
}

/// Returns 32 codes of a block.
fn read(kind: WeightType, block: &[u8], index: usize) -> [u8; BLOCK] {
    match kind {
        WeightType::Q4_0 => nibbles(&block[2..]),
        WeightType::Q4_1 => nibbles(&block[4..]),
        WeightType::Q5_0 => with_fifth_bits(nibbles(&block[6..]), &block[2..6]),
        WeightType::Q5_1 => with_fifth_bits(nibbles(&block[8..]), &block[4..8]),
        WeightType::Q4K => nibble_of_32(&block[16 + index / 2 * BLOCK..], index % 2),
        WeightType::Q5K => {
            let mut codes = nibble_of_32(&block[48 + index / 2 * BLOCK..], index % 2);
            for (code, bits) in codes.iter_mut().zip(&block[16..48]) {
                *code |= (bits >> index & 1) << 4;
            }
            codes
        }
        WeightType::Q6K => {
            // Each half of the block has four times 32 codes: the low nibbles of 64 bytes, then
            // the high ones, and a byte with the upper bits of all four.
            let (half, quarter) = (index / 4, index % 4);
            let mut codes = nibble_of_32(&block[half * 64 + quarter % 2 * BLOCK..], quarter / 2);
            for (code, bits) in codes.iter_mut().zip(&block[128 + half * BLOCK..]) {
                *code |= (bits >> (2 * quarter) & 3) << 4;
            }
            codes
        }
        // A signed number is 128 less than its code; floats have no codes and never come here.
        WeightType::Q8_0 | WeightType::F32 | WeightType::F16 | WeightType::Bf16 => {
            let mut codes = [0; BLOCK];
            for (code, byte) in codes.iter_mut().zip(&block[2..]) {
                *code = byte ^ 0x80;
            }
            codes
        }
    }
}

/// Returns the low nibbles of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    let (low, high) = codes.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// Returns the low or the high nibbles of 32 bytes.
fn nibble_of_32(bytes: &[u8], which: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (code, byte) in codes.iter_mut().zip(bytes) {
        *code = byte >> (4 * which) & 15;
    }
    codes
}

/// Adds the fifth bit of each code, out of 4 bytes.
fn with_fifth_bits(mut codes: [u8; BLOCK], bits: &[u8]) -> [u8; BLOCK] {
    for (column, code) in codes.iter_mut().enumerate() {
        *code |= (bits[column / 8] >> (column % 8) & 1) << 4;
    }
    codes
}
