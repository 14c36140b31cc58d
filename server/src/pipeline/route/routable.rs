//! The kinds of requests that can be routed, and what routing has to know of each.

use std::sync::Arc;

use engine::{
    EmbedRequest, EmbedTextRequest, Engine, GenerateOutput, GenerateRequest, InferRequest, Request,
    TextRequest, TokenId,
};

use super::{Engines, RetryAccepted};

/// What can be routed.
pub(super) trait Routable: Request + Clone + Sync + Unpin {
    /// Returns the worker's engine for it.
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>>;

    /// Returns how many places it takes in a worker.
    fn places(&self) -> u64 {
        1
    }

    /// Returns its prompt, if it is one of tokens that KV blocks are kept of.
    fn prompt(&self) -> Option<&[TokenId]> {
        None
    }

    /// Returns how many tokens an output has.
    fn tokens(_output: &Self::Output) -> usize {
        0
    }

    /// Returns whether it may be given to a second worker when the first had accepted it.
    fn may_be_repeated(&self, _setting: RetryAccepted) -> bool {
        true
    }
}

impl Routable for GenerateRequest {
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>> {
        &engines.generate
    }

    fn places(&self) -> u64 {
        self.choices.get().into()
    }

    fn prompt(&self) -> Option<&[TokenId]> {
        Some(&self.tokens)
    }

    fn tokens(output: &GenerateOutput) -> usize {
        output.tokens.len()
    }
}

impl Routable for EmbedRequest {
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>> {
        &engines.embed
    }
}

impl Routable for TextRequest {
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>> {
        &engines.text
    }
}

impl Routable for EmbedTextRequest {
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>> {
        &engines.embed_text
    }
}

impl Routable for InferRequest {
    fn engine(engines: &Engines) -> &Arc<dyn Engine<Self>> {
        &engines.infer
    }

    fn may_be_repeated(&self, setting: RetryAccepted) -> bool {
        match setting {
            RetryAccepted::Never => false,
            RetryAccepted::Stateless => self.sequence.is_none(),
            RetryAccepted::Always => true,
        }
    }
}
