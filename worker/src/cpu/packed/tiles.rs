//! Tiles of codes: what 16 rows of numbers of a few bits look like in memory.
//!
//! A tile is a header with the scales and then, for each 32 columns, the codes. The codes of four
//! neighbouring columns of a row lie together, row after row, since that is what the integer dot
//! instructions multiply by one broadcast of four activations: such a plane has 64 bytes, and
//! plane `k` of eight is columns `4k..4k+4`.
//!
//! - 8 bits: the eight planes.
//! - 4 bits: four times 64 bytes; the low nibbles are plane `k`, the high ones plane `k + 4`.
//! - 5 bits: as 4, and 64 bytes of which bit `k` is the fifth bit of plane `k`.
//! - 6 bits: as 4, and twice 64 bytes of which the bits `2k` and `2k+1` are the upper bits of
//!   plane `k`, and of plane `k + 4`.

use super::{ROWS, read_f16};
use crate::cpu::activations::BLOCK;

/// Bytes of the codes of four columns.
pub(in crate::cpu) const PLANE: usize = 4 * ROWS;

/// Planes of 32 columns.
pub(in crate::cpu) const PLANES: usize = BLOCK / 4;

/// Where a header of [`Scales::Nested`] has the minima of its eight blocks.
pub(in crate::cpu) const NESTED_MINIMA: usize = 4 * ROWS + 8 * ROWS;

/// What codes and scales a tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Codes {
    Q4Centred,
    Q4,
    Q4K,
    Q5Centred,
    Q5,
    Q5K,
    Q6K,
    Q8,
}

/// How the scales stand in a tile's header, and so what a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Scales {
    /// 16 f16 for 32 columns; a number is `scale * (code - centre)`.
    Centred,
    /// 16 f16 scales and 16 f16 minima for 32 columns; a number is `scale * code + minimum`.
    Minimum,
    /// For 256 columns: 16 f16 factors of scales and 16 of minima, then 8 times 16 bytes of scales
    /// and 8 times 16 of minima. A number is `factor * scale * code - factor * minimum`.
    Nested,
    /// For 256 columns: 16 f16 factors, then 16 times 16 signed bytes of scales, each for 16
    /// columns. A number is `factor * scale * (code - centre)`.
    Halves,
}

impl Codes {
    /// Bits of a code.
    pub(in crate::cpu) const fn bits(self) -> usize {
        match self {
            Self::Q4Centred | Self::Q4 | Self::Q4K => 4,
            Self::Q5Centred | Self::Q5 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8 => 8,
        }
    }

    /// Returns how the scales are held.
    pub(in crate::cpu) const fn scales(self) -> Scales {
        match self {
            Self::Q4Centred | Self::Q5Centred | Self::Q8 => Scales::Centred,
            Self::Q4 | Self::Q5 => Scales::Minimum,
            Self::Q4K | Self::Q5K => Scales::Nested,
            Self::Q6K => Scales::Halves,
        }
    }

    /// The code of zero where there is no minimum.
    pub(in crate::cpu) const fn centre(self) -> i32 {
        1 << (self.bits() - 1)
    }

    /// Blocks of 32 columns in a tile.
    pub(in crate::cpu) const fn blocks(self) -> usize {
        match self.scales() {
            Scales::Centred | Scales::Minimum => 1,
            Scales::Nested | Scales::Halves => 8,
        }
    }

    /// Bytes of a tile's scales.
    pub(in crate::cpu) const fn header_bytes(self) -> usize {
        match self.scales() {
            Scales::Centred => 2 * ROWS,
            Scales::Minimum => 4 * ROWS,
            Scales::Nested => NESTED_MINIMA + 8 * ROWS,
            Scales::Halves => 2 * ROWS + 16 * ROWS,
        }
    }

    /// Bytes of the codes of 32 columns.
    pub(in crate::cpu) const fn block_bytes(self) -> usize {
        self.bits() * ROWS * BLOCK / 8
    }

    /// Bytes of a tile.
    pub(in crate::cpu) const fn tile_bytes(self) -> usize {
        self.header_bytes() + self.blocks() * self.block_bytes()
    }

    /// Finds a block of 32 columns in a group of rows: its tile's header, which block of the tile it
    /// is, and its codes.
    #[inline(always)]
    pub(in crate::cpu) fn find(self, group: &[u8], block: usize) -> (&[u8], usize, &[u8]) {
        let tile = &group[block / self.blocks() * self.tile_bytes()..];
        let (header, codes) = tile.split_at(self.header_bytes());
        let inner = block % self.blocks();
        (header, inner, &codes[inner * self.block_bytes()..][..self.block_bytes()])
    }

