//! KV blocks that one engine computed, on their way to another one.
//!
//! Blocks are asked for by the tokens that they hold, never by hashes alone, and come in the order of
//! the sequence. Whoever gets fewer than it asked for, or none, computes the rest: a handoff saves
//! work and decides nothing.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Result, Salt, TokenId};

/// What KV blocks are made of. Blocks of equal layouts and equal tokens are equal to the last bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvLayout {
    /// Stands for the model's weights, and for how they are computed with.
    pub fingerprint: u64,
    /// What else than tokens decides on the content, such as an adapter.
    pub salt: Salt,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Bytes of a block; 0 where blocks have no content, as those of a mock.
    pub block_bytes: u64,
}

/// Where the blocks of a prompt can be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvSource {
    /// The address of the worker that has them, such as `grpc://10.0.0.7:7001`.
    pub address: String,
    /// Where else it answers.
    pub more_addresses: Vec<String>,
    /// What they are made of.
    pub layout: KvLayout,
}

/// Blocks of a prompt that came from elsewhere, in its order. Clones are the same blocks.
///
/// ```
/// use std::sync::Arc;
/// use bytes::Bytes;
/// use engine::KvBlocks;
/// let blocks = KvBlocks::new(2, vec![Bytes::from_static(b"third")], Arc::new(()));
/// assert_eq!(blocks.get(2).map(|block| &block[..]), Some(&b"third"[..]));
/// assert!(blocks.get(1).is_none() && blocks.get(3).is_none());
/// assert_eq!(blocks.places(), 2..3);
/// ```
#[derive(Clone)]
pub struct KvBlocks {
    first: usize,
    blocks: Arc<[Bytes]>,
    /// Only held.
    _lease: Arc<dyn Any + Send + Sync>,
}

impl KvBlocks {
    /// Makes the handoff of blocks, of which the first one is at the place `first` of the prompt.
    /// `lease` is held as long as the blocks are.
    pub fn new(first: usize, blocks: Vec<Bytes>, lease: Arc<dyn Any + Send + Sync>) -> Self {
        Self { first, blocks: blocks.into(), _lease: lease }
    }

    /// Returns the block at a place of the prompt, counted in blocks.
    pub fn get(&self, place: usize) -> Option<&Bytes> {
        self.blocks.get(place.checked_sub(self.first)?)
    }

    /// Returns the places of the prompt, counted in blocks, of which the blocks are here.
    pub fn places(&self) -> Range<usize> {
        self.first..self.first.saturating_add(self.blocks.len())
    }
}

impl fmt::Debug for KvBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvBlocks")
            .field("first", &self.first)
            .field("count", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

/// What a request brings along of its prompt.
#[derive(Clone, Debug)]
pub enum KvHandoff {
    /// The blocks can be asked for.
    At(Arc<KvSource>),
    /// The blocks are here.
    Here(KvBlocks),
}

/// The KV cache of an engine, for those that copy blocks out of it.
#[async_trait]
pub trait KvStore: Send + Sync + 'static {
    /// Returns what its blocks are made of.
    fn layout(&self) -> KvLayout;

    /// Returns how many of the first whole blocks of some tokens are there.
    ///
    /// Errors: OVERLOADED if too many ask at once, UNAVAILABLE if the engine has stopped.
    async fn held(&self, tokens: &Arc<[TokenId]>) -> Result<usize>;

    /// Returns copies of the blocks from the place `first` on, as many as come at once; none: the
    /// next one is not there.
    ///
    /// Errors: as of [`held`](KvStore::held).
    async fn read(&self, tokens: &Arc<[TokenId]>, first: usize) -> Result<Vec<Bytes>>;
}
