//! Rerank: documents in the order of how near they are to a query, as Jina and Cohere have it.

use engine::Result;
use serde_json::{Value as Json, json};

use super::body::{self, get, wrong};
use super::{Body, Stamp};

/// Most documents of one call.
const MAX_DOCUMENTS: usize = 1000;

/// A call.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What is looked for.
    pub query: String,
    /// Where.
    pub documents: Vec<String>,
    /// Only so many of the best are wanted.
    pub top: usize,
    /// The documents are wanted back.
    pub has_documents: bool,
    /// The most tokens of each text; longer ones are cut.
    pub truncation: Option<usize>,
}

/// Reads the body of a call.
///
/// Errors: a field that is wrong, by name.
pub fn read(body: &Body) -> Result<Asked> {
    let query = body::text(body, "query")?.ok_or_else(|| wrong("query", "is missing"))?;
    let list = match get(body, "documents") {
        Some(Json::Array(list)) if !list.is_empty() => list,
        Some(Json::Array(_)) => return Err(wrong("documents", "expected at least 1, got 0")),
        Some(other) => {
            let why = format!("expected a list of texts, got {}", body::kind(other));
            return Err(wrong("documents", &why));
        }
        None => return Err(wrong("documents", "is missing")),
    };
    if list.len() > MAX_DOCUMENTS {
        let why = format!("expected at most {MAX_DOCUMENTS}, got {}", list.len());
        return Err(wrong("documents", &why));
    }
    let document = |(index, value): (usize, &Json)| {
        let text = value.as_str().or(value.get("text").and_then(Json::as_str));
        let place = format!("documents[{index}]");
        text.map(str::to_owned).ok_or_else(|| wrong(&place, "expected a text or {\"text\": …}"))
    };
    let documents = list.iter().enumerate().map(document).collect::<Result<Vec<_>>>()?;
    let top = body::number(body, "top_n", 1..=u64::from(u32::MAX))?;
    Ok(Asked {
        query: query.to_owned(),
        top: top.map_or(documents.len(), |top| (top as usize).min(documents.len())),
        documents,
        has_documents: body::flag(body, "return_documents")?.unwrap_or(true),
        truncation: body::truncation(body)?,
    })
}

/// Returns the cosine of two vectors, brought from -1..1 to 0..1; one of zeros is near nothing.
pub fn relevance(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = (product(a, a) * product(b, b)).sqrt();
    let cosine = if lengths > 0.0 { product(a, b) / lengths } else { 0.0 };
    ((cosine + 1.0) / 2.0).clamp(0.0, 1.0) as f32
}

/// Writes the answer for the documents' scores, the best first.
pub fn answer(stamp: &Stamp, asked: &Asked, scores: &[f32], tokens: usize) -> Json {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let result = |&index: &usize| {
        let mut result = json!({"index": index, "relevance_score": scores[index]});
        if asked.has_documents {
            result["document"] = json!({"text": asked.documents[index]});
        }
        result
    };
    json!({
        "id": format!("rerank-{}", stamp.id),
        "model": stamp.model,
        "results": order.iter().take(asked.top).map(result).collect::<Vec<_>>(),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}
