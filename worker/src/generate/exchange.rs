//! KV blocks for other engines: found by their tokens, and copied between two steps.
//!
//! Nothing is held for whoever asks. What was given up in the meantime is not there, and what was
//! copied is the asker's.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::{
    AdapterId, Error, ErrorKind, KvLayout, KvStore, Result, Salt, SequenceHash, TokenId,
    prefix_hashes,
};
use tokio::sync::oneshot;

use super::engine::GenerateEngine;
use super::scheduler::Scheduler;
use super::waiting::Waiting;

/// Orders that may wait for the scheduler; more are refused. As many are served between two steps.
pub(super) const MAX_ORDERS: usize = 64;

/// The most bytes of one order's copies, but for a block that is larger.
const ORDER_BYTES: usize = 8 << 20;

/// The most blocks of one order, where they have no bytes.
const ORDER_BLOCKS: usize = 4096;

/// Bytes that are copied between two steps, and then those of one more order: the others wait for
/// the next step, so that nobody who is reading waits for long.
const STEP_BYTES: usize = 16 << 20;

/// What the scheduler is asked.
#[derive(Debug)]
pub(super) struct Order {
    pub tokens: Arc<[TokenId]>,
    /// The names of the tokens' whole blocks, up to the context's end.
    pub names: Vec<SequenceHash>,
    pub salt: Salt,
    /// The first block to copy.
    pub first: usize,
    /// The most blocks to copy.
    pub most: usize,
    pub reply: oneshot::Sender<Copied>,
}

/// What the scheduler says.
#[derive(Debug)]
pub(super) struct Copied {
    /// How many of the first blocks are there.
    pub held: usize,
    pub blocks: Vec<Bytes>,
}

impl Scheduler {
    /// Copies blocks for those who asked, as far as there is time in this step. Who asks again at
    /// once, as everybody may where nothing is copied, waits for the next one.
    pub(super) fn hand_out(&mut self) {
        let mut copied = 0;
        for _ in 0..MAX_ORDERS {
            if copied >= STEP_BYTES {
                return;
            }
            let Some(order) = self.waiting.next_order() else { return };
            if order.reply.is_closed() {
                continue;
            }
            let chain = self.pool.chain(&order.names, &order.tokens, order.salt);
            let mut blocks = Vec::new();
            for &block in chain.iter().skip(order.first).take(order.most) {
                let mut bytes = Vec::with_capacity(self.block_bytes);
                if let Err(error) = self.runner.read_block(block, &mut bytes) {
                    tracing::error!(%error, "a KV block cannot be copied");
                    break;
                }
                copied += bytes.len();
                blocks.push(Bytes::from(bytes));
            }
            self.totals.exported_blocks += blocks.len() as u64;
            // Whoever asked may be gone by now.
            let _ = order.reply.send(Copied { held: chain.len(), blocks });
        }
    }
}

/// The blocks of an engine and one of its adapters, or none.
pub(super) struct Exchange {
    waiting: Arc<Waiting>,
    layout: KvLayout,
    /// Tokens of the longest sequence: no block lies behind them.
    context_length: usize,
    /// The engine stops when nobody has it any more.
    _engine: Arc<GenerateEngine>,
}

impl Exchange {
    pub(super) fn new(
        waiting: Arc<Waiting>,
        layout: KvLayout,
        context_length: usize,
        engine: Arc<GenerateEngine>,
    ) -> Self {
        Self { waiting, layout, context_length, _engine: engine }
    }

    async fn ask(&self, tokens: &Arc<[TokenId]>, first: usize, most: usize) -> Result<Copied> {
        let KvLayout { salt, block_tokens, .. } = self.layout;
        let findable = &tokens[..tokens.len().min(self.context_length)];
        let names = prefix_hashes(findable, block_tokens as usize, salt).collect();
        let (reply, answer) = oneshot::channel();
        self.waiting.order(Order { tokens: tokens.clone(), names, salt, first, most, reply })?;
        let stopped = |_| Error::new(ErrorKind::Unavailable, "the engine has stopped");
        answer.await.map_err(stopped)
    }
}

#[async_trait]
impl KvStore for Exchange {
    fn layout(&self) -> KvLayout {
        self.layout
    }

    async fn held(&self, tokens: &Arc<[TokenId]>) -> Result<usize> {
        Ok(self.ask(tokens, 0, 0).await?.held)
    }

    async fn read(&self, tokens: &Arc<[TokenId]>, first: usize) -> Result<Vec<Bytes>> {
        let most = match self.layout.block_bytes as usize {
            0 => ORDER_BLOCKS,
            bytes => (ORDER_BYTES / bytes).max(1),
        };
        Ok(self.ask(tokens, first, most).await?.blocks)
    }
}

/// Returns the salt of an adapter's blocks, or of those of the model without any: what one computed
/// is never found by another.
pub(super) fn salt(adapter: Option<AdapterId>) -> Salt {
    adapter.map_or_else(Salt::default, |adapter| Salt(adapter.0))
}

#[cfg(test)]
mod tests;