    /// Puts a row's codes into a block that has none of that row.
    #[inline(always)]
    pub(super) fn store(self, block: &mut [u8], lane: usize, codes: &[u8; BLOCK]) {
        for (k, four) in codes.as_chunks::<4>().0.iter().enumerate() {
            for (j, &code) in four.iter().enumerate() {
                let at = 4 * lane + j;
                if self.bits() == 8 {
                    block[k * PLANE + at] = code;
                    continue;
                }
                block[k % 4 * PLANE + at] |= (code & 15) << (k / 4 * 4);
                match self.bits() {
                    5 => block[4 * PLANE + at] |= code >> 4 << k,
                    6 => block[(4 + k / 4) * PLANE + at] |= code >> 4 << (2 * (k % 4)),
                    _ => {}
                }
            }
        }
    }

    /// Returns `N` bytes of each plane of a block, from `at` on.
    #[inline(always)]
    pub(in crate::cpu) fn load<const N: usize>(self, block: &[u8], at: usize) -> [[u8; N]; PLANES] {
        let mut planes = [[0; N]; PLANES];
        let part = |plane: usize| &block[plane * PLANE + at..][..N];
        if self.bits() == 8 {
            for (k, plane) in planes.iter_mut().enumerate() {
                plane.copy_from_slice(part(k));
            }
            return planes;
        }
        for (k, plane) in planes.iter_mut().enumerate() {
            let shift = k / 4 * 4;
            for (code, byte) in plane.iter_mut().zip(part(k % 4)) {
                *code = byte >> shift & 15;
            }
            let (upper, shift, mask) = match self.bits() {
                5 => (4, k, 1),
                6 => (4 + k / 4, 2 * (k % 4), 3),
                _ => continue,
            };
            for (code, byte) in plane.iter_mut().zip(part(upper)) {
                *code |= (byte >> shift & mask) << 4;
            }
        }
        planes
    }

    /// Returns a row's scales for the first and the second 16 columns of a block.
    pub(in crate::cpu) fn scale(self, header: &[u8], block: usize, lane: usize) -> [f32; 2] {
        let factor = read_f16(header, lane);
        match self.scales() {
            Scales::Centred | Scales::Minimum => [factor; 2],
            Scales::Nested => [factor * f32::from(header[(4 + block) * ROWS + lane]); 2],
            Scales::Halves => [0, 1].map(|half| {
                let scale = header[(2 + 2 * block + half) * ROWS + lane];
                factor * f32::from(scale as i8)
            }),
        }
    }

    /// Returns a row's minimum in a block: what the code 0 means; 0 for centred codes.
    pub(in crate::cpu) fn minimum(self, header: &[u8], block: usize, lane: usize) -> f32 {
        match self.scales() {
            Scales::Centred | Scales::Halves => 0.0,
            Scales::Minimum => read_f16(header, ROWS + lane),
            Scales::Nested => {
                let minimum = f32::from(header[NESTED_MINIMA + block * ROWS + lane]);
                -(read_f16(header, ROWS + lane) * minimum)
            }
        }
    }

    /// Writes the numbers of a row of a tile.
    pub(super) fn unpack_row(self, tile: &[u8], lane: usize, out: &mut [f32]) {
        let (header, codes) = tile.split_at(self.header_bytes());
        let has_minimum = matches!(self.scales(), Scales::Minimum | Scales::Nested);
        let centre = if has_minimum { 0 } else { self.centre() };
        let blocks = codes.chunks_exact(self.block_bytes()).zip(out.as_chunks_mut::<BLOCK>().0);
        for (index, (codes, out)) in blocks.enumerate() {
            let (scale, minimum) =
                (self.scale(header, index, lane), self.minimum(header, index, lane));
            let planes: [[u8; 4]; PLANES] = self.load(codes, 4 * lane);
            for (column, (out, code)) in out.iter_mut().zip(planes.as_flattened()).enumerate() {
                let code = (i32::from(*code) - centre) as f32;
                *out = scale[column * 2 / BLOCK] * code + minimum;
            }
        }
    }
}

/// Codes known when compiling, for kernels that are compiled once for each.
pub(in crate::cpu) trait Format {
    /// The codes.
    const CODES: Codes;
}

macro_rules! formats {
    ($($name:ident),*) => {$(
        pub(in crate::cpu) struct $name;
        impl Format for $name {
            const CODES: Codes = Codes::$name;
        }
    )*};
}

formats!(Q4Centred, Q4, Q4K, Q5Centred, Q5, Q5K, Q6K, Q8);

/// Calls a kernel that is generic over a [`Format`] with that of some codes.
macro_rules! with_format {
    ($codes:expr, $kernel:ident $arguments:tt) => {
        with_format!(@ $codes, $kernel $arguments, Q4Centred Q4 Q4K Q5Centred Q5 Q5K Q6K Q8)
    };
    (@ $codes:expr, $kernel:ident $arguments:tt, $($name:ident)*) => {
        match $codes {
            $(
                crate::cpu::packed::Codes::$name => {
                    $kernel::<crate::cpu::packed::$name> $arguments
                }
            )*
        }
    };
}

pub(in crate::cpu) use with_format;
