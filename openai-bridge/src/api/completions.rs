//! Completions of plain prompts.

use engine::{MAX_LOGPROBS, Result};
use serde_json::{Value as Json, json};

use super::body::{self, StreamOptions, get, wrong};
use super::extras::extras;
use super::fold::{Told, word};
use super::frames::{Chunks, DONE, frame, json};
use super::{Asked, Body, Fold, Form, Stamp};
use crate::completion::{Completion, Prompts};
use crate::parser::Event;
use crate::settings::Settings;
use crate::tokenizer::Decoder;
use crate::{Delta, Input, Score, Scored, TextBridge, TextOutput};

/// What the API gives when nothing is said.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Most prompts of one call.
const MAX_PROMPTS: usize = 256;

/// Reads the body of a completion.
///
/// Errors: a field that is wrong or cannot be honoured, by name.
pub fn read(bridge: &TextBridge, mut body: Body, stamp: Stamp) -> Result<Asked> {
    if get(&body, "suffix").is_some_and(|suffix| suffix != "") {
        return Err(wrong("suffix", "is not supported: the model only continues texts"));
    }
    let options = StreamOptions::read(&body)?;
    let prompts = prompts(body::inputs(&body, "prompt", MAX_PROMPTS)?)?;
    let has_echo = body::flag(&body, "echo")?.unwrap_or(false);
    let logprobs =
        body::number(&body, "logprobs", 0..=u64::from(MAX_LOGPROBS))?.map(|top| top as u32);
    let choices = body::number(&body, "n", 1..=128)?.unwrap_or(1);
    match body::number(&body, "best_of", 1..=128)? {
        Some(best) if best != choices => {
            return Err(wrong("best_of", "is not supported: it has to be `n`"));
        }
        _ => {}
    }
    // Only the prompt's own probabilities are wanted, as evaluations do.
    let is_scoring = has_echo && get(&body, "max_tokens").is_some_and(|count| *count == 0);
    if is_scoring {
        body.remove("max_tokens");
    }
    let extras = extras(bridge, &body, true)?;
    for taken in ["best_of", "stream", "documents", "query", "input_ids", "dimensions"] {
        body.remove(taken);
    }
    let settings = Settings::of_body(&body)?;
    let mut completion = Completion::new(settings, prompts, DEFAULT_MAX_TOKENS)?;
    completion.logprobs = logprobs;
    completion.extras = extras;
    if has_echo && (logprobs.is_some() || is_scoring) {
        completion.prompt_logprobs = completion.prompt_logprobs.max(Some(logprobs.unwrap_or(0)));
    }
    if is_scoring {
        completion.rows.iter_mut().for_each(|row| row.stop.max_tokens = 0);
    }
    let count = completion.continuations();
    let form = Box::new(Text::new(stamp, options, count, (logprobs.is_some(), has_echo)));
    Ok(Asked { completion, form, is_streaming: options.is_streaming, warning: None })
}

fn prompts(inputs: Vec<Input>) -> Result<Prompts> {
    let (mut texts, mut lists) = (Vec::new(), Vec::new());
    for input in inputs {
        match input {
            Input::Text(text) => texts.push(text),
            Input::Tokens(tokens) => lists.push(tokens),
        }
    }
    match (texts.is_empty(), lists.is_empty()) {
        (_, true) => Ok(Prompts::Texts(texts)),
        (true, _) => Ok(Prompts::Tokens(lists)),
        _ => Err(wrong("prompt", "expected texts or lists of tokens, got both")),
    }
}

/// The form of a completion.
struct Text {
    stamp: Stamp,
    options: StreamOptions,
    chunks: Chunks,
    has_logprobs: bool,
    /// The prompt's scores are told with the text's.
    has_echo: bool,
    /// Where the next token's text begins, in each continuation.
    places: Vec<Place>,
    fold: Fold,
}

impl Text {
    fn new(
        stamp: Stamp,
        options: StreamOptions,
        count: usize,
        (has_logprobs, has_echo): (bool, bool),
    ) -> Self {
        let chunks = Chunks::new(&head(&stamp), options.has_usage);
        Self {
            stamp,
            options,
            chunks,
            has_logprobs,
            has_echo,
            places: vec![Place::default(); count],
            fold: Fold::default(),
        }
    }

    fn scores<'a>(&self, prompt: &'a [Score], drawn: &'a [Score]) -> Vec<&'a Score> {
        let prompt = if self.has_echo { prompt } else { &[] };
        prompt.iter().chain(drawn).collect()
    }

    fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        let text: String = delta.events.iter().map(content).collect();
        let scores = self.scores(&delta.prompt_logprobs, &delta.logprobs);
        let place = self.places.get_mut(delta.index as usize);
        let place = place.filter(|_| self.has_logprobs && !scores.is_empty());
        let logprobs = place.map(|place| logprobs(&scores, place));
        let finish = delta.finish.as_ref().map(|finish| word(Some(finish), false));
        let choice = |out: &mut Vec<u8>| {
            out.extend_from_slice(b"{\"index\":");
            json(out, &delta.index);
            out.extend_from_slice(b",\"text\":");
            json(out, &text);
            out.extend_from_slice(b",\"logprobs\":");
            json(out, &logprobs);
            if !delta.token_ids.is_empty() {
                out.extend_from_slice(b",\"token_ids\":");
                json(out, &delta.token_ids);
            }
            out.extend_from_slice(b",\"finish_reason\":");
            json(out, &finish);
            out.push(b'}');
        };
        match self.options.has_usage_always {
            false => self.chunks.chunk(out, choice),
            true => self.chunks.chunk_with(out, &self.fold.usage().json(), choice),
        }
    }
}

impl Form for Text {
    fn write(&mut self, output: TextOutput, out: &mut Vec<u8>) {
        self.fold.count(&output);
        for delta in &output.deltas {
            self.delta(delta, out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.options.has_usage {
            let mut last = head(&self.stamp);
            last["choices"] = json!([]);
            last["usage"] = self.fold.usage().json();
            frame(out, &last);
        }
        out.extend_from_slice(DONE);
    }

    fn fail(&mut self, error: &Json, out: &mut Vec<u8>) {
        frame(out, &json!({ "error": error }));
        out.extend_from_slice(DONE);
    }

    fn whole(&mut self, fold: Fold) -> Json {
        let choice = |(index, told): (usize, &Told)| {
            let scores = self.scores(&told.prompt_logprobs, &told.logprobs);
            let logprobs = (self.has_logprobs && !scores.is_empty())
                .then(|| logprobs(&scores, &mut Place::default()));
            let mut choice = json!({
                "index": index,
                "text": told.content,
                "logprobs": logprobs,
                "finish_reason": word(told.finish.as_ref(), false),
            });
            if !told.token_ids.is_empty() {
                choice["token_ids"] = json!(told.token_ids);
            }
            choice
        };
        let mut whole = head(&self.stamp);
        whole["choices"] = fold.told.iter().enumerate().map(choice).collect();
        whole["usage"] = fold.usage().json();
        whole
    }
}

fn head(stamp: &Stamp) -> Json {
    json!({
        "id": format!("cmpl-{}", stamp.id),
        "object": "text_completion",
        "created": stamp.created,
        "model": stamp.model,
        "system_fingerprint": stamp.fingerprint(),
    })
}

/// A plain text has no thoughts and no calls, so every event is content.
fn content(event: &Event) -> &str {
    match event {
        Event::Content(text) => text,
        _ => "",
    }
}

/// How many characters of a text are whole so far.
#[derive(Clone, Debug, Default)]
struct Place {
    characters: usize,
    decoder: Decoder,
}

/// Returns a token's text; a part of a character is spelled by its bytes, as OpenAI does.
fn spelled(token: &Scored) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let bytes = token.bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            std::iter::once("bytes:".to_owned()).chain(bytes).collect()
        }
    }
}

/// Writes the API's four lists.
fn logprobs(scores: &[&Score], place: &mut Place) -> Json {
    let begin = |score: &&Score| {
        let begin = place.characters;
        let mut text = String::new();
        place.decoder.push(&score.token.bytes, &mut text);
        place.characters += text.chars().count();
        begin
    };
    let offsets: Vec<usize> = scores.iter().map(begin).collect();
    let top = |score: &&Score| match score.rank {
        0 => Json::Null,
        _ => score.top.iter().map(|one| (spelled(one), json!(one.finite()))).collect(),
    };
    json!({
        "tokens": scores.iter().map(|score| spelled(&score.token)).collect::<Vec<_>>(),
        "token_logprobs": scores.iter().map(|score| score.token.finite()).collect::<Vec<_>>(),
        "top_logprobs": scores.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

#[cfg(test)]
mod tests;
