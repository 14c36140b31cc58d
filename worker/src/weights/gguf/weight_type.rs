//! How the elements of tensors are stored: ggml's types that this worker runs.

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// 32 elements: an f16 scale and 4-bit numbers from -8.
    Q4_0,
    /// 32 elements: an f16 scale, an f16 minimum and 4-bit numbers from 0.
    Q4_1,
    /// 32 elements: an f16 scale and 5-bit numbers from -16.
    Q5_0,
    /// 32 elements: an f16 scale, an f16 minimum and 5-bit numbers from 0.
    Q5_1,
    /// 32 elements: an f16 scale and 8-bit numbers.
    Q8_0,
    /// 256 elements: f16 scales of 6-bit scales and minima for each 32, and 4-bit numbers from 0.
    Q4K,
    /// 256 elements: f16 scales of 6-bit scales and minima for each 32, and 5-bit numbers from 0.
    Q5K,
    /// 256 elements: an f16 scale of 8-bit scales for each 16, and 6-bit numbers from -32.
    Q6K,
}

impl WeightType {
    /// Every type that this worker runs.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Returns the type's name and its number in a file, both as ggml has them.
    const fn identity(self) -> (&'static str, u32) {
        match self {
            Self::F32 => ("F32", 0),
            Self::F16 => ("F16", 1),
            Self::Q4_0 => ("Q4_0", 2),
            Self::Q4_1 => ("Q4_1", 3),
            Self::Q5_0 => ("Q5_0", 6),
            Self::Q5_1 => ("Q5_1", 7),
            Self::Q8_0 => ("Q8_0", 8),
            Self::Q4K => ("Q4_K", 12),
            Self::Q5K => ("Q5_K", 13),
            Self::Q6K => ("Q6_K", 14),
            Self::Bf16 => ("BF16", 30),
        }
    }

    /// Returns the type of a number in the file.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.identity().1 == number)
    }

    /// Returns the type's name.
    pub const fn name(self) -> &'static str {
        self.identity().0
    }

    /// Returns the elements and the bytes of one block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}
