//! A scripted engine: plays back given outputs, for tests of everything around engines.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;

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
