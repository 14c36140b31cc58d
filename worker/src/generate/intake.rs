//! Checks requests before they are queued: what can never be served is refused.

use engine::{
    EmbedRequest, Error, GenerateRequest, MAX_ANSWER_SCORES, MAX_LOGPROBS, Result, TokenId,
};

use crate::runner::Limits;

/// What a request has to keep within.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intake {
    pub limits: Limits,
    pub max_running_sequences: usize,
}

impl Intake {
    /// Checks a request for continuations.
    pub(super) fn generation(&self, request: &GenerateRequest) -> Result<()> {
        let Limits { vocabulary, context_length, .. } = self.limits;
        let (prompt, max_tokens) = (request.tokens.len(), request.stop.max_tokens as usize);
        if prompt == 0 {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if max_tokens == 0 && request.prompt_logprobs.is_none() {
            return Err(Error::invalid("`max_tokens`: expected at least 1, got 0"));
        }
        self.goes_on(request)?;
        if prompt + max_tokens.min(1) > context_length {
            return Err(too_long(prompt, context_length, max_tokens.min(1)));
        }
        self.known(&request.tokens)?;
        request.sampling.check()?;
        let asked = [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)];
        for (name, count) in asked.map(|(name, count)| (name, count.unwrap_or(0))) {
            if count > MAX_LOGPROBS {
                let text = format!("`{name}`: expected at most {MAX_LOGPROBS}, got {count}");
                return Err(Error::invalid(text).with_param(name));
            }
        }
        self.scores(request)?;
        let mut biased = request.sampling.logit_bias.iter().map(|&(token, _)| token);
        if let Some(token) = biased.find(|&token| token as usize >= vocabulary) {
            let text =
                format!("`logit_bias`: token {token} is not one of the vocabulary's {vocabulary}");
            return Err(Error::invalid(text).with_param("logit_bias"));
        }
        let choices = request.choices.get() as usize;
        if choices > self.max_running_sequences {
            return Err(Error::invalid(format!(
                "`n`: expected at most {} continuations, got {choices}",
                self.max_running_sequences
            ))
            .with_param("n"));
        }
        // A text that goes on has its place: it ends by itself when that is full, as it would have
        // where it began.
        let drawn = if request.generated > 0 { 0 } else { max_tokens.min(1) };
        self.holds(prompt, drawn)
    }

    /// Checks how many log probabilities the answer may have: a peer may have sent the request.
    fn scores(&self, request: &GenerateRequest) -> Result<()> {
        let Some(top) = request.logprobs else { return Ok(()) };
        let room = self.limits.context_length.saturating_sub(request.tokens.len());
        let tokens = (request.stop.max_tokens as usize).min(room) as u64;
        let (choices, each) = (u64::from(request.choices.get()), u64::from(top) + 1);
        if tokens.saturating_mul(choices).saturating_mul(each) <= MAX_ANSWER_SCORES {
            return Ok(());
        }
        let text = format!(
            "`max_tokens`: {tokens} tokens, times {choices} of `n`, times {each} for `logprobs` \
             are more than {MAX_ANSWER_SCORES} log probabilities"
        );
        Err(Error::invalid(text).with_param("max_tokens"))
    }

    /// Checks what is said of an earlier attempt.
    fn goes_on(&self, request: &GenerateRequest) -> Result<()> {
        let (generated, tokens) = (request.generated as usize, request.tokens.len());
        if generated == 0 {
            return Ok(());
        }
        let wrong = match () {
            () if generated >= tokens => format!("expected fewer than the {tokens} tokens"),
            () if request.choices.get() > 1 => "expected one continuation".to_owned(),
            () if request.prompt_logprobs.is_some() => "expected no `prompt_logprobs`".to_owned(),
            () => return Ok(()),
        };
        Err(Error::invalid(format!("`generated`: {wrong}, got {generated} tokens of output")))
    }

    /// Checks a text to embed.
    pub(super) fn embedding(&self, request: &EmbedRequest) -> Result<()> {
        let Limits { context_length, .. } = self.limits;
        let tokens = request.tokens.len();
        if tokens == 0 {
            return Err(Error::invalid("the text has no tokens"));
        }
        if tokens > context_length {
            return Err(too_long(tokens, context_length, 0));
        }
        self.known(&request.tokens)?;
        self.holds(tokens, 0)
    }

    /// Checks that tokens, and as many `drawn` behind them, fit into the memory when they are alone.
    fn holds(&self, tokens: usize, drawn: usize) -> Result<()> {
        let Limits { block_size, blocks, .. } = self.limits;
        let (all, room) = (tokens + drawn, blocks * block_size);
        if all > room {
            let among = if drawn > 0 { ", one to be drawn among them," } else { "" };
            let text = format!(
                "{all} tokens{among} are more than the {room} that {blocks} KV blocks hold"
            );
            return Err(Error::invalid(text).with_code("context_length_exceeded"));
        }
        Ok(())
    }

    fn known(&self, tokens: &[TokenId]) -> Result<()> {
        let vocabulary = self.limits.vocabulary;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            None => Ok(()),
            Some(token) => Err(Error::invalid(format!(
                "token {token} is not one of the vocabulary's {vocabulary}"
            ))),
        }
    }
}

/// Says that a prompt is over the context, of which `answer` tokens are kept for an answer.
fn too_long(tokens: usize, context_length: usize, answer: usize) -> Error {
    let rest = if answer > 0 { " and an answer" } else { "" };
    let text = format!(
        "the prompt has {tokens} tokens, the model's context of {context_length} has room for \
         {}{rest}",
        context_length - answer
    );
    Error::invalid(text).with_code("context_length_exceeded")
}
