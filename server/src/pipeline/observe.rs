//! Measures generation: time to first token, time between tokens, tokens. Of an engine that takes
//! texts an output counts as a token in time, and tokens are counted as the engine tells them.
//!
//! It stands innermost, right above the engine, so that it sees tokens as the engine gives them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Instant;

use async_trait::async_trait;
use engine::{
    Context, Engine, GenerateOutput, GenerateRequest, Meter, OutputStream, Result, TextDelta,
    TextRequest, TextUsage,
};
use futures_util::Stream;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// The metrics of one model's tokens.
#[derive(Clone, Debug)]
pub(crate) struct TokenMetrics {
    pub first_token: Histogram,
    pub inter_token: Histogram,
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
}

/// A generating engine whose tokens are measured.
#[derive(Debug)]
pub(crate) struct Observe<E> {
    pub engine: E,
    pub metrics: TokenMetrics,
}

#[async_trait]
impl<E: Engine<GenerateRequest>> Engine<GenerateRequest> for Observe<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let started = Instant::now();
        let prompt_tokens = request.tokens.len() as u64;
        let choices = request.choices.get() as usize;
        let meter = context.meter().cloned();
        let stream = self.engine.call(request, context).await?;
        self.metrics.prompt_tokens.inc_by(prompt_tokens);
        if let Some(meter) = &meter {
            meter.count(prompt_tokens);
        }
        Ok(Box::pin(Observed {
            stream,
            metrics: self.metrics.clone(),
            meter,
            started,
            last: vec![None; choices],
        }))
    }
}

struct Observed {
    stream: OutputStream<GenerateRequest>,
    metrics: TokenMetrics,
    /// Counts the tokens for the caller.
    meter: Option<Arc<dyn Meter>>,
    started: Instant,
    /// When each continuation last had tokens.
    last: Vec<Option<Instant>>,
}

impl Observed {
    fn record(&mut self, output: &GenerateOutput) {
        let tokens = output.tokens.len();
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        let is_first = self.last.iter().all(Option::is_none);
        if is_first {
            self.metrics.first_token.observe((now - self.started).as_secs_f64());
        }
        if let Some(last) = self.last.get_mut(output.index as usize) {
            if let Some(last) = *last {
                let seconds = (now - last).as_secs_f64();
                self.metrics.inter_token.observe(seconds / tokens as f64);
            }
            *last = Some(now);
        }
        self.metrics.generated_tokens.inc_by(tokens as u64);
        if let Some(meter) = &self.meter {
            meter.count(tokens as u64);
        }
    }
}

impl Stream for Observed {
    type Item = Result<GenerateOutput>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.stream.as_mut().poll_next(cx));
        if let Some(Ok(output)) = &item {
            self.record(output);
        }
        Poll::Ready(item)
    }
}

#[async_trait]
impl<E: Engine<TextRequest>> Engine<TextRequest> for Observe<E> {
    async fn call(
        &self,
        request: TextRequest,
        context: Context,
    ) -> Result<OutputStream<TextRequest>> {
        let (started, meter) = (Instant::now(), context.meter().cloned());
        let stream = self.engine.call(request, context).await?;
        let (metrics, last, prompt_tokens) = (self.metrics.clone(), None, 0);
        Ok(Box::pin(ObservedTexts { stream, metrics, meter, started, last, prompt_tokens }))
    }
}

struct ObservedTexts {
    stream: OutputStream<TextRequest>,
    metrics: TokenMetrics,
    /// Counts the tokens for the caller.
    meter: Option<Arc<dyn Meter>>,
    started: Instant,
    /// When something came last.
    last: Option<Instant>,
    /// Those that are counted already.
    prompt_tokens: u32,
}

impl ObservedTexts {
    fn record(&mut self, delta: &TextDelta) {
        if !delta.content.is_empty() || !delta.reasoning.is_empty() || !delta.calls.is_empty() {
            let now = Instant::now();
            match self.last {
                None => self.metrics.first_token.observe((now - self.started).as_secs_f64()),
                Some(last) => self.metrics.inter_token.observe((now - last).as_secs_f64()),
            }
            self.last = Some(now);
        }
        let Some(TextUsage { prompt_tokens, completion_tokens, .. }) = delta.usage else {
            return;
        };
        let prompt = u64::from(prompt_tokens.saturating_sub(self.prompt_tokens));
        let drawn = u64::from(completion_tokens);
        self.prompt_tokens = self.prompt_tokens.max(prompt_tokens);
        self.metrics.prompt_tokens.inc_by(prompt);
        self.metrics.generated_tokens.inc_by(drawn);
        if let Some(meter) = &self.meter {
            meter.count(prompt + drawn);
        }
    }
}

impl Stream for ObservedTexts {
    type Item = Result<TextDelta>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Poller<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.stream.as_mut().poll_next(cx));
        if let Some(Ok(delta)) = &item {
            self.record(delta);
        }
        Poll::Ready(item)
    }
}
