//! Texts as texts: for engines that have the template and the tokenizer themselves.
//!
//! What is asked is the JSON of an OpenAI call, which such engines speak anyway; what comes back is
//! typed, so that nobody above has to read a stream of JSON again.

use std::time::Duration;

use bytes::Bytes;

use crate::{FinishReason, Request};

/// A conversation to be answered or a prompt to be continued.
///
/// ```
/// use engine::{TextForm, TextRequest};
/// let body = r#"{"prompt": "Once", "max_tokens": 8}"#;
/// let request = TextRequest { form: TextForm::Completion, body: body.into() };
/// assert_eq!(request.form, TextForm::Completion);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// Which call of the OpenAI API the body is of.
    pub form: TextForm,
    /// A JSON object without `model`, `stream` and `stream_options`.
    pub body: Bytes,
}

/// A call of the OpenAI API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm {
    /// A chat completion: `messages`.
    Chat,
    /// A completion: one `prompt`.
    Completion,
}

impl Request for TextRequest {
    type Output = TextDelta;
}

/// What is new in one choice of an answer; what is empty is not new.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextDelta {
    /// Which choice, from 0.
    pub index: u32,
    /// Of the text, never a part of a character.
    pub content: String,
    /// Of the model's thoughts; they come before the content of the same delta.
    pub reasoning: String,
    /// Of the calls of tools; they come behind the content of the same delta.
    pub calls: Vec<CallDelta>,
    /// Of the tokens of this delta, when they were asked for.
    pub logprobs: Vec<TextLogprob>,
    /// Set when the choice has ended.
    pub finish: Option<FinishReason>,
    /// The stop text that ended the choice.
    pub stop: Option<String>,
    /// What the request cost, mostly in the last delta of all.
    pub usage: Option<TextUsage>,
    /// From the request's acceptance to its first place in a batch.
    pub queue_time: Duration,
}

/// What is new in a call; it begins with its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallDelta {
    /// Counts the calls of a choice from 0.
    pub index: u32,
    /// The call's id; empty: it has none, or it was told before.
    pub id: String,
    /// What is called; empty: it was told before.
    pub name: String,
    /// What is new of the arguments, JSON text.
    pub arguments: String,
}

/// A token's natural-log probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextLogprob {
    /// The token, which may be a part of a character.
    pub token: Bytes,
    /// Its log-probability.
    pub logprob: f32,
    /// The best tokens, most likely first.
    pub top: Vec<(Bytes, f32)>,
}

/// Tokens of a request. Those of the prompt count as they were told last, the others are added up
/// over all deltas that tell of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextUsage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Drawn.
    pub completion_tokens: u32,
    /// Of the prompt, found in a cache.
    pub cached_tokens: u32,
    /// Drawn as thoughts.
    pub reasoning_tokens: u32,
}

/// A text to be embedded.
///
/// ```
/// let request = engine::EmbedTextRequest { text: "a cat".into() };
/// assert!(!request.text.is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedTextRequest {
    /// The text.
    pub text: String,
}

impl Request for EmbedTextRequest {
    type Output = TextEmbedding;
}

/// The vector of a text; an engine gives exactly one for each request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextEmbedding {
    /// `[dimensions]`.
    pub values: Vec<f32>,
    /// Tokens of the text; 0: they were not counted.
    pub prompt_tokens: u32,
}
