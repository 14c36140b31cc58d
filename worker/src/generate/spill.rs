//! The way of blocks from the device to the tiers below it, and back: those that a sequence brought
//! along from another engine come the same way.

use super::SchedulerConfig;
use super::scheduler::Scheduler;
use crate::Error;
use crate::kv::tier::{DiskTier, Found, HostTier, Kept, Kind, Tier, Tiers};

/// Blocks that are fetched ahead of the one that a sequence waits for.
const AHEAD: usize = 16;

/// Makes the tiers.
///
/// Errors: the folder on disk cannot be used.
pub(super) fn tiers(config: &SchedulerConfig) -> Result<Tiers, Error> {
    let mut levels: Vec<Box<dyn Tier>> = Vec::new();
    if config.host_tier_bytes > 0 && config.has_prefix_cache {
        levels.push(Box::new(HostTier::new(config.host_tier_bytes)));
    }
    if let Some(disk) = config.disk_tier.as_ref().filter(|_| config.has_prefix_cache) {
        let tier = DiskTier::start(&disk.folder, disk.max_bytes).map_err(|error| {
            Error::Device(format!("KV blocks in `{}`: {error}", disk.folder.display()))
        })?;
        levels.push(Box::new(tier));
    }
    Ok(Tiers::new(levels))
}

impl Scheduler {
    /// Moves what was given up to the tiers, before somebody writes where it lies.
    ///
    /// Errors: the device failed.
    pub(super) fn spill(&mut self) -> Result<(), Error> {
        if self.tiers.is_empty() {
            return Ok(());
        }
        for evicted in self.pool.take_evicted() {
            let mut bytes = Vec::new();
            self.runner.read_block(evicted.block, &mut bytes)?;
            let (name, salt, tokens) = (evicted.name, evicted.salt, evicted.tokens);
            self.tiers.put(Kept { name, salt, tokens, bytes });
        }
        Ok(())
    }

    /// Gives a sequence the blocks of its tokens that are found, on the device or below it, or that
    /// it brought along. Returns whether it has to wait for the next one, which is being fetched or
    /// is one too many for this step.
    ///
    /// Errors: the device failed.
    pub(super) fn attach(&mut self, index: usize) -> Result<bool, Error> {
        let size = self.limits.block_size;
        loop {
            let found = self.running[index].attach(&mut self.pool);
            self.totals.prefix_hit_tokens += found as u64;
            let next = self.running[index].next_block(size);
            let Some((place, name)) = next.filter(|_| self.pool.available() > 0) else {
                return Ok(false);
            };
            if let Some(bytes) = self.running[index].handed(place) {
                if !self.tiers.may_give(self.totals.steps, self.config.restored_blocks) {
                    return Ok(true);
                }
                self.tiers.gave();
                // It is no hit of the prefix cache here.
                if bytes.len() != self.block_bytes || self.put_back(index, &bytes)?.is_none() {
                    return Ok(false);
                }
                self.totals.imported_blocks += 1;
                continue;
            }
            if self.tiers.is_empty() {
                return Ok(false);
            }
            if !self.tiers.may_give(self.totals.steps, self.config.restored_blocks) {
                return Ok(self.tiers.has(name));
            }
            match self.tiers.take(name) {
                (kind, Found::Here(block)) => {
                    self.tiers.gave();
                    if !self.restore(index, &block)? {
                        return Ok(false);
                    }
                    match kind {
                        Kind::Host => self.totals.host_hit_blocks += 1,
                        Kind::Disk => self.totals.disk_hit_blocks += 1,
                    }
                }
                (_, Found::Coming) => {
                    let names = &self.running[index].table.names()[place..];
                    self.tiers.fetch(&names[..names.len().min(AHEAD)]);
                    return Ok(true);
                }
                (_, Found::Absent) => return Ok(false),
            }
        }
    }

    /// Writes a block back to the device as the next one of a sequence, if it is the same.
    fn restore(&mut self, index: usize, block: &Kept) -> Result<bool, Error> {
        let sequence = &self.running[index];
        let end = sequence.computed() + self.limits.block_size;
        let is_same = sequence.tokens()[..end] == block.tokens[..]
            && sequence.table.salt() == Some(block.salt);
        if !is_same {
            return Ok(false);
        }
        let found = self.put_back(index, &block.bytes)?;
        self.totals.prefix_hit_tokens += found.unwrap_or(0) as u64;
        Ok(found.is_some())
    }

    /// Writes the next block of a sequence; returns how many tokens of its prompt are there for the
    /// first time by that, or none if there was no room.
    fn put_back(&mut self, index: usize, bytes: &[u8]) -> Result<Option<usize>, Error> {
        let sequence = &mut self.running[index];
        let (start, end) = (sequence.computed(), sequence.computed() + self.limits.block_size);
        if sequence.table.grow(&mut self.pool, start, end).is_err() {
            return Ok(None);
        }
        self.spill()?;
        let sequence = &mut self.running[index];
        let place = sequence.table.blocks()[start / self.limits.block_size];
        self.runner.write_block(place, bytes)?;
        Ok(Some(sequence.restored(&mut self.pool)))
    }
}
