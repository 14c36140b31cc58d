//! Texts as messages.

use std::time::Duration;

use bytes::Bytes;
use engine::{
    Adapter, CallDelta, Context, EmbedTextRequest, Result, TextDelta, TextEmbedding, TextForm,
    TextLogprob, TextRequest, TextUsage,
};
use proto::{Nest, Payload, worker as wire};
use wire::generate_text_request::Body;

use super::generate::{finish_of, finish_to};
use super::{
    Arrival, Lane, MAX_FIELDS, Outbox, Wire, context_of, context_to, equal_lengths, message,
    message_of, nanoseconds, unknown,
};

/// Calls of tools, and log-probabilities.
const DELTA: Nest = Nest(&[(4, Nest::LEAF), (5, Nest::LEAF)]);

impl Wire for TextRequest {
    const PATH: &'static str = "/stator.worker.v1.Worker/GenerateText";
    const LANE: Lane = Lane::Tokens;
    type Kept = ();

    fn kept(&self) {}

    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()> {
        let body = match self.form {
            TextForm::Chat => Body::Chat(self.body),
            TextForm::Completion => Body::Completion(self.body),
        };
        outbox.message(&wire::GenerateTextRequest {
            context: context_to(context),
            model: model.to_owned(),
            body: Some(body),
        })
    }

    fn decode(payload: Payload) -> Result<Arrival<Self>> {
        let wire: wire::GenerateTextRequest = message(&payload)?;
        let (form, body) = match wire.body {
            Some(Body::Chat(body)) => (TextForm::Chat, body),
            Some(Body::Completion(body)) => (TextForm::Completion, body),
            None => return Err(unknown("the body's kind", 0)),
        };
        Ok(Arrival {
            model: wire.model,
            context: context_of(wire.context),
            adapter: None,
            request: Self { form, body },
        })
    }

    fn adapt(&mut self, _adapter: Adapter) {}

    fn encode_output(output: TextDelta, outbox: &mut Outbox) -> Result<()> {
        let call = |call: CallDelta| wire::ToolCallDelta {
            index: call.index,
            id: call.id,
            name: call.name,
            arguments: call.arguments,
        };
        outbox.message(&wire::TextDelta {
            index: output.index,
            content: output.content,
            reasoning: output.reasoning,
            tool_calls: output.calls.into_iter().map(call).collect(),
            logprobs: output.logprobs.into_iter().map(logprob_to).collect(),
            finish: finish_to(output.finish).into(),
            stop: output.stop,
            usage: output.usage.map(|usage| wire::TextUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
                reasoning_tokens: usage.reasoning_tokens,
            }),
            queue_time_ns: nanoseconds(output.queue_time),
        })
    }

    fn decode_output(payload: Payload, (): &()) -> Result<Option<TextDelta>> {
        let wire: wire::TextDelta = message_of(&payload, DELTA, MAX_FIELDS)?;
        let call = |call: wire::ToolCallDelta| CallDelta {
            index: call.index,
            id: call.id,
            name: call.name,
            arguments: call.arguments,
        };
        Ok(Some(TextDelta {
            index: wire.index,
            content: wire.content,
            reasoning: wire.reasoning,
            calls: wire.tool_calls.into_iter().map(call).collect(),
            logprobs: wire.logprobs.into_iter().map(logprob_of).collect::<Result<_>>()?,
            finish: finish_of(wire.finish)?,
            stop: wire.stop,
            usage: wire.usage.map(|usage| TextUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.cached_tokens,
                reasoning_tokens: usage.reasoning_tokens,
            }),
            queue_time: Duration::from_nanos(wire.queue_time_ns),
        }))
    }
}

fn logprob_to(one: TextLogprob) -> wire::TextLogprob {
    let (top_tokens, top_logprobs): (Vec<Bytes>, Vec<f32>) = one.top.into_iter().unzip();
    wire::TextLogprob { token: one.token, logprob: one.logprob, top_tokens, top_logprobs }
}

fn logprob_of(wire: wire::TextLogprob) -> Result<TextLogprob> {
    equal_lengths("top_logprobs", wire.top_tokens.len(), wire.top_logprobs.len())?;
    let top = wire.top_tokens.into_iter().zip(wire.top_logprobs).collect();
    Ok(TextLogprob { token: wire.token, logprob: wire.logprob, top })
}

impl Wire for EmbedTextRequest {
    const PATH: &'static str = "/stator.worker.v1.Worker/EmbedText";
    const LANE: Lane = Lane::Bulk;
    type Kept = ();

    fn kept(&self) {}

    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()> {
        outbox.message(&wire::EmbedTextRequest {
            context: context_to(context),
            model: model.to_owned(),
            text: self.text,
        })
    }

    fn decode(payload: Payload) -> Result<Arrival<Self>> {
        let wire: wire::EmbedTextRequest = message(&payload)?;
        Ok(Arrival {
            model: wire.model,
            context: context_of(wire.context),
            adapter: None,
            request: Self { text: wire.text },
        })
    }

    fn adapt(&mut self, _adapter: Adapter) {}

    fn encode_output(output: TextEmbedding, outbox: &mut Outbox) -> Result<()> {
        let TextEmbedding { values, prompt_tokens } = output;
        outbox.message(&wire::TextEmbedding { values, prompt_tokens })
    }

    fn decode_output(payload: Payload, (): &()) -> Result<Option<TextEmbedding>> {
        let wire: wire::TextEmbedding = message(&payload)?;
        Ok(Some(TextEmbedding { values: wire.values, prompt_tokens: wire.prompt_tokens }))
    }
}

#[cfg(test)]
mod tests {
    use engine::FinishReason;

    use super::super::tests::one;
    use super::*;

    #[test]
    fn a_text_and_its_answer_come_as_they_were_sent() {
        let request = TextRequest { form: TextForm::Chat, body: "{\"messages\":[]}".into() };
        let mut outbox = Outbox::new(1 << 20);
        request.clone().encode("m", &Context::new("id").with_priority(3), &mut outbox).unwrap();
        let arrival = TextRequest::decode(one(outbox, 3)).unwrap();
        assert_eq!((arrival.model.as_str(), arrival.context.priority()), ("m", 3));
        assert_eq!(arrival.request, request);

        let delta = TextDelta {
            index: 2,
            content: "é".into(),
            reasoning: "hm".into(),
            calls: vec![CallDelta { index: 1, id: "c".into(), ..CallDelta::default() }],
            logprobs: vec![TextLogprob {
                token: Bytes::from_static(&[0xC3]),
                logprob: -0.5,
                top: vec![(Bytes::from_static(b"a"), -0.25)],
            }],
            finish: Some(FinishReason::Length),
            stop: Some(String::new()),
            usage: Some(TextUsage { prompt_tokens: 1, ..TextUsage::default() }),
            queue_time: Duration::from_nanos(7),
        };
        let mut outbox = Outbox::new(1 << 20);
        TextRequest::encode_output(delta.clone(), &mut outbox).unwrap();
        let came = TextRequest::decode_output(one(outbox, 3), &());
        assert_eq!(came.unwrap(), Some(delta));
    }

    #[test]
    fn a_body_of_a_kind_that_is_not_known_is_refused() {
        let mut outbox = Outbox::new(1 << 20);
        outbox.message(&wire::GenerateTextRequest::default()).unwrap();
        let refused = TextRequest::decode(one(outbox, 3)).unwrap_err();
        assert_eq!(refused.kind(), engine::ErrorKind::Unimplemented);
    }
}
