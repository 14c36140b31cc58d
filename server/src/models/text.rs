//! A text model as engines: completions down through the bridge, token streams up.
//!
//! [`TextEngine`] answers completions, whichever door they came through; [`TensorText`] stands on
//! it and speaks tensors. All prompts of a request run at once; an error of one ends the request,
//! and dropping the stream drops every one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use engine::{
    Context, EmbedRequest, EmbedTextRequest, Engine, Error, GenerateRequest, InferOutput,
    InferRequest, OutputStream, Request, Result, TextRequest,
};
use futures_util::stream::{self, Stream, StreamExt};
use openai_bridge::api::rerank;
use openai_bridge::{
    Answer, Completion, Continuations, Input, Inputs, Now, TensorRequest, TextBridge, TextOutput,
};
use tensor::Tensor;
use tokio::sync::Semaphore;

use crate::pipeline::Thresholds;
use crate::support::preparing;

mod worded;

use worded::WordedStream;

/// A prompt of this many bytes is tokenised off the async runtime, since it takes longer than
/// other streams should wait.
const LONG_PROMPT_BYTES: usize = 4096;

/// At most this many threads tokenise prompts of 4 to 64 KiB for one model. Larger prompts take a
/// place shared by all models (`preparing`).
const MAX_TOKENIZERS: usize = 4;

/// Most texts of one request that are embedded, as in the OpenAI API.
const MAX_EMBEDDED: usize = 2048;

/// Texts of one request that are embedded at once.
const EMBEDDED_AT_ONCE: usize = 32;

/// Returns the time of day, which templates may tell.
pub(crate) fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now::from_unix(since.as_secs())
}

/// What a text engine stands on.
pub(crate) enum TextBackend {
    /// Engines over tokens.
    Tokens { generate: Arc<dyn Engine<GenerateRequest>>, embed: Arc<dyn Engine<EmbedRequest>> },
    /// Engines that take texts; the bridge is made for them.
    Texts { generate: Arc<dyn Engine<TextRequest>>, embed: Arc<dyn Engine<EmbedTextRequest>> },
}

/// An engine over completions, and over texts to be embedded, around engines over tokens or texts.
pub(crate) struct TextEngine {
    pub bridge: Arc<TextBridge>,
    below: TextBackend,
    /// Long prompts that are tokenised at once; the others wait, and leave if nobody waits for them.
    tokenizers: Arc<Semaphore>,
    /// When the model counts as busy.
    thresholds: Arc<Thresholds>,
}

impl TextEngine {
    /// Makes the engine.
    pub(crate) fn new(
        bridge: Arc<TextBridge>,
        below: TextBackend,
        thresholds: Arc<Thresholds>,
    ) -> Self {
        let tokenizers = Arc::new(Semaphore::new(MAX_TOKENIZERS));
        Self { bridge, below, tokenizers, thresholds }
    }

