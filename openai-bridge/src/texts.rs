//! Completions for engines that take texts: bodies of OpenAI calls down, their deltas up.
//!
//! A body has what the client set and nothing else, under the names that vLLM has for it, whatever
//! door the client came through: what the engine does by default stays the engine's affair.

use std::sync::Arc;
use std::time::Duration;

use engine::{Error, Result, TextDelta, TextForm, TextRequest};
use serde_json::{Map, Value as Json, json};

use crate::chat::Chat;
use crate::completion::{Completion, Prompts};
use crate::delta::{Delta, Finish, Score, Scored, TextOutput};
use crate::parser::Event;
use crate::settings::Settings;
use crate::tools::Choice;
use crate::{Input, TextBridge};

/// Settings that pass as they were said.
const PASSED: [&str; 19] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "logit_bias",
    "structured_outputs",
    "chat_template_kwargs",
    "reasoning_effort",
    "truncate_prompt_tokens",
    "response_format",
];

/// Settings of chats that pass as they were said.
const PASSED_IN_CHATS: [&str; 2] = ["add_generation_prompt", "continue_final_message"];

/// Most calls in one choice: an engine that tells of more is not believed.
const MAX_CALLS: usize = 1024;

impl TextBridge {
    /// Returns the text requests of a completion, one for each prompt, and what reads their
    /// answers.
    ///
    /// Errors: what cannot be asked of an engine whose tokens are not known here.
    pub fn requests(&self, completion: &Completion) -> Result<(Vec<TextRequest>, TextAnswers)> {
        completion.check_scores(self.context_length)?;
        let refused = |what: &str, field: &str| {
            let text =
                format!("`{field}`: {what} is not known here: the model's workers take texts");
            Err(Error::invalid(text).with_param(field))
        };
        if completion.prompt_logprobs.is_some() {
            return refused("the probability of a prompt", "prompt_logprobs");
        }
        if completion.has_token_ids {
            return refused("the tokens of a text", "return_token_ids");
        }
        let rows = completion.prompts();
        let mut echoes = vec![String::new(); rows];
        if completion.has_echo {
            match &completion.prompts {
                Prompts::Texts(texts) => echoes.clone_from(texts),
                Prompts::Tokens(_) => return refused("the text of a prompt of tokens", "echo"),
                Prompts::Chats(_) => {}
            }
        }
        let requests = (0..rows).map(|row| self.request(completion, row)).collect::<Vec<_>>();
        Ok((requests, TextAnswers::new(echoes, completion.choices.get() as usize)))
    }

    fn request(&self, completion: &Completion, row: usize) -> TextRequest {
        let mut body = self.settings(completion, row);
        let (form, prompt) = match &completion.prompts {
            Prompts::Texts(texts) => (TextForm::Completion, json!(texts[row])),
            Prompts::Tokens(lists) => (TextForm::Completion, json!(lists[row])),
            Prompts::Chats(chats) => {
                add_chat(&mut body, completion, &chats[row]);
                (TextForm::Chat, Json::Null)
            }
        };
        match (form, completion.logprobs) {
            (TextForm::Completion, top) => {
                body.insert("prompt".into(), prompt);
                body.extend(top.map(|top| ("logprobs".into(), top.into())));
            }
            (TextForm::Chat, Some(top)) => {
                body.insert("logprobs".into(), true.into());
                body.insert("top_logprobs".into(), top.into());
            }
            (TextForm::Chat, None) => {}
        }
        TextRequest { form, body: Json::Object(body).to_string().into() }
    }

    /// Returns what was set for a row.
    fn settings(&self, completion: &Completion, row: usize) -> Map<String, Json> {
        let said = |name: &&str| {
            let value = completion.settings.said(name, row)?;
            Some(((*name).to_owned(), value))
        };
        let mut body = completion.extras.clone();
        body.extend(PASSED.iter().filter_map(said));
        if let Some(guide) = guide(&completion.settings, row) {
            body.insert("structured_outputs".into(), guide);
        }
        if let Some(format) = body.get_mut("response_format") {
            regular(format);
        }
        // JSON has no unsigned seeds for everybody.
        if let Some(seed) = body.get_mut("seed")
            && let Some(large) = seed.as_u64()
        {
            *seed = (large as i64).into();
        }
        let most = completion.rows[row].stop.max_tokens;
        if most < self.most_tokens() {
            body.insert("max_tokens".into(), most.into());
        }
        if completion.choices.get() > 1 {
            body.insert("n".into(), completion.choices.get().into());
        }
        if !completion.stops.is_empty() {
            body.insert("stop".into(), json!(completion.stops));
        }
        body
    }

