//! A model whose next token depends on everything before it, so that whoever loses or repeats one
//! is found out, and its answers as workers cut them.

use std::num::NonZeroU32;

use engine::{FinishReason, GenerateOutput, GenerateRequest, StopConditions, TokenLogprobs, Usage};

/// Draws a request for a few short texts.
pub(crate) fn request(random: &mut fastrand::Rng) -> GenerateRequest {
    let prompt: Vec<u32> = (0..random.usize(1..5)).map(|_| random.u32(..100)).collect();
    let mut request = GenerateRequest::new(prompt, StopConditions::after(random.u32(1..25)));
    request.stop.min_tokens = random.u32(..6);
    request.choices = NonZeroU32::new(random.u32(1..4)).unwrap();
    request.sampling.seed = Some(random.u64(..));
    request.prompt_logprobs = random.bool().then_some(0);
    request
}

/// Returns the next token of a text: it depends on all before it and on the seed.
fn next(tokens: &[u32], seed: u64, choice: u32) -> u32 {
    let start = seed ^ u64::from(choice).wrapping_mul(0x9E37_79B9);
    let step = |hash: u64, &token: &u32| (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01B3);
    (tokens.iter().fold(start, step) >> 20) as u32 % 64
}

/// Computes the whole answer, as a worker of its own.
pub(crate) fn answer_of(request: &GenerateRequest) -> Vec<GenerateOutput> {
    let seed = request.sampling.seed.unwrap();
    let answer = |index| {
        let mut tokens = request.tokens.to_vec();
        let mut output = GenerateOutput { index, ..GenerateOutput::default() };
        let mut drawn = 0;
        while output.finish.is_none() {
            let token = next(&tokens, seed, request.choice_offset + index);
            drawn += 1;
            // A token below 4 ends the text, if it may end.
            if token < 4 && drawn > request.stop.min_tokens {
                output.finish = Some(FinishReason::Stop);
                output.end_logprobs = Some((token, logprob(token)));
                break;
            }
            tokens.push(token);
            output.tokens.push(token);
            output.logprobs.push(logprob(token));
            output.finish = (drawn == request.stop.max_tokens).then_some(FinishReason::Length);
        }
        if request.prompt_logprobs.is_some() && index == 0 {
            output.prompt_logprobs = request.tokens.iter().map(|&t| Some(logprob(t))).collect();
        }
        let prompt_tokens = request.tokens.len() as u32;
        output.usage = Some(Usage { prompt_tokens, completion_tokens: drawn, cached_tokens: 0 });
        output
    };
    (0..request.choices.get()).map(answer).collect()
}

fn logprob(token: u32) -> TokenLogprobs {
    TokenLogprobs { logprob: -(token as f32), rank: token, top: Vec::new() }
}

/// Cuts an answer into outputs of a few tokens, continuations mixed.
pub(crate) fn pieces(request: &GenerateRequest, random: &mut fastrand::Rng) -> Vec<GenerateOutput> {
    assert!(request.stop.max_tokens > 0, "nothing was left to ask for");
    let mut rest = answer_of(request);
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let at = random.usize(..rest.len());
        let whole = &mut rest[at];
        let count = random.usize(1..4).min(whole.tokens.len());
        let mut piece = GenerateOutput {
            index: whole.index,
            tokens: whole.tokens.drain(..count).collect(),
            logprobs: whole.logprobs.drain(..count).collect(),
            prompt_logprobs: std::mem::take(&mut whole.prompt_logprobs),
            ..GenerateOutput::default()
        };
        // The end may come with the last token or after it.
        if whole.tokens.is_empty() && (count == 0 || random.bool()) {
            (piece.finish, piece.usage) = (whole.finish, whole.usage);
            piece.end_logprobs = whole.end_logprobs.take();
            rest.remove(at);
        }
        pieces.push(piece);
    }
    pieces
}
