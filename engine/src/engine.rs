//! The one trait of the waist and its promise.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::Stream;

use crate::{Context, Result};

/// A kind of request, which fixes the kind of answer.
pub trait Request: Send + 'static {
    /// One item of the answer's stream.
    type Output: Send + 'static;
}

/// The answer to a request: outputs in order, then the end, or one error and the end.
pub type OutputStream<R> = Pin<Box<dyn Stream<Item = Result<<R as Request>::Output>> + Send>>;

/// Something that answers requests of kind `R`.
///
/// The promise, which every implementation keeps and every decorator may rely on:
/// - `Err` from [`call`](Engine::call) means that nothing was generated: it is safe to try
///   the same request elsewhere.
/// - An `Err` item ends the stream.
/// - Dropping the stream (or the future of `call`) cancels the work and frees what it held,
///   within one step of the engine.
/// - A reader that falls behind gets *coalesced* outputs, never an unbounded queue.
///
/// ```
/// use engine::testing::Scripted;
/// use engine::{Context, Engine, InferRequest};
/// use futures_util::StreamExt;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let engine = Scripted::empty_answers(2);
/// let mut stream = engine.call(InferRequest::default(), Context::new("1")).await.unwrap();
/// assert!(stream.next().await.is_some());
/// drop(stream); // cancels what is left
/// # });
/// ```
#[async_trait]
pub trait Engine<R: Request>: Send + Sync + 'static {
    /// Accepts a request and returns the stream of its outputs.
    ///
    /// Errors: the engine's own refusal, with the [`ErrorKind`](crate::ErrorKind) that says
    /// whose fault it is.
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>>;
}

/// A shared engine is an engine.
#[async_trait]
impl<R: Request, E: Engine<R> + ?Sized> Engine<R> for Arc<E> {
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        (**self).call(request, context).await
    }
}
