//! Generation as messages.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use engine::{
    Adapter, AdapterId, Constraint, Context, FinishReason, GenerateOutput, GenerateRequest, Guided,
    KvHandoff, Result, Sampling, StopConditions, TokenId, TokenLogprobs, Usage,
};
use proto::{Nest, Payload, worker as wire};

use super::blocks::{source_of, source_to};
use super::{
    Arrival, Lane, MAX_FIELDS, MAX_OUTPUT_FIELDS, Outbox, Wire, context_of, context_to, message_of,
    nanoseconds, unknown,
};

/// The texts of a choice are many, in `guided`.
const REQUEST: Nest = Nest(&[(9, Nest(&[(5, Nest::LEAF)]))]);

/// Log-probabilities, those of the prompt one deeper.
const OUTPUT: Nest = Nest(&[(3, Nest::LEAF), (4, Nest(&[(1, Nest::LEAF)])), (9, Nest::LEAF)]);

impl Wire for GenerateRequest {
    const PATH: &'static str = "/stator.worker.v1.Worker/Generate";
    const LANE: Lane = Lane::Tokens;
    type Kept = ();

    fn kept(&self) {}

    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()> {
        outbox.message(&wire::GenerateRequest {
            context: context_to(context),
            model: model.to_owned(),
            tokens: self.tokens.to_vec(),
            choices: self.choices.get(),
            sampling: Some(sampling_to(self.sampling)),
            stop: Some(stop_to(self.stop)),
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            guided: self.guided.map(guided_to),
            adapter: self.adapter.map(|adapter| adapter.id().0),
            generated: self.generated,
            choice_offset: self.choice_offset,
            kv_source: match self.handoff {
                Some(KvHandoff::At(source)) => Some(source_to(&source)),
                // What is here is not sent on.
                Some(KvHandoff::Here(_)) | None => None,
            },
        })
    }

    fn decode(payload: Payload) -> Result<Arrival<Self>> {
        let wire: wire::GenerateRequest = message_of(&payload, REQUEST, MAX_FIELDS)?;
        let request = Self {
            tokens: wire.tokens.into(),
            generated: wire.generated,
            choice_offset: wire.choice_offset,
            choices: NonZeroU32::new(wire.choices).unwrap_or(NonZeroU32::MIN),
            sampling: wire.sampling.map(sampling_of).transpose()?.unwrap_or_default(),
            stop: stop_of(wire.stop.unwrap_or_default()),
            logprobs: wire.logprobs,
            prompt_logprobs: wire.prompt_logprobs,
            guided: wire.guided.map(guided_of).transpose()?,
            adapter: None,
            handoff: wire.kv_source.map(|source| KvHandoff::At(Arc::new(source_of(source)))),
        };
        Ok(Arrival {
            model: wire.model,
            context: context_of(wire.context),
            adapter: wire.adapter.map(AdapterId),
            request,
        })
    }

    fn adapt(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }

    fn encode_output(output: GenerateOutput, outbox: &mut Outbox) -> Result<()> {
        let prompt = |logprobs: Option<TokenLogprobs>| wire::PromptLogprobs {
            logprobs: logprobs.map(logprobs_to),
        };
        let (end_token, end_logprobs) = output.end_logprobs.unzip();
        outbox.message(&wire::GenerateOutput {
            index: output.index,
            tokens: output.tokens,
            logprobs: output.logprobs.into_iter().map(logprobs_to).collect(),
            prompt_logprobs: output.prompt_logprobs.into_iter().map(prompt).collect(),
            finish: finish_to(output.finish).into(),
            usage: output.usage.map(|usage| wire::Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
            }),
            queue_time_ns: nanoseconds(output.queue_time),
            end_token: end_token.unwrap_or_default(),
            end_logprobs: end_logprobs.map(logprobs_to),
            kv_source: output.kv_source.map(|source| source_to(&source)),
        })
    }

    fn decode_output(payload: Payload, (): &()) -> Result<Option<GenerateOutput>> {
        let wire: wire::GenerateOutput = message_of(&payload, OUTPUT, MAX_OUTPUT_FIELDS)?;
        let prompt = |entry: wire::PromptLogprobs| entry.logprobs.map(logprobs_of).transpose();
        Ok(Some(GenerateOutput {
            index: wire.index,
            tokens: wire.tokens,
            logprobs: wire.logprobs.into_iter().map(logprobs_of).collect::<Result<_>>()?,
            end_logprobs: (wire.end_logprobs.map(logprobs_of).transpose()?)
                .map(|found| (wire.end_token, found)),
            prompt_logprobs: wire.prompt_logprobs.into_iter().map(prompt).collect::<Result<_>>()?,
            finish: finish_of(wire.finish)?,
            usage: wire.usage.map(|usage| Usage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
            }),
            queue_time: Duration::from_nanos(wire.queue_time_ns),
            kv_source: wire.kv_source.map(|source| Arc::new(source_of(source))),
        }))
    }
}

