//! A text model as a tensor engine: text tensors down through the bridge, token streams up.
//!
//! All rows of a batch run at once; an error of one row ends the request, and dropping the
//! stream drops every row.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use engine::{
    Context, Engine, Error, GenerateRequest, InferOutput, InferRequest, OutputStream, Result,
};
use futures_util::Stream;
use openai_bridge::{Answer, Now, TextBridge};
use tokio::sync::Semaphore;

/// A prompt of this many bytes is tokenised off the async runtime, since it takes longer than
/// other streams should wait.
const LONG_PROMPT_BYTES: usize = 4096;

/// Threads that tokenise long prompts of one model.
const MAX_TOKENIZERS: usize = 4;

/// An engine over text tensors around an engine over tokens.
pub(crate) struct TextEngine {
    bridge: Arc<TextBridge>,
    engine: Arc<dyn Engine<GenerateRequest>>,
    /// Long prompts that are tokenised at once; the others wait, and leave if nobody waits for them.
    tokenizers: Semaphore,
}

impl TextEngine {
    /// Makes the engine.
    pub(crate) fn new(bridge: Arc<TextBridge>, engine: Arc<dyn Engine<GenerateRequest>>) -> Self {
        Self { bridge, engine, tokenizers: Semaphore::new(MAX_TOKENIZERS) }
    }
}

#[async_trait]
impl Engine<InferRequest> for TextEngine {
    async fn call(
        &self,
        request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let size: usize = request.inputs.iter().map(|input| input.data.len()).sum();
        let bridge = self.bridge.clone();
        let (requests, answer) = if size < LONG_PROMPT_BYTES {
            encode(&bridge, &request)?
        } else {
            let _permit = self.tokenizers.acquire().await;
            tokio::task::spawn_blocking(move || encode(&bridge, &request))
                .await
                .map_err(|error| Error::internal("the tokenizer failed").with_source(error))??
        };
        let mut rows = Vec::with_capacity(requests.len());
        for request in requests {
            rows.push(Some(self.engine.call(request, context.clone()).await?));
        }
        Ok(Box::pin(TextStream { rows, answer, queue_time: Duration::ZERO, is_over: false }))
    }
}

fn encode(bridge: &TextBridge, request: &InferRequest) -> Result<(Vec<GenerateRequest>, Answer)> {
    let completion = bridge.parse(request)?;
    if request.is_unary && completion.is_streaming() {
        return Err(Error::invalid(
            "input `stream`: ModelInfer gives one response; \
             ask without it, or call ModelStreamInfer (over HTTP generate_stream)",
        ));
    }
    // Before 1970 is a clock that was never set.
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let requests = bridge.encode(&completion, Now::from_unix(since_1970.as_secs()))?;
    let prompt_tokens: Vec<u32> =
        requests.iter().map(|request| request.tokens.len() as u32).collect();
    Ok((requests, bridge.answer(completion, prompt_tokens)))
}

struct TextStream {
    rows: Vec<Option<OutputStream<GenerateRequest>>>,
    answer: Answer,
    queue_time: Duration,
    is_over: bool,
}

impl TextStream {
    /// Takes what the rows have; returns whether any had something.
    fn advance(&mut self, cx: &mut Poller<'_>) -> Result<bool> {
        let mut has_news = false;
        for (index, row) in self.rows.iter_mut().enumerate() {
            let Some(stream) = row else { continue };
            match stream.as_mut().poll_next(cx) {
                Poll::Pending => {}
                Poll::Ready(None) => {
                    *row = None;
                    has_news = true;
                }
                Poll::Ready(Some(output)) => {
                    let output = output?;
                    self.queue_time = self.queue_time.max(output.queue_time);
                    self.answer.push(index, output);
                    has_news = true;
                }
            }
        }
        for row in self.answer.stopped() {
            self.rows[row] = None;
        }
        Ok(has_news)
    }

    fn step(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<InferOutput>>> {
        loop {
            if let Some(mut output) = self.answer.next() {
                output.queue_time = self.queue_time;
                return Poll::Ready(Some(Ok(output)));
            }
            if self.answer.is_done() {
                return Poll::Ready(None);
            }
            match self.advance(cx) {
                Err(error) => return Poll::Ready(Some(Err(error))),
                Ok(true) => {}
                Ok(false) if self.rows.iter().all(Option::is_none) => {
                    let error = Error::internal("the engine ended without a finish reason");
                    return Poll::Ready(Some(Err(error)));
                }
                Ok(false) => return Poll::Pending,
            }
        }
    }
}

impl Stream for TextStream {
    type Item = Result<InferOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let item = self.step(cx);
        if matches!(item, Poll::Ready(None | Some(Err(_)))) {
            self.is_over = true;
            self.rows.clear();
        }
        item
    }
}
