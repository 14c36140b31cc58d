//! Weights as the kernels want them: tiles of 16 rows, so that one register holds 16 results.
//!
//! Numbers of a few bits are codes with scales (`tiles.rs`); floats stay as wide as they are
//! stored. What a file holds is taken apart in `blocks.rs`.

use half::{bf16, f16};

use super::activations::BLOCK;
use super::memory::Pages;
use crate::Error;
use crate::weights::gguf::{StoredTensor, WeightType};

mod blocks;
mod tiles;

pub(super) use tiles::{
    Codes, Format, NESTED_MINIMA, PLANE, PLANES, Q4, Q4Centred, Q4K, Q5, Q5Centred, Q5K, Q6K, Q8,
    Scales, with_format,
};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// How the tiles of a matrix are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Codes with scales, which meet quantised activations.
    Coded(Codes),
    /// Floats, which meet activations as they are; those of bf16 meet activations rounded to bf16
    /// where the processor multiplies these.
    Dense(Dense),
}

/// Tiles of floats, over 32 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dense {
    /// Column after column, 16 rows each.
    F32,
    /// Column after column, 16 rows each.
    F16,
    /// Two columns after two columns, 16 rows each: a word holds a row's two numbers.
    Bf16,
}

impl Dense {
    /// Bytes of a number.
    pub(super) const fn number_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Returns where a tile has a number.
    const fn place(self, lane: usize, column: usize) -> usize {
        match self {
            Self::F32 => 4 * (column * ROWS + lane),
            Self::F16 => 2 * (column * ROWS + lane),
            Self::Bf16 => 2 * (column / 2 * 2 * ROWS + 2 * lane + column % 2),
        }
    }

    /// Returns a number of a tile.
    pub(super) fn number(self, tile: &[u8], lane: usize, column: usize) -> f32 {
        let bytes = &tile[self.place(lane, column)..];
        match self {
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => read_f16(bytes, 0),
            Self::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }
}

/// Floats known when compiling, for kernels that are compiled once for each.
pub(super) trait Float {
    /// The floats.
    const DENSE: Dense;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Float for F32 {
    const DENSE: Dense = Dense::F32;
}

impl Float for F16 {
    const DENSE: Dense = Dense::F16;
}

impl Float for Bf16 {
    const DENSE: Dense = Dense::Bf16;
}

impl Layout {
    fn of(weight_type: WeightType) -> Self {
        match weight_type {
            WeightType::F32 => Self::Dense(Dense::F32),
            WeightType::F16 => Self::Dense(Dense::F16),
            WeightType::Bf16 => Self::Dense(Dense::Bf16),
            WeightType::Q4_0 => Self::Coded(Codes::Q4Centred),
            WeightType::Q4_1 => Self::Coded(Codes::Q4),
            WeightType::Q5_0 => Self::Coded(Codes::Q5Centred),
            WeightType::Q5_1 => Self::Coded(Codes::Q5),
            WeightType::Q8_0 => Self::Coded(Codes::Q8),
            WeightType::Q4K => Self::Coded(Codes::Q4K),
            WeightType::Q5K => Self::Coded(Codes::Q5K),
            WeightType::Q6K => Self::Coded(Codes::Q6K),
        }
    }

    /// Columns of a tile.
    pub(super) const fn tile_columns(self) -> usize {
        match self {
            Self::Coded(codes) => codes.blocks() * BLOCK,
            Self::Dense(_) => BLOCK,
        }
    }

    /// Bytes of a tile.
    pub(super) const fn tile_bytes(self) -> usize {
        match self {
            Self::Coded(codes) => codes.tile_bytes(),
            Self::Dense(dense) => dense.number_bytes() * ROWS * BLOCK,
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
    ///
    /// Errors: it is no matrix, its rows are not whole tiles, or its bytes are too few or many.
    pub(super) fn new(name: &str, stored: &StoredTensor) -> Result<Self, Error> {
        let broken = |why: String| Error::Model(format!("tensor `{name}`: {why}"));
        let [columns, rows] = stored.dims[..] else {
            return Err(broken(format!("expected 2 dimensions, got {:?}", stored.dims)));
        };
        let kind = stored.weight_type;
        let layout = Layout::of(kind);
        let multiple = layout.tile_columns();
        if columns == 0 || columns % multiple != 0 || rows == 0 {
            let expected = format!("expected rows of a multiple of {multiple} for {}", kind.name());
            return Err(broken(format!("{expected}, got {rows} rows of {columns}")));
        }
        let (elements, block_bytes) = kind.block();
        let (tiles_per_row, source_bytes) = (columns / multiple, multiple / elements * block_bytes);
        let expected = rows.checked_mul(tiles_per_row * source_bytes);
        if expected != Some(stored.data.len()) {
            let got = stored.data.len();
            return Err(broken(format!("{got} bytes are not {rows} rows of {columns}")));
        }
        let bytes = rows.div_ceil(ROWS) * tiles_per_row * layout.tile_bytes();
        let mut tiles = Pages::take(bytes)
            .map_err(|error| broken(format!("no memory for {bytes} bytes: {error}")))?;
        for (index, block) in stored.data.chunks_exact(source_bytes).enumerate() {
            let (row, column) = (index / tiles_per_row, index % tiles_per_row);
            let tile = (row / ROWS * tiles_per_row + column) * layout.tile_bytes();
            let tile = &mut tiles[tile..][..layout.tile_bytes()];
            match layout {
                Layout::Coded(codes) => blocks::pack(kind, codes, tile, row % ROWS, block),
                Layout::Dense(dense) => {
                    for (column, number) in block.chunks_exact(dense.number_bytes()).enumerate() {
                        let at = dense.place(row % ROWS, column);
                        tile[at..][..number.len()].copy_from_slice(number);
                    }
                }
            }
        }
        Ok(Self { layout, rows, columns, tiles })
    }

    /// Returns how many groups of 16 rows there are.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Returns the size of all tiles.
    pub(super) fn bytes(&self) -> usize {
        self.tiles.len()
    }

    /// Returns the tiles of a group of 16 rows.
    pub(super) fn group(&self, index: usize) -> &[u8] {
        let bytes = self.columns / self.layout.tile_columns() * self.layout.tile_bytes();
        &self.tiles[index * bytes..][..bytes]
    }

    /// Writes a row's numbers into `out`.
    pub(super) fn unpack_row(&self, row: usize, out: &mut [f32]) {
        let lane = row % ROWS;
        let tiles = self.group(row / ROWS).chunks_exact(self.layout.tile_bytes());
        for (tile, out) in tiles.zip(out.chunks_exact_mut(self.layout.tile_columns())) {
            match self.layout {
                Layout::Coded(codes) => codes.unpack_row(tile, lane, out),
                Layout::Dense(dense) => {
                    for (column, out) in out.iter_mut().enumerate() {
                        *out = dense.number(tile, lane, column);
                    }
                }
            }
        }
    }
}

/// Returns the f16 at an index of little-endian halves.
pub(super) fn read_f16(bytes: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
}
