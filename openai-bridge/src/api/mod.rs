//! The OpenAI API and its relatives: bodies in, JSON or frames of a stream out.
//!
//! Each API is one file: it reads a body into what is asked and knows the [`Form`] of its answer.
//! The frames are server-sent events; a form never waits, so whoever drives it owns the time.

mod blocks;
mod body;
pub mod chat;
pub mod completions;
pub mod embeddings;
mod extras;
mod fold;
mod frames;
pub mod messages;
pub mod rerank;
pub mod responses;
pub mod tokens;
mod turns;

use serde_json::{Map, Value as Json};

use crate::{Completion, TextOutput};

pub use fold::{Fold, Told, ToldCall};

/// The body of a call, a JSON object.
pub type Body = Map<String, Json>;

/// What makes one answer different from every other.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// 32 hexadecimal digits, never twice the same.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as the client wrote it.
    pub model: String,
}

/// A text that is asked for, and how it is to be answered.
pub struct Asked {
    /// What is asked.
    pub completion: Completion,
    /// How it is answered.
    pub form: Box<dyn Form>,
    /// It is answered as it grows.
    pub is_streaming: bool,
    /// What of the request has no effect, which its client may not expect.
    pub warning: Option<String>,
}

/// The form of one answer: either frames as it grows, or one value at its end.
pub trait Form: Send + Sync {
    /// Writes the frames for some news.
    fn write(&mut self, output: TextOutput, out: &mut Vec<u8>);

    /// Writes the frames that end the stream.
    fn end(&mut self, out: &mut Vec<u8>);

    /// Writes the frames that end the stream after an error, which is given as the value of the
    /// key `error`.
    fn fail(&mut self, error: &Json, out: &mut Vec<u8>);

    /// Takes some news of an answer that is told as one value.
    fn collect(&mut self, output: TextOutput, fold: &mut Fold) {
        fold.push(output);
    }

    /// Returns the answer as one value.
    fn whole(&mut self, fold: Fold) -> Json;

    /// Returns what is to be kept of an answer, once it is over, if anything is.
    fn record(&mut self) -> Option<Json> {
        None
    }
}

impl Stamp {
    /// Returns an id that follows from the stamp and a number: 24 hexadecimal digits.
    pub fn derived(&self, number: u64) -> String {
        let hash = |start: u64| {
            let bytes = self.id.bytes().chain(number.to_le_bytes());
            bytes.fold(start, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            })
        };
        let text = format!("{:016x}{:016x}", hash(0xCBF2_9CE4_8422_2325), hash(!number));
        text[..24].to_owned()
    }

    /// Returns a name for the model's state: seeded answers repeat while it stays the same.
    pub fn fingerprint(&self) -> String {
        let of_model = Self { id: self.model.clone(), created: 0, model: String::new() };
        format!("fp_{}", &of_model.derived(0)[..10])
    }
}

#[cfg(test)]
mod tests;
