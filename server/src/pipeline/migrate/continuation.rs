//! What is known of one continuation: what was given out, and how to ask for the rest.

use std::num::NonZeroU32;

use engine::{Error, FinishReason, GenerateOutput, GenerateRequest, TokenId, Usage};

/// One continuation.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct Continuation {
    index: u32,
    /// What was given out.
    tokens: Vec<TokenId>,
    /// The probabilities of the prompt were given out.
    has_prompt_logprobs: bool,
    /// How many of the tokens stood behind the prompt of the current attempt.
    resumed: u32,
    pub migrations: u32,
    pub is_over: bool,
}

impl Continuation {
    pub(in crate::pipeline) fn new(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    /// Notes an output of the current attempt and makes it one of the whole.
    pub(in crate::pipeline) fn take(
        &mut self,
        request: &GenerateRequest,
        mut output: GenerateOutput,
    ) -> GenerateOutput {
        output.index = self.index;
        self.tokens.extend_from_slice(&output.tokens);
        self.has_prompt_logprobs |= !output.prompt_logprobs.is_empty();
        self.is_over = output.finish.is_some();
        if self.migrations > 0 {
            output.usage = output.usage.map(|usage| self.whole(request, usage));
        }
        output
    }

    /// Returns the usage of the whole, given that of the last attempt.
    fn whole(&self, request: &GenerateRequest, usage: Usage) -> Usage {
        let prompt_tokens = prompt_tokens(request);
        Usage {
            prompt_tokens,
            completion_tokens: usage.completion_tokens.saturating_add(self.resumed),
            cached_tokens: usage.cached_tokens.min(prompt_tokens),
        }
    }

    /// Returns the last output if nothing may follow: its worker was lost before it could say so.
    pub(in crate::pipeline) fn end(&mut self, request: &GenerateRequest) -> Option<GenerateOutput> {
        if self.left(request) > 0 { None } else { self.exhaust(request) }
    }

    /// Ends it behind what was drawn, as a worker does that has no room for more; returns the last
    /// output. None: nothing was drawn, or it is over.
    pub(in crate::pipeline) fn exhaust(
        &mut self,
        request: &GenerateRequest,
    ) -> Option<GenerateOutput> {
        if self.is_over || self.tokens.is_empty() {
            return None;
        }
        self.is_over = true;
        let usage = Usage {
            prompt_tokens: prompt_tokens(request),
            completion_tokens: self.tokens.len() as u32,
            cached_tokens: 0,
        };
        Some(GenerateOutput {
            index: self.index,
            finish: Some(FinishReason::Length),
            usage: Some(usage),
            ..GenerateOutput::default()
        })
    }

    /// Makes the request for the rest.
    pub(in crate::pipeline) fn rest(&mut self, request: &GenerateRequest) -> GenerateRequest {
        let drawn = self.tokens.len() as u32;
        self.migrations += 1;
        self.resumed = drawn;
        let mut rest = request.clone();
        if drawn > 0 {
            rest.tokens = request.tokens.iter().chain(&self.tokens).copied().collect();
        }
        rest.generated = request.generated + drawn;
        rest.choice_offset = request.choice_offset.wrapping_add(self.index);
        rest.choices = NonZeroU32::MIN;
        rest.stop.max_tokens = self.left(request);
        rest.stop.min_tokens = request.stop.min_tokens.saturating_sub(drawn);
        if self.index > 0 || drawn > 0 || self.has_prompt_logprobs {
            rest.prompt_logprobs = None;
        }
        rest
    }

    /// Returns how many tokens it may still draw.
    pub(in crate::pipeline) fn left(&self, request: &GenerateRequest) -> u32 {
        request.stop.max_tokens.saturating_sub(self.tokens.len() as u32)
    }
}

/// Returns whether a worker says that tokens do not fit into its context or its memory.
pub(in crate::pipeline) fn lacks_room(error: &Error) -> bool {
    error.code() == Some("context_length_exceeded")
}

fn prompt_tokens(request: &GenerateRequest) -> u32 {
    u32::try_from(request.tokens.len()).unwrap_or(u32::MAX)
}
