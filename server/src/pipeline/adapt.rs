//! Names the adapter that a model's requests are computed with.
//!
//! It stands innermost, so that whatever counts and refuses above sees the requests as they came.

use async_trait::async_trait;
use engine::{Adapter, Context, EmbedRequest, Engine, GenerateRequest, OutputStream, Result};

/// An engine that is asked with an adapter, or with none.
#[derive(Clone, Debug)]
pub(crate) struct Adapt<E> {
    pub engine: E,
    pub adapter: Option<Adapter>,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for Adapt<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let request = GenerateRequest { adapter: self.adapter.clone(), ..request };
        self.engine.call(request, context).await
    }
}

#[async_trait]
impl<E: Engine<EmbedRequest>> Engine<EmbedRequest> for Adapt<E> {
    async fn call(
        &self,
        request: EmbedRequest,
        context: Context,
    ) -> Result<OutputStream<EmbedRequest>> {
        let request = EmbedRequest { adapter: self.adapter.clone(), ..request };
        self.engine.call(request, context).await
    }
}
