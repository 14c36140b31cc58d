//! The load that a worker's requests make, counted by the router that sent them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the requests of one worker still have to compute, and what they hold.
///
/// ```
/// use std::sync::Arc;
/// use router::{ActiveLoad, Reservation};
/// let load = Arc::new(ActiveLoad::default());
/// let mut request = Reservation::new(&load, 100, 7);
/// assert_eq!((load.prefill_tokens(), load.decode_blocks()), (100, 7));
/// request.prefill_done();
/// request.grow(1);
/// assert_eq!((load.prefill_tokens(), load.decode_blocks()), (0, 8));
/// drop(request);
/// assert_eq!(load.decode_blocks(), 0);
/// ```
#[derive(Debug, Default)]
pub struct ActiveLoad {
    prefill_tokens: AtomicU64,
    decode_blocks: AtomicU64,
}

impl ActiveLoad {
    /// Returns the prompt tokens that are not computed yet.
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens.load(Relaxed)
    }

    /// Returns the KV blocks that are held.
    pub fn decode_blocks(&self) -> u64 {
        self.decode_blocks.load(Relaxed)
    }
}

/// One request's part of a worker's [`ActiveLoad`]. Dropping it takes the part away.
#[derive(Debug)]
pub struct Reservation {
    load: Arc<ActiveLoad>,
    prefill_tokens: u64,
    blocks: u64,
}

impl Reservation {
    /// Adds a request that has `prefill_tokens` to compute and will hold `blocks`.
    pub fn new(load: &Arc<ActiveLoad>, prefill_tokens: u64, blocks: u64) -> Self {
        load.prefill_tokens.fetch_add(prefill_tokens, Relaxed);
        load.decode_blocks.fetch_add(blocks, Relaxed);
        Self { load: load.clone(), prefill_tokens, blocks }
    }

    /// Notes that the prompt has been computed. Calling it again changes nothing.
    pub fn prefill_done(&mut self) {
        let tokens = std::mem::take(&mut self.prefill_tokens);
        if tokens > 0 {
            self.load.prefill_tokens.fetch_sub(tokens, Relaxed);
        }
    }

    /// Adds blocks that the output fills.
    pub fn grow(&mut self, blocks: u64) {
        self.blocks += blocks;
        self.load.decode_blocks.fetch_add(blocks, Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.prefill_done();
        self.load.decode_blocks.fetch_sub(self.blocks, Relaxed);
    }
}
