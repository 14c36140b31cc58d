//! Continues a generation on another worker when the one that had it is lost.
//!
//! What the client has got so far becomes the end of the prompt, said to be output
//! ([`GenerateRequest::generated`]), so the answer goes on without a gap or a repeat, and a greedy
//! or seeded one is the same to the last token. After the first loss each continuation goes on for
//! itself, and those that have ended do not.

use async_trait::async_trait;
use engine::{Context, Engine, GenerateRequest, OutputStream, Result};
use prometheus_client::metrics::counter::Counter;

mod continuation;
mod migrating;
#[cfg(test)]
mod tests;

pub(super) use continuation::{Continuation, lacks_room};
use migrating::Migrating;

/// A generating engine whose answers go on when their worker is lost.
///
/// It stands right above the workers' [`Route`](super::Route): whatever is above sees one answer.
/// It keeps the tokens of each continuation, which `max_tokens` bounds.
#[derive(Clone, Debug)]
pub(crate) struct Migrate<E> {
    /// The engine around the workers.
    pub engine: E,
    /// How often each continuation may go on elsewhere; 0: never.
    pub limit: u32,
    /// Counts continuations that went on elsewhere.
    pub count: Counter,
}

#[async_trait]
impl<E: Engine<GenerateRequest> + Clone> Engine<GenerateRequest> for Migrate<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        if self.limit == 0 {
            return self.engine.call(request, context).await;
        }
        let stream = self.engine.call(request.clone(), context.clone()).await?;
        Ok(Box::pin(Migrating::new(self.clone(), (request, context), stream)))
    }
}
