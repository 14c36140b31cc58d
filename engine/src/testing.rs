//! Engines for tests of everything around engines: one plays back given outputs, one is a function;
//! and ports for the servers of tests.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;

mod ports;

pub use ports::free_port;

use crate::{Context, Engine, Error, OutputStream, Request, Result};

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step<T> {
    /// Gives an output.
    Output(T),
    /// Waits.
    Sleep(Duration),
    /// Fails.
    Error(Error),
}

/// An engine that plays the same script for every request and counts what happens to it.
#[derive(Debug)]
pub struct Scripted<R: Request> {
    script: Mutex<Vec<Step<R::Output>>>,
    live: Arc<AtomicUsize>,
}

impl<R: Request> Scripted<R>
where
    R::Output: Clone,
{
    /// Makes an engine that plays `script`.
    pub fn new(script: Vec<Step<R::Output>>) -> Self {
        Self { script: Mutex::new(script), live: Arc::default() }
    }

    /// Makes an engine that answers with `count` empty outputs.
    pub fn empty_answers(count: usize) -> Self
    where
        R::Output: Default,
    {
        Self::new((0..count).map(|_| Step::Output(R::Output::default())).collect())
    }

    /// Returns how many of its streams have not been dropped.
    pub fn live_streams(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl<R: Request> Engine<R> for Scripted<R>
where
    R::Output: Clone,
{
    async fn call(&self, _request: R, _context: Context) -> Result<OutputStream<R>> {
        let script = self.script.lock().map_err(|_| Error::internal("poisoned script"))?.clone();
        self.live.fetch_add(1, Ordering::SeqCst);
        let state = (script.into_iter(), Live(self.live.clone()));
        Ok(Box::pin(stream::unfold(state, |(mut steps, live)| async move {
            loop {
                match steps.next()? {
                    Step::Output(output) => return Some((Ok(output), (steps, live))),
                    Step::Sleep(time) => tokio::time::sleep(time).await,
                    Step::Error(error) => {
                        return Some((Err(error), (Vec::new().into_iter(), live)));
                    }
                }
            }
        })))
    }
}

/// An engine that is a function of the request.
///
/// ```
/// use engine::testing::Function;
/// use engine::{Context, Engine, Error, InferRequest, OutputStream};
///
/// let refusing = |_: InferRequest, _: Context| -> engine::Result<OutputStream<InferRequest>> {
///     Err(Error::invalid("no"))
/// };
/// let engine = Function(refusing);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert!(engine.call(InferRequest::default(), Context::new("1")).await.is_err());
/// # });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Function<F>(pub F);

#[async_trait]
impl<R, F> Engine<R> for Function<F>
where
    R: Request,
    F: Fn(R, Context) -> Result<OutputStream<R>> + Send + Sync + 'static,
{
    async fn call(&self, request: R, context: Context) -> Result<OutputStream<R>> {
        (self.0)(request, context)
    }
}
