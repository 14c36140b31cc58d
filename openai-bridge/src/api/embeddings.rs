//! Embeddings: texts in, vectors out, as numbers or as base64 of little-endian 32-bit floats.

use engine::Result;
use serde_json::{Value as Json, json};

use super::body::{self, wrong};
use super::{Body, Stamp};
use crate::Inputs;

/// Most texts of one call, as in the OpenAI API.
const MAX_INPUTS: usize = 2048;

/// A call.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What is to be embedded.
    pub inputs: Inputs,
    /// Vectors are wanted as base64.
    pub is_base64: bool,
}

/// Reads the body of a call.
///
/// Errors: a field that is wrong, by name.
pub fn read(body: &Body) -> Result<Asked> {
    let texts = body::inputs(body, "input", MAX_INPUTS)?;
    let dimensions = body::number(body, "dimensions", 1..=1 << 20)?.map(|count| count as usize);
    let is_base64 = match body::text(body, "encoding_format")? {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let why = format!("expected float or base64, got `{other}`");
            return Err(wrong("encoding_format", &why));
        }
    };
    let inputs = Inputs { texts, dimensions, truncation: body::truncation(body)? };
    Ok(Asked { inputs, is_base64 })
}

/// Writes the answer; `encode` makes base64.
pub fn answer(
    stamp: &Stamp,
    vectors: &[Vec<f32>],
    tokens: usize,
    encode: Option<fn(&[u8]) -> String>,
) -> Json {
    let vector = |(index, values): (usize, &Vec<f32>)| {
        let bytes = || values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let embedding = match encode {
            Some(encode) => Json::from(encode(&bytes())),
            None => json!(values),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    json!({
        "object": "list",
        "data": vectors.iter().enumerate().map(vector).collect::<Vec<_>>(),
        "model": stamp.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}
