//! Lets a prefill worker compute a prompt and another worker go on with it.
//!
//! The prefill worker gets the whole request with one token to draw. What it drew stands behind the
//! prompt of the rest, said to be output, as when a text [migrates](super::Migrate); and the rest says
//! where the prompt's KV blocks can be asked for. A worker that gets none of them computes them, so
//! whatever fails costs time and changes no answer.

use std::sync::Arc;

use async_trait::async_trait;
use engine::{
    Context, EmbedRequest, Engine, Error, ErrorKind, GenerateRequest, OutputStream, Result,
    StopConditions,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

mod split;
#[cfg(test)]
mod tests;
mod whole;

use super::migrate::lacks_room;
use crate::support::metrics::WayLabels;
use split::Split;
use whole::Whole;

/// The workers of one part, as an engine.
pub(crate) trait WorkerGroup: Engine<GenerateRequest> + Clone {
    /// Returns whether a request would find a worker now.
    fn is_ready(&self) -> bool;

    /// Returns the same workers as an engine that waits for none to come.
    fn at_once(&self) -> Self;
}

/// Which prompts are computed by prefill workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SplitConfig {
    /// The fewest tokens of such a prompt.
    pub min_tokens: u32,
    /// The model's context; 0: not known. Who fills it with the first token has no rest.
    pub context_length: u32,
}

/// How a text of a model that has prefill workers is computed; each is a label of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DisaggregationOutcome {
    /// Its prompt by a prefill worker, the rest by another one.
    Split,
    /// All by one: the prompt is short, or fills the context.
    Short,
    /// All by one: several continuations, or the prompt's probabilities are wanted.
    Kind,
    /// All by a prefill worker, since there is no other one.
    NoDecode,
}

/// Who is asked for what is to be computed, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A worker that does all of it or continues it, if there is one now.
    Others,
    /// A prefill worker: it can do all of it, and may have the prompt's blocks.
    Back,
    /// One of the others, as soon as there is one.
    Last,
}

impl Place {
    fn next(self) -> Option<Self> {
        match self {
            Self::Others => Some(Self::Back),
            Self::Back => Some(Self::Last),
            Self::Last => None,
        }
    }
}

/// The workers of a model in two parts, as one engine; it is a [`Route`](super::Route) in front of
/// which nothing happens as long as there is no prefill worker. Clones are the same engine.
#[derive(Clone)]
pub(crate) struct Disaggregate<E> {
    /// The prefill workers.
    pub prompts: E,
    /// The others, which can do all of it.
    pub rest: E,
    pub config: SplitConfig,
    pub counts: Counts,
}

/// Counts texts by what happened to them.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub model: Arc<str>,
    pub family: Family<WayLabels, Counter>,
}

impl Counts {
    fn count(&self, way: &'static str) {
        self.family.get_or_create(&WayLabels { model: self.model.clone(), way }).inc();
    }
}

impl<E: WorkerGroup> Disaggregate<E> {
    fn way(&self, request: &GenerateRequest) -> DisaggregationOutcome {
        let (tokens, context) = (request.tokens.len(), self.config.context_length as usize);
        match () {
            () if !self.rest.is_ready() => DisaggregationOutcome::NoDecode,
            () if request.choices.get() > 1 || request.prompt_logprobs.is_some() => {
                DisaggregationOutcome::Kind
            }
            () if tokens < self.config.min_tokens as usize => DisaggregationOutcome::Short,
            () if context > 0 && tokens + 1 >= context => DisaggregationOutcome::Short,
            () => DisaggregationOutcome::Split,
        }
    }

    /// Returns the workers of a place.
    fn at(&self, place: Place) -> E {
        match place {
            Place::Others => self.rest.at_once(),
            Place::Back => self.prompts.clone(),
            Place::Last => self.rest.clone(),
        }
    }

    /// Gives a request to a worker that does all of it. Nobody is waited for as long as somebody
    /// else can be asked.
    async fn whole(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        let mut first = Place::Others;
        if !self.rest.is_ready() {
            self.counts.count("no_decode");
            first = Place::Back;
        }
        let asked = self.ask(request.clone(), context.clone(), first).await?;
        Ok(Box::pin(Whole::new(self.clone(), (request, context), asked)))
    }

    /// Asks at one place after the other until a worker takes a request; returns where that was.
    async fn ask(
        &self,
        request: GenerateRequest,
        context: Context,
        mut place: Place,
    ) -> Result<(OutputStream<GenerateRequest>, Place)> {
        loop {
            let error = match self.at(place).call(request.clone(), context.clone()).await {
                Ok(stream) => return Ok((stream, place)),
                Err(error) => error,
            };
            let is_away = error.kind() == ErrorKind::Unavailable;
            place = is_away.then(|| self.pass(place)).flatten().ok_or(error)?;
        }
    }

    /// Returns who is asked when nobody at a place can be; none: nobody is left.
    fn pass(&self, place: Place) -> Option<Place> {
        if place == Place::Others {
            self.counts.count("no_decode");
        }
        place.next()
    }
}

#[async_trait]
impl<E: WorkerGroup> Engine<GenerateRequest> for Disaggregate<E> {
    async fn call(
        &self,
        request: GenerateRequest,
        context: Context,
    ) -> Result<OutputStream<GenerateRequest>> {
        if !self.prompts.is_ready() {
            return self.rest.call(request, context).await;
        }
        match self.way(&request) {
            DisaggregationOutcome::Split => {}
            DisaggregationOutcome::NoDecode => return self.whole(request, context).await,
            DisaggregationOutcome::Short => {
                self.counts.count("short");
                return self.whole(request, context).await;
            }
            DisaggregationOutcome::Kind => {
                self.counts.count("kind");
                return self.whole(request, context).await;
            }
        }
        let stop = StopConditions { max_tokens: 1, ..request.stop.clone() };
        let first = GenerateRequest { stop, ..request.clone() };
        match self.prompts.call(first, context.clone()).await {
            Ok(stream) => Ok(Box::pin(Split::new(self.clone(), (request, context), stream))),
            Err(error) if is_elsewhere(&error) => {
                self.counts.count("no_prefill");
                self.whole(request, context).await
            }
            Err(error) => Err(error),
        }
    }
}

/// Vectors are made by whoever can be asked.
#[async_trait]
impl<E: WorkerGroup + Engine<EmbedRequest>> Engine<EmbedRequest> for Disaggregate<E> {
    async fn call(
        &self,
        request: EmbedRequest,
        context: Context,
    ) -> Result<OutputStream<EmbedRequest>> {
        let is_alone = !self.rest.is_ready() && self.prompts.is_ready();
        let engine = if is_alone { &self.prompts } else { &self.rest };
        engine.call(request, context).await
    }
}

/// Returns whether others may take what failed so; their memory may be larger.
fn is_elsewhere(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded) || lacks_room(error)
}