pub(super) fn finish_to(finish: Option<FinishReason>) -> wire::FinishReason {
    match finish {
        None => wire::FinishReason::Unspecified,
        Some(FinishReason::Stop) => wire::FinishReason::Stop,
        Some(FinishReason::Length) => wire::FinishReason::Length,
    }
}

pub(super) fn finish_of(finish: i32) -> Result<Option<FinishReason>> {
    match wire::FinishReason::try_from(finish) {
        Ok(wire::FinishReason::Unspecified) => Ok(None),
        Ok(wire::FinishReason::Stop) => Ok(Some(FinishReason::Stop)),
        Ok(wire::FinishReason::Length) => Ok(Some(FinishReason::Length)),
        Err(_) => Err(unknown("the finish reason", finish)),
    }
}

fn sampling_to(sampling: Sampling) -> wire::Sampling {
    let (bias_tokens, biases) = sampling.logit_bias.into_iter().unzip();
    wire::Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        seed: sampling.seed,
        bias_tokens,
        biases,
    }
}

fn sampling_of(wire: wire::Sampling) -> Result<Sampling> {
    Ok(Sampling {
        temperature: wire.temperature,
        top_k: wire.top_k,
        top_p: wire.top_p,
        min_p: wire.min_p,
        repetition_penalty: wire.repetition_penalty,
        presence_penalty: wire.presence_penalty,
        frequency_penalty: wire.frequency_penalty,
        seed: wire.seed,
        logit_bias: pairs("biases", wire.bias_tokens, wire.biases)?,
    })
}

fn stop_to(stop: StopConditions) -> wire::StopConditions {
    wire::StopConditions {
        max_tokens: stop.max_tokens,
        min_tokens: stop.min_tokens,
        stop_token_ids: stop.stop_token_ids,
        ignore_eos: stop.ignore_eos,
    }
}

fn stop_of(wire: wire::StopConditions) -> StopConditions {
    StopConditions {
        max_tokens: wire.max_tokens,
        min_tokens: wire.min_tokens,
        stop_token_ids: wire.stop_token_ids,
        ignore_eos: wire.ignore_eos,
    }
}

fn guided_to(guided: Guided) -> wire::Guided {
    use wire::guided::Constraint as Kind;
    let constraint = match guided.constraint {
        Constraint::JsonObject => Kind::JsonObject(wire::JsonObject {}),
        Constraint::JsonSchema(schema) => Kind::JsonSchema(schema),
        Constraint::Regex(regex) => Kind::Regex(regex),
        Constraint::Grammar(grammar) => Kind::Grammar(grammar),
        Constraint::Choice(texts) => Kind::Choice(wire::Choice { texts }),
    };
    wire::Guided { constraint: Some(constraint), after: guided.after }
}

fn guided_of(wire: wire::Guided) -> Result<Guided> {
    use wire::guided::Constraint as Kind;
    let constraint = match wire.constraint {
        Some(Kind::JsonObject(_)) => Constraint::JsonObject,
        Some(Kind::JsonSchema(schema)) => Constraint::JsonSchema(schema),
        Some(Kind::Regex(regex)) => Constraint::Regex(regex),
        Some(Kind::Grammar(grammar)) => Constraint::Grammar(grammar),
        Some(Kind::Choice(choice)) => Constraint::Choice(choice.texts),
        // Ignoring a constraint would be worse than refusing the request.
        None => return Err(unknown("the constraint's kind", 0)),
    };
    Ok(Guided { constraint, after: wire.after })
}

fn logprobs_to(logprobs: TokenLogprobs) -> wire::TokenLogprobs {
    let (top_tokens, top_logprobs) = logprobs.top.into_iter().unzip();
    wire::TokenLogprobs { logprob: logprobs.logprob, rank: logprobs.rank, top_tokens, top_logprobs }
}

fn logprobs_of(wire: wire::TokenLogprobs) -> Result<TokenLogprobs> {
    let top = pairs("top_logprobs", wire.top_tokens, wire.top_logprobs)?;
    Ok(TokenLogprobs { logprob: wire.logprob, rank: wire.rank, top })
}

fn pairs(name: &str, tokens: Vec<TokenId>, values: Vec<f32>) -> Result<Vec<(TokenId, f32)>> {
    super::equal_lengths(name, tokens.len(), values.len())?;
    Ok(tokens.into_iter().zip(values).collect())
}
