//! Embeddings: tokens in, one vector out.

use std::sync::Arc;

use crate::{Adapter, Request, TokenId};

/// A text to be embedded.
///
/// ```
/// let request = engine::EmbedRequest { tokens: vec![1, 2, 3].into(), adapter: None };
/// assert_eq!(request.tokens.len(), 3);
/// ```
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// The text; at least one token, at most the context.
    pub tokens: Arc<[TokenId]>,
    /// The adapter that the model is asked with; none: as it is.
    pub adapter: Option<Adapter>,
}

impl Request for EmbedRequest {
    type Output = Embedding;
}

/// The vector of a text; an embedding engine gives exactly one for each request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedding {
    /// `[dimensions]`, pooled as the model does it and scaled to length 1 if it does that.
    pub values: Vec<f32>,
}