    /// Returns a text to be embedded as its engine takes it.
    ///
    /// Errors: tokens, or a text that is to be cut.
    pub fn embedded(&self, input: &Input, truncation: Option<usize>) -> Result<String> {
        let refused =
            |why: &str| Err(Error::invalid(format!("{why}: the model's workers take texts")));
        match (input, truncation) {
            (Input::Text(text), None) => Ok(text.clone()),
            (Input::Text(_), Some(_)) => {
                refused("`truncate_prompt_tokens`: tokens are not known here")
            }
            (Input::Tokens(_), _) => refused("expected a text, got tokens"),
        }
    }
}

/// Writes what makes a body that of a chat.
fn add_chat(body: &mut Map<String, Json>, completion: &Completion, chat: &Chat) {
    let messages = chat.conversation.messages().iter().cloned().map(spelled).collect();
    body.insert("messages".into(), Json::Array(messages));
    for name in PASSED_IN_CHATS {
        let said = completion.settings.said(name, 0);
        body.extend(said.map(|value| (name.to_owned(), value)));
    }
    let tools = &chat.tools;
    if tools.all.is_empty() {
        return;
    }
    body.insert("tools".into(), json!(tools.all));
    let choice = match &tools.choice {
        Choice::None => json!("none"),
        Choice::Auto => json!("auto"),
        Choice::Required => json!("required"),
        Choice::Named(name) => json!({"type": "function", "function": {"name": name}}),
    };
    body.insert("tool_choice".into(), choice);
    if !tools.is_parallel {
        body.insert("parallel_tool_calls".into(), false.into());
    }
}

/// Returns vLLM's older fields for constraints as its newer one, which other engines took over.
fn guide(settings: &Settings, row: usize) -> Option<Json> {
    ["json", "regex", "grammar", "choice"].iter().find_map(|kind| {
        let said = settings.said(&format!("guided_{kind}"), row)?;
        Some(json!({ *kind: said }))
    })
}

/// Brings the forms that a response's format has in other APIs to that of chat.
fn regular(format: &mut Json) {
    if let Json::String(kind) = format {
        *format = json!({"type": kind});
    }
    let Json::Object(fields) = format else { return };
    if fields.get("type").is_some_and(|kind| kind == "json_schema")
        && !fields.contains_key("json_schema")
    {
        // The Responses API has what describes the schema beside the type.
        fields.shift_remove("type");
        let mut described = std::mem::take(fields);
        described.entry("name").or_insert_with(|| "answer".into());
        fields.insert("type".into(), "json_schema".into());
        fields.insert("json_schema".into(), described.into());
    }
}

/// Writes the arguments of calls as the texts that they were: templates want objects, the API
/// wants texts.
fn spelled(mut message: Json) -> Json {
    let spell = |function: &mut Json| {
        if let Some(arguments) = function.get_mut("arguments").filter(|all| !all.is_string()) {
            *arguments = arguments.to_string().into();
        }
    };
    if let Some(Json::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().filter_map(|call| call.get_mut("function")).for_each(spell);
    }
    message
}

/// Most log-probabilities of tokens in one choice that wait for their text; more are told without.
const MAX_SCORES: usize = 4096;

/// The answers of text requests: `[prompts, choices]`.
#[derive(Debug)]
pub struct TextAnswers {
    choices: usize,
    all: Vec<Choosing>,
    prompts: Vec<Counted>,
    prompt_tokens: Arc<[u32]>,
    queue_time: Duration,
}

/// One choice.
#[derive(Debug, Default)]
struct Choosing {
    /// Told before the text.
    echo: String,
    /// The calls that have begun, by the engine's numbers.
    calls: Vec<u32>,
    /// Of tokens whose text has not come yet.
    scores: Vec<Score>,
    is_over: bool,
}

/// What is known of a prompt's answers.
#[derive(Debug, Default)]
struct Counted {
    completion_tokens: u32,
    cached_tokens: u32,
    reasoning_tokens: u32,
    /// The end of the last choice, which waits for the usage.
    ending: Option<(u32, Finish)>,
    is_over: bool,
}

impl TextAnswers {
    fn new(echoes: Vec<String>, choices: usize) -> Self {
        let prompts: Vec<Counted> = echoes.iter().map(|_| Counted::default()).collect();
        let choosing = |echo: String| {
            std::iter::repeat_with(move || Choosing { echo: echo.clone(), ..Choosing::default() })
                .take(choices)
        };
        Self {
            choices,
            prompt_tokens: echoes.iter().map(|_| 0).collect(),
            all: echoes.into_iter().flat_map(choosing).collect(),
            prompts,
            queue_time: Duration::ZERO,
        }
    }

