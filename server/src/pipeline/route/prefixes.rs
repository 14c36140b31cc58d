//! What is known of the prompts that a model's workers have cached.

use std::sync::{Arc, Mutex, PoisonError};

use engine::{Salt, SequenceHash, TokenId, prefix_hashes};
use router::{IndexLimits, Matches, PredictedIndex, PrefixIndex, RouteRequest, WorkerId};
use tokio::time::{Duration, Instant};

use super::candidate::PromptLoad;

/// The prefixes of one model's workers.
pub(crate) struct Prefixes {
    block_tokens: u32,
    /// What the workers' KV events told.
    exact: Option<Arc<PrefixIndex>>,
    /// What was routed to them.
    predicted: Option<Mutex<PredictedIndex>>,
    /// The time from which predictions count.
    start: Instant,
}

/// A prompt as it is looked up.
pub(super) struct Prompt {
    hashes: Box<[SequenceHash]>,
    pub(super) request: RouteRequest,
}

impl Prefixes {
    /// Makes them of the workers' events, of this frontend's own decisions, which count for a
    /// time, or of both. A block has at least one token.
    pub(crate) fn new(
        block_tokens: u32,
        exact: Option<Arc<PrefixIndex>>,
        predicted_ttl: Option<Duration>,
    ) -> Self {
        let predicted =
            predicted_ttl.map(|ttl| Mutex::new(PredictedIndex::new(ttl, IndexLimits::default())));
        let block_tokens = block_tokens.max(1);
        Self { block_tokens, exact, predicted, start: Instant::now() }
    }

    /// Returns the prompt of some tokens.
    pub(super) fn prompt(&self, tokens: &[TokenId]) -> Prompt {
        let hashes = prefix_hashes(tokens, self.block_tokens as usize, Salt::default()).collect();
        let (prompt_tokens, block_tokens) = (tokens.len() as u64, self.block_tokens);
        Prompt { hashes, request: RouteRequest { prompt_tokens, block_tokens } }
    }

    /// Returns how much of a prompt each worker holds: what events told, or where there are no
    /// events what was routed to it.
    pub(super) fn find(&self, prompt: &Prompt) -> [Matches; 2] {
        let exact = self.exact.as_ref().map(|index| index.find(&prompt.hashes));
        let predicted = self.predicted.as_ref().map(|index| {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.find(&prompt.hashes, self.start.elapsed())
        });
        [exact.unwrap_or_default(), predicted.unwrap_or_default()]
    }

    /// Notes that a prompt goes to a worker.
    pub(super) fn routed(&self, worker: WorkerId, prompt: &Prompt) {
        if let Some(index) = &self.predicted {
            let mut index = index.lock().unwrap_or_else(PoisonError::into_inner);
            index.routed(worker, &prompt.hashes, self.start.elapsed());
        }
    }
}

impl Prompt {
    /// Returns what it adds to the load of a worker that holds some of its blocks.
    pub(super) fn load(&self, cached_blocks: u32) -> PromptLoad {
        let RouteRequest { prompt_tokens, block_tokens } = self.request;
        let cached_tokens = u64::from(cached_blocks) * u64::from(block_tokens);
        PromptLoad {
            prefill_tokens: prompt_tokens.saturating_sub(cached_tokens),
            blocks: (self.hashes.len() as u64).saturating_sub(cached_blocks.into()),
            block_tokens,
        }
    }
}