    /// Does work on so many bytes of text; off the runtime if it is long.
    pub(crate) async fn heavy<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&TextBridge) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if bytes < LONG_PROMPT_BYTES {
            return work(&self.bridge);
        }
        let place = match preparing::place(bytes).await {
            Some(place) => place,
            None => self.tokenizers.clone().acquire_owned().await.map_err(|error| {
                Error::internal("the tokenizer has no places").with_source(error)
            })?,
        };
        let bridge = self.bridge.clone();
        preparing::apart(place, move || work(&bridge)).await
    }

    /// Returns the vectors of texts and the tokens of all of them.
    pub(crate) async fn embed(
        &self,
        inputs: Inputs,
        context: Context,
    ) -> Result<(Vec<Vec<f32>>, usize)> {
        if inputs.texts.len() > MAX_EMBEDDED {
            let got = inputs.texts.len();
            let text = format!("expected at most {MAX_EMBEDDED} texts, got {got}");
            return Err(Error::invalid(text));
        }
        self.thresholds.check()?;
        let (vectors, tokens) = match &self.below {
            TextBackend::Tokens { embed, .. } => {
                let requests = self.embedded(&inputs).await?;
                let tokens = requests.iter().map(|request| request.tokens.len()).sum();
                let vectors = all(&**embed, requests, &context).await?;
                (vectors.into_iter().map(|vector| vector.values).collect::<Vec<_>>(), tokens)
            }
            TextBackend::Texts { embed, .. } => {
                let request = |input| {
                    let text = self.bridge.embedded(input, inputs.truncation)?;
                    Ok(EmbedTextRequest { text })
                };
                let requests = inputs.texts.iter().map(request).collect::<Result<Vec<_>>>()?;
                let vectors = all(&**embed, requests, &context).await?;
                let tokens = vectors.iter().map(|vector| vector.prompt_tokens as usize).sum();
                (vectors.into_iter().map(|vector| vector.values).collect(), tokens)
            }
        };
        if let Some(meter) = context.meter() {
            meter.count(tokens as u64);
        }
        let vectors = vectors.into_iter().map(|vector| inputs.cut(vector));
        Ok((vectors.collect::<Result<_>>()?, tokens))
    }

    /// Returns the tokens of texts.
    async fn embedded(&self, inputs: &Inputs) -> Result<Vec<EmbedRequest>> {
        let size = |input: &Input| match input {
            Input::Text(text) => text.len(),
            Input::Tokens(tokens) => tokens.len(),
        };
        let bytes = inputs.texts.iter().map(size).sum();
        let (texts, truncation) = (inputs.texts.clone(), inputs.truncation);
        let encode = move |bridge: &TextBridge| {
            let encode = |input| bridge.embedding(input, truncation);
            texts.iter().map(encode).collect::<Result<Vec<_>>>()
        };
        self.heavy(bytes, encode).await
    }

    /// Returns the scores of documents and the tokens of all texts.
    pub(crate) async fn rerank(
        &self,
        query: String,
        documents: Vec<String>,
        truncation: Option<usize>,
        context: Context,
    ) -> Result<(Vec<f32>, usize)> {
        let texts = std::iter::once(query).chain(documents).map(Input::Text).collect();
        let inputs = Inputs { texts, dimensions: None, truncation };
        let (vectors, tokens) = self.embed(inputs, context).await?;
        let Some((query, documents)) = vectors.split_first() else {
            return Err(Error::internal("the engine gave no vector"));
        };
        let scores = documents.iter().map(|document| rerank::relevance(query, document));
        Ok((scores.collect(), tokens))
    }
}

/// Returns the answers to requests that have one each, some of them at once.
async fn all<R: Request>(
    engine: &dyn Engine<R>,
    requests: Vec<R>,
    context: &Context,
) -> Result<Vec<R::Output>> {
    let one = |request| async move {
        let mut stream = engine.call(request, context.clone()).await?;
        let found = stream.next().await;
        found.unwrap_or_else(|| Err(Error::internal("the engine ended without a vector")))
    };
    let mut answers = stream::iter(requests).map(one).buffered(EMBEDDED_AT_ONCE);
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await {
        all.push(answer?);
    }
    Ok(all)
}

#[async_trait]
impl Engine<Completion> for TextEngine {
    async fn call(
        &self,
        completion: Completion,
        context: Context,
    ) -> Result<OutputStream<Completion>> {
        let generate = match &self.below {
            TextBackend::Tokens { generate, .. } => generate,
            TextBackend::Texts { generate, .. } => {
                let size = completion.size();
                let ask = move |bridge: &TextBridge| bridge.requests(&completion);
                let (requests, answers) = self.heavy(size, ask).await?;
                self.thresholds.check()?;
                let mut rows = Vec::with_capacity(requests.len());
                for request in requests {
                    rows.push(generate.call(request, context.clone()).await?);
                }
                return Ok(Box::pin(WordedStream::new(rows, answers)));
            }
        };
        let now = now();
        let (size, field) = (completion.size(), completion.constraint_field());
        let encode = move |bridge: &TextBridge| bridge.encode(&completion, now);
        let (requests, continuations) = self.heavy(size, encode).await?;
        // Once for all prompts: a request's own do not make the model busy for it.
        self.thresholds.check()?;
        let mut rows = Vec::with_capacity(requests.len());
        for request in requests {
            let stream = generate.call(request, context.clone()).await;
            rows.push(Some(stream.map_err(|error| named(error, field))?));
        }
        let (queue_time, is_over) = (Duration::ZERO, false);
        Ok(Box::pin(TextStream { rows, continuations, queue_time, field, is_over }))
    }
}

