//! What a worker has cached of a prompt.

/// How many blocks at the beginning of a prompt a worker holds without a gap, by the fastest tier
/// that has each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Blocks in the device's memory.
    pub device: u32,
    /// Blocks in the host's memory and not in the device's.
    pub host: u32,
    /// Blocks that are only on disk.
    pub disk: u32,
}

impl Overlap {
    /// Returns the blocks of all tiers.
    pub fn blocks(&self) -> u32 {
        self.device + self.host + self.disk
    }
}
