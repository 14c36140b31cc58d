//! What others may know of the scheduler: how busy it is and what it has done.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::{WorkerLoad, WorkerTotals};

use crate::kv::Counts;
use crate::runner::Limits;

/// Written by the scheduler's thread after each step, read by others.
#[derive(Debug)]
pub(super) struct Counters {
    running: AtomicU32,
    parked: AtomicU32,
    held_blocks: AtomicU32,
    idle_blocks: AtomicU32,
    totals: Mutex<WorkerTotals>,
    total_blocks: u32,
    block_tokens: u32,
}

impl Counters {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            running: AtomicU32::new(0),
            parked: AtomicU32::new(0),
            held_blocks: AtomicU32::new(0),
            idle_blocks: AtomicU32::new(0),
            totals: Mutex::default(),
            total_blocks: limits.blocks as u32,
            block_tokens: limits.block_size as u32,
        }
    }

    /// Tells how many sequences run and wait for blocks, and what the blocks do.
    pub(super) fn publish(&self, running: usize, parked: usize, blocks: Counts) {
        self.running.store(running as u32, Ordering::Relaxed);
        self.parked.store(parked as u32, Ordering::Relaxed);
        self.held_blocks.store(blocks.held as u32, Ordering::Relaxed);
        self.idle_blocks.store(blocks.idle as u32, Ordering::Relaxed);
    }

    /// Tells what has been done.
    pub(super) fn add_up(&self, totals: WorkerTotals) {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }

    /// Returns what has been done.
    pub(super) fn totals(&self) -> WorkerTotals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the load, given how many requests wait.
    pub(super) fn load(&self, waiting: usize) -> WorkerLoad {
        WorkerLoad {
            waiting_requests: waiting as u32 + self.parked.load(Ordering::Relaxed),
            running_sequences: self.running.load(Ordering::Relaxed),
            used_blocks: self.held_blocks.load(Ordering::Relaxed),
            cached_blocks: self.idle_blocks.load(Ordering::Relaxed),
            total_blocks: self.total_blocks,
            block_tokens: self.block_tokens,
        }
    }
}