/// What stands in the place of generation where a model makes vectors only.
pub(crate) struct NoGeneration(pub Arc<TextBridge>);

#[async_trait]
impl Engine<GenerateRequest> for NoGeneration {
    async fn call(
        &self,
        _request: GenerateRequest,
        _context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        self.0.check_generates()?;
        Err(Error::internal("a model that makes texts has no engine for them"))
    }
}

/// Names the setting that a constraint is from which cannot be kept.
fn named(error: Error, field: &'static str) -> Error {
    match error.code() {
        Some("invalid_constraint") => error.with_prefix(&format!("`{field}`: ")).with_param(field),
        _ => error,
    }
}

struct TextStream {
    rows: Vec<Option<OutputStream<GenerateRequest>>>,
    continuations: Continuations,
    queue_time: Duration,
    /// The setting that a constraint is from.
    field: &'static str,
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
                    self.continuations.push(index, output);
                    has_news = true;
                }
            }
        }
        Ok(has_news)
    }

    fn step(&mut self, cx: &mut Poller<'_>) -> Poll<Option<Result<TextOutput>>> {
        loop {
            if let Some(mut output) = self.continuations.next() {
                output.queue_time = self.queue_time;
                for row in self.continuations.stopped() {
                    self.rows[row] = None;
                }
                return Poll::Ready(Some(Ok(output)));
            }
            if self.continuations.is_done() {
                return Poll::Ready(None);
            }
            match self.advance(cx) {
                Err(error) => return Poll::Ready(Some(Err(named(error, self.field)))),
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
    type Item = Result<TextOutput>;

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

/// An engine over text tensors around an engine over completions.
pub(crate) struct TensorText(pub Arc<TextEngine>);

#[async_trait]
impl Engine<InferRequest> for TensorText {
    async fn call(
        &self,
        request: InferRequest,
        context: Context,
    ) -> Result<OutputStream<InferRequest>> {
        let size: usize = request.inputs.iter().map(|input| input.data.len()).sum();
        let parsed = self.0.heavy(size, move |bridge| parse(bridge, &request)).await?;
        let (completion, answer) = match parsed {
            TensorRequest::Generate(completion, answer) => (completion, answer),
            TensorRequest::Embed(inputs) => {
                let (vectors, _) = self.0.embed(inputs, context).await?;
                let width = vectors.first().map_or(0, Vec::len) as i64;
                let shape = vec![vectors.len() as i64, width];
                return Ok(only(Tensor::from_values(
                    "embedding",
                    shape,
                    vectors.into_iter().flatten(),
                )));
            }
            TensorRequest::Rerank { query, documents, truncation } => {
                let (scores, _) = self.0.rerank(query, documents, truncation, context).await?;
                let shape = vec![scores.len() as i64];
                return Ok(only(Tensor::from_values("relevance_score", shape, scores)));
            }
        };
        let stream = self.0.call(*completion, context).await?;
        Ok(Box::pin(TensorStream { stream, answer: *answer }))
    }
}

fn parse(bridge: &TextBridge, request: &InferRequest) -> Result<TensorRequest> {
    let parsed = bridge.parse(request)?;
    if request.is_unary && parsed.is_streaming() {
        return Err(Error::invalid(
            "input `stream`: ModelInfer gives one response; \
             ask without it, or call ModelStreamInfer (over HTTP generate_stream)",
        ));
    }
    Ok(parsed)
}

/// Makes an answer of one response with one output.
fn only(tensor: Tensor) -> OutputStream<InferRequest> {
    let output = InferOutput { tensors: vec![tensor], is_last: true, ..InferOutput::default() };
    Box::pin(stream::once(std::future::ready(Ok(output))))
}

struct TensorStream {
    stream: OutputStream<Completion>,
    answer: Answer,
}

impl Stream for TensorStream {
    type Item = Result<InferOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match std::task::ready!(this.stream.as_mut().poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(output)) => {
                    if let Some(response) = this.answer.take(output) {
                        return Poll::Ready(Some(Ok(response)));
                    }
                }
            }
        }
    }
}
