//! Continues a generation on another worker when the one that had it is lost.

use async_trait::async_trait;
use engine::{Context, Engine, GenerateRequest, OutputStream, Result};

/// A generating engine whose answers go on when their worker is lost.
#[derive(Clone, Debug)]
pub(crate) struct Migrate<E> {
    /// The engine around the workers.
    pub engine: E,
    /// How often one request may go on elsewhere.
    #[expect(dead_code, reason = "nothing goes on elsewhere yet")]
    pub limit: u32,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for Migrate<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        self.engine.call(request, context).await
    }
}
