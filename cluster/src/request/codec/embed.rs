//! Embeddings as messages.

use engine::{Adapter, AdapterId, Context, EmbedRequest, Embedding, Result};
use proto::{Payload, worker as wire};

use super::{Arrival, Lane, Outbox, Wire, context_of, context_to, message};

impl Wire for EmbedRequest {
    const PATH: &'static str = "/stator.worker.v1.Worker/Embed";
    const LANE: Lane = Lane::Bulk;
    type Kept = ();

    fn kept(&self) {}

    fn encode(self, model: &str, context: &Context, outbox: &mut Outbox) -> Result<()> {
        outbox.message(&wire::EmbedRequest {
            context: context_to(context),
            model: model.to_owned(),
            tokens: self.tokens.to_vec(),
            adapter: self.adapter.map(|adapter| adapter.id().0),
        })
    }

    fn decode(payload: Payload) -> Result<Arrival<Self>> {
        let wire: wire::EmbedRequest = message(&payload)?;
        Ok(Arrival {
            model: wire.model,
            context: context_of(wire.context),
            adapter: wire.adapter.map(AdapterId),
            request: Self { tokens: wire.tokens.into(), adapter: None },
        })
    }

    fn adapt(&mut self, adapter: Adapter) {
        self.adapter = Some(adapter);
    }

    fn encode_output(output: Embedding, outbox: &mut Outbox) -> Result<()> {
        outbox.message(&wire::Embedding { values: output.values })
    }

    fn decode_output(payload: Payload, (): &()) -> Result<Option<Embedding>> {
        let wire: wire::Embedding = message(&payload)?;
        Ok(Some(Embedding { values: wire.values }))
    }
}
