//! Weights as the kernels want them: tiles of 16 rows, so that one register holds 16 results.
//!
//! A tile of a quantised matrix covers 16 rows and 32 columns. The bytes of four neighbouring
//! columns of a row lie together, row after row, since that is what the integer dot instructions
//! multiply by one broadcast of four activations.

use half::f16;

use super::activations::BLOCK;
use super::memory::Pages;
use crate::Error;
use crate::gguf::{StoredTensor, WeightType};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// How the tiles of a matrix are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// 16 f16 scales, 16 f16 minima, 4 times 64 bytes: the low nibbles are columns `4k..4k+4` of
    /// each row, the high ones columns `16+4k..`. Q4_0 is held this way too, with a minimum of
    /// -8 scales.
    Q4,
    /// 16 f16 scales, 8 times 64 bytes: columns `4k..4k+4` of each row, as 128 plus the number.
    Q8,
    /// Column after column, 16 f32 each; F16 and BF16 are widened.
    F32,
}

impl Layout {
    /// Bytes of a tile over 32 columns.
    pub(super) const fn tile_bytes(self) -> usize {
        match self {
            Self::Q4 => 2 * 2 * ROWS + ROWS * BLOCK / 2,
            Self::Q8 => 2 * ROWS + ROWS * BLOCK,
            Self::F32 => 4 * ROWS * BLOCK,
        }
    }
}

/// A matrix in tiles: all tiles of the first 16 rows, then those of the next.
#[derive(Debug)]
pub(super) struct Packed {
    pub layout: Layout,
    pub rows: usize,
    pub columns: usize,
    tiles: Pages<u8>,
}

impl Packed {
    /// Packs a stored matrix; rows that fill no tile are followed by rows of zeros.
    pub(super) fn new(name: &str, stored: &StoredTensor) -> Result<Self, Error> {
        let broken = |why: String| Error::Model(format!("tensor `{name}`: {why}"));
        let [columns, rows] = stored.dims[..] else {
            return Err(broken(format!("expected 2 dimensions, got {:?}", stored.dims)));
        };
        if columns == 0 || columns % BLOCK != 0 || rows == 0 {
            return Err(broken(format!("{rows} rows of {columns} are not rows of blocks of 32")));
        }
        let layout = match stored.weight_type {
            WeightType::Q4_0 | WeightType::Q4_1 => Layout::Q4,
            WeightType::Q8_0 => Layout::Q8,
            WeightType::F32 | WeightType::F16 | WeightType::Bf16 => Layout::F32,
        };
        let blocks = columns / BLOCK;
        let bytes = rows.div_ceil(ROWS) * blocks * layout.tile_bytes();
        let mut tiles = Pages::take(bytes)
            .map_err(|error| broken(format!("no memory for {bytes} bytes: {error}")))?;
        let (elements, block_bytes) = stored.weight_type.block();
        let source_blocks = BLOCK / elements;
        for (index, block) in stored.data.chunks_exact(block_bytes * source_blocks).enumerate() {
            let (row, column) = (index / blocks, index % blocks);
            let tile = (row / ROWS * blocks + column) * layout.tile_bytes();
            let tile = &mut tiles[tile..][..layout.tile_bytes()];
            pack_block(stored.weight_type, tile, row % ROWS, block);
        }
        Ok(Self { layout, rows, columns, tiles })
    }

    /// Returns how many groups of 16 rows there are.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Returns the tiles of a group of 16 rows.
    pub(super) fn group(&self, index: usize) -> &[u8] {
        let bytes = self.columns / BLOCK * self.layout.tile_bytes();
        &self.tiles[index * bytes..][..bytes]
    }

    /// Writes a row's numbers into `out`.
    pub(super) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % ROWS;
        let tiles = self.group(row / ROWS).chunks_exact(self.layout.tile_bytes());
        for (tile, out) in tiles.zip(out.as_chunks_mut::<BLOCK>().0) {
            unpack_block(self.layout, tile, lane, out);
        }
    }
}

/// Puts one row's 32 columns into a tile.
fn pack_block(weight_type: WeightType, tile: &mut [u8], lane: usize, block: &[u8]) {
    let minima = 2 * ROWS;
    match weight_type {
        WeightType::Q4_0 | WeightType::Q4_1 => {
            let (scale, nibbles) = block.split_at(2);
            tile[2 * lane..][..2].copy_from_slice(scale);
            let nibbles = if weight_type == WeightType::Q4_1 {
                tile[minima + 2 * lane..][..2].copy_from_slice(&nibbles[..2]);
                &nibbles[2..]
            } else {
                let minimum = f16::from_f32(read_f16(block, 0) * -8.0);
                tile[minima + 2 * lane..][..2].copy_from_slice(&minimum.to_le_bytes());
                nibbles
            };
            for (k, four) in nibbles.chunks_exact(4).enumerate() {
                tile[4 * ROWS + k * 64 + lane * 4..][..4].copy_from_slice(four);
            }
        }
        WeightType::Q8_0 => {
            tile[2 * lane..][..2].copy_from_slice(&block[..2]);
            for (k, four) in block[2..].chunks_exact(4).enumerate() {
                for (j, byte) in four.iter().enumerate() {
                    tile[2 * ROWS + k * 64 + lane * 4 + j] = byte ^ 0x80;
                }
            }
        }
        WeightType::F32 => {
            for (column, number) in block.chunks_exact(4).enumerate() {
                tile[(column * ROWS + lane) * 4..][..4].copy_from_slice(number);
            }
        }
        WeightType::F16 => {
            for column in 0..BLOCK {
                let number = read_f16(block, column).to_le_bytes();
                tile[(column * ROWS + lane) * 4..][..4].copy_from_slice(&number);
            }
        }
        WeightType::Bf16 => {
            for (column, number) in block.chunks_exact(2).enumerate() {
                tile[(column * ROWS + lane) * 4 + 2..][..2].copy_from_slice(number);
            }
        }
    }
}

fn unpack_block(layout: Layout, tile: &[u8], lane: usize, out: &mut [f32; BLOCK]) {
    match layout {
        Layout::Q4 => {
            let (scale, minimum) = (read_f16(tile, lane), read_f16(tile, ROWS + lane));
            for k in 0..BLOCK / 2 {
                let byte = tile[4 * ROWS + k / 4 * 64 + lane * 4 + k % 4];
                out[k] = scale * f32::from(byte & 15) + minimum;
                out[k + BLOCK / 2] = scale * f32::from(byte >> 4) + minimum;
            }
        }
        Layout::Q8 => {
            let scale = read_f16(tile, lane);
            for (k, out) in out.iter_mut().enumerate() {
                let byte = tile[2 * ROWS + k / 4 * 64 + lane * 4 + k % 4];
                *out = scale * f32::from((byte ^ 0x80) as i8);
            }
        }
        Layout::F32 => {
            for (column, out) in out.iter_mut().enumerate() {
                *out = read_f32(tile, column * ROWS + lane);
            }
        }
    }
}

/// Returns the f16 at an index of little-endian halves.
pub(super) fn read_f16(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}

/// Returns the f32 at an index of little-endian floats.
pub(super) fn read_f32(bytes: &[u8], index: usize) -> f32 {
    let at = 4 * index;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
