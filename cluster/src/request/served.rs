//! What a worker serves under a model's name.

use std::sync::Arc;

use bytes::Bytes;
use engine::{
    Adapter, AdapterId, EmbedRequest, EmbedTextRequest, Engine, GenerateRequest, InferRequest,
    KvEvents, KvStore, Result, TextRequest, WorkerLoad,
};

use super::codec::Wire;

/// The engines of a model and what is told about it. What is none is refused.
#[derive(Clone, Default)]
pub struct Served {
    /// The model's card, as JSON.
    pub card: Bytes,
    /// Continues prompts.
    pub generate: Option<Arc<dyn Engine<GenerateRequest>>>,
    /// Runs a tensor model.
    pub infer: Option<Arc<dyn Engine<InferRequest>>>,
    /// Embeds texts.
    pub embed: Option<Arc<dyn Engine<EmbedRequest>>>,
    /// Answers texts.
    pub text: Option<Arc<dyn Engine<TextRequest>>>,
    /// Embeds texts that are given as such.
    pub embed_text: Option<Arc<dyn Engine<EmbedTextRequest>>>,
    /// Has the adapters that requests may name.
    pub adapters: Option<Arc<dyn Adapters>>,
    /// Tells how busy the model is; it is asked often and answers at once.
    pub load: Option<Arc<dyn Fn() -> WorkerLoad + Send + Sync>>,
    /// Tells what becomes of KV blocks.
    pub events: Option<KvEvents>,
    /// Gives copies of KV blocks.
    pub blocks: Option<Arc<dyn KvStore>>,
}

/// The adapters of a model. A request names one by the number that the model's card gives it, so
/// that what crosses the wire stands for the adapter's content.
pub trait Adapters: Send + Sync + 'static {
    /// Returns a loaded adapter, which stays loaded while the handle lives.
    ///
    /// Errors: NOT_FOUND.
    fn adapter(&self, id: AdapterId) -> Result<Adapter>;
}

/// The files that model cards name.
pub trait Artifacts: Send + Sync + 'static {
    /// Returns the content with this hash. It is called off the runtime, so it may read a file.
    ///
    /// Errors: NOT_FOUND.
    fn artifact(&self, hash: &str) -> Result<Bytes>;
}

/// A kind of request that a model may answer.
pub(super) trait Offered: Wire {
    /// Returns the engine for it.
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>>;
}

impl Offered for GenerateRequest {
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>> {
        served.generate.as_ref()
    }
}

impl Offered for InferRequest {
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>> {
        served.infer.as_ref()
    }
}

impl Offered for EmbedRequest {
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>> {
        served.embed.as_ref()
    }
}

impl Offered for TextRequest {
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>> {
        served.text.as_ref()
    }
}

impl Offered for EmbedTextRequest {
    fn engine(served: &Served) -> Option<&Arc<dyn Engine<Self>>> {
        served.embed_text.as_ref()
    }
}