    /// Takes what is new in the answers of a prompt; returns the news that it makes, if any.
    ///
    /// Errors: an engine that says what cannot be.
    pub fn push(&mut self, row: usize, delta: TextDelta) -> Result<Option<TextOutput>> {
        self.queue_time = self.queue_time.max(delta.queue_time);
        if let Some(usage) = delta.usage {
            let counted = &mut self.prompts[row];
            counted.completion_tokens += usage.completion_tokens;
            counted.reasoning_tokens += usage.reasoning_tokens;
            counted.cached_tokens = usage.cached_tokens;
            if self.prompt_tokens[row] != usage.prompt_tokens {
                Arc::make_mut(&mut self.prompt_tokens)[row] = usage.prompt_tokens;
            }
        }
        let choice = delta.index as usize;
        if choice >= self.choices {
            let most = self.choices;
            let text = format!("an engine told of choice {choice}, it was asked for {most}");
            return Err(Error::internal(text));
        }
        let index = row * self.choices + choice;
        if self.all[index].is_over {
            return Ok(None);
        }
        let (reason, stop) = (delta.finish, delta.stop.clone());
        let mut news = Delta { index: index as u32, ..Delta::default() };
        self.all[index].take(delta, &mut news)?;
        if let Some(reason) = reason {
            self.all[index].is_over = true;
            let finish = Finish { reason, stop, cached_tokens: 0 };
            let siblings = &self.all[row * self.choices..][..self.choices];
            match siblings.iter().all(|sibling| sibling.is_over) {
                // What it cost is told last of all, maybe after the end of the text.
                true => self.prompts[row].ending = Some((news.index, finish)),
                false => news.finish = Some(finish),
            }
        }
        let is_news = !news.events.is_empty() || news.finish.is_some();
        if !is_news && news.logprobs.len() <= MAX_SCORES {
            self.all[index].scores = news.logprobs;
            return Ok(None);
        }
        Ok(Some(self.output(news, false)))
    }

    /// Takes the end of a prompt's answers; returns the news that it makes.
    ///
    /// Errors: a choice has not ended.
    pub fn end(&mut self, row: usize) -> Result<TextOutput> {
        let counted = &mut self.prompts[row];
        let Some((index, finish)) = counted.ending.take() else {
            return Err(Error::internal("an engine ended its text without a finish reason"));
        };
        counted.is_over = true;
        let delta = Delta {
            index,
            tokens: counted.completion_tokens,
            reasoning_tokens: counted.reasoning_tokens,
            logprobs: std::mem::take(&mut self.all[index as usize].scores),
            finish: Some(Finish { cached_tokens: counted.cached_tokens, ..finish }),
            ..Delta::default()
        };
        let is_last = self.prompts.iter().all(|prompt| prompt.is_over);
        Ok(self.output(delta, is_last))
    }

    fn output(&self, delta: Delta, is_last: bool) -> TextOutput {
        TextOutput {
            deltas: vec![delta],
            prompt_tokens: self.prompt_tokens.clone(),
            is_last,
            queue_time: self.queue_time,
        }
    }
}

impl Choosing {
    /// Adds to the news what a delta has.
    fn take(&mut self, delta: TextDelta, news: &mut Delta) -> Result<()> {
        for (text, event) in [
            (delta.reasoning, Event::Reasoning as fn(String) -> Event),
            (std::mem::take(&mut self.echo), Event::Content),
            (delta.content, Event::Content),
        ] {
            if !text.is_empty() {
                news.events.push(event(text));
            }
        }
        for call in delta.calls {
            let known = self.calls.iter().position(|index| *index == call.index);
            let index = known.unwrap_or(self.calls.len()) as u32;
            if known.is_none() {
                if call.name.is_empty() || self.calls.len() == MAX_CALLS {
                    return Err(Error::internal("an engine told of a call without a name"));
                }
                self.calls.push(call.index);
                let id = Some(call.id).filter(|id| !id.is_empty());
                news.events.push(Event::CallBegun { index, id, name: call.name });
            }
            if !call.arguments.is_empty() {
                news.events.push(Event::Arguments { index, text: call.arguments });
            }
        }
        let scored =
            |(bytes, logprob): (&[u8], f32)| Scored { id: 0, bytes: bytes.into(), logprob };
        let scores = delta.logprobs.iter().map(|one| Score {
            token: scored((&one.token, one.logprob)),
            rank: 1 + one.top.iter().filter(|(_, other)| *other > one.logprob).count() as u32,
            top: one.top.iter().map(|(token, logprob)| scored((token, *logprob))).collect(),
        });
        news.logprobs = std::mem::take(&mut self.scores);
        news.logprobs.extend(scores);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
