//! Text requests over tensors: what the inputs ask for and which outputs answer them.

use engine::{Error, InferRequest, Result};
use serde_json::Value as Json;

use crate::answer::Wanted;
use crate::chat;
use crate::completion::{Completion, DEFAULT_MAX_TOKENS, Input, Prompts};
use crate::profile;
use crate::settings::{Settings, texts};
use crate::{Answer, TextBridge};

/// What a tensor request to a text model asks for.
#[derive(Debug)]
pub enum TensorRequest {
    /// A text for each prompt, and the answer that will hold it.
    Generate(Box<Completion>, Box<Answer>),
    /// A vector for each text.
    Embed(Inputs),
    /// A score for each document.
    Rerank {
        /// What is looked for.
        query: String,
        /// Where.
        documents: Vec<String>,
        /// The most tokens of each text; longer ones are cut.
        truncation: Option<usize>,
    },
}

/// Texts to be embedded.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// The texts, as texts or as tokens.
    pub texts: Vec<Input>,
    /// Only so many first dimensions are wanted.
    pub dimensions: Option<usize>,
    /// The most tokens of each text; longer ones are cut.
    pub truncation: Option<usize>,
}

impl TextBridge {
    /// Reads a request whose inputs were validated against [`config`](TextBridge::config).
    ///
    /// Errors: a setting of the wrong type or out of range, by name; no prompt or two.
    pub fn parse(&self, request: &InferRequest) -> Result<TensorRequest> {
        TensorRequest::parse(self, request)
    }
}

impl TensorRequest {
    /// Reads a request whose inputs were validated against the bridge's configuration.
    pub(crate) fn parse(bridge: &TextBridge, request: &InferRequest) -> Result<Self> {
        let settings = Settings::collect(request)?;
        let is_named = |name: &str| request.outputs.iter().any(|output| output.name == name);
        if settings.word("query").is_some() || is_named(profile::RELEVANCE_SCORE) {
            return rerank(&settings);
        }
        if bridge.is_encoder() || is_named(profile::EMBEDDING) {
            return embed(request, &settings);
        }
        let prompts = prompts(bridge, request, &settings)?;
        let streams = settings.flag("stream");
        let is_streaming = streams == Some(true);
        let excludes = settings.flag("exclude_input_in_output");
        // vLLM's backend puts the prompt in front of one response, and its clients say `stream`.
        let has_echo = match (excludes, streams) {
            (Some(excludes), _) => !excludes,
            (None, Some(streams)) => !streams,
            (None, None) => bridge.rules().has_echo,
        };
        let is_chat = matches!(prompts, Prompts::Chats(_));
        let mut wanted = Wanted::read(request, &settings, is_chat);
        if wanted.logprobs && bridge.takes_texts() {
            let why = "names tokens by their ids, which the model's workers do not tell";
            return Err(Error::invalid(format!("output `logprobs`: {why}")));
        }
        let mut completion = Completion::new(settings, prompts, DEFAULT_MAX_TOKENS)?;
        if is_streaming && has_echo {
            return Err(Error::invalid(
                "Error generating stream: When streaming, `exclude_input_in_output` = False is \
                 not allowed.",
            ));
        }
        completion.has_echo = !is_chat && (has_echo || completion.has_echo);
        wanted.lists_logprobs = completion.logprobs.is_some();
        let has_logprobs = wanted.logprobs && wanted.lists_logprobs || wanted.cumulative_logprob;
        completion.logprobs = has_logprobs.then(|| completion.logprobs.unwrap_or(0));
        completion.has_token_ids |= wanted.token_ids;
        let answer = Answer::new(&completion, wanted, is_streaming);
        Ok(Self::Generate(Box::new(completion), Box::new(answer)))
    }

    /// Returns whether the client wants tokens as they come, in many responses.
    pub fn is_streaming(&self) -> bool {
        matches!(self, Self::Generate(_, answer) if answer.is_streaming())
    }
}

fn rerank(settings: &Settings) -> Result<TensorRequest> {
    settings.check(1)?;
    let (query, documents) = (settings.word("query"), settings.texts("documents"));
    match query {
        Some(query) if !documents.is_empty() => {
            let (query, truncation) = (query.to_owned(), truncation(settings));
            Ok(TensorRequest::Rerank { query, documents, truncation })
        }
        Some(_) => Err(Error::invalid("input `documents`: expected at least 1 document, got 0")),
        None => {
            Err(Error::invalid("output `relevance_score` needs inputs `query` and `documents`"))
        }
    }
}

fn embed(request: &InferRequest, settings: &Settings) -> Result<TensorRequest> {
    if request.outputs.len() > 1 {
        return Err(Error::invalid("output `embedding` comes alone, in a request of its own"));
    }
    settings.check(1)?;
    let texts: Vec<Input> = match (request.input("text_input"), settings.tokens("input_ids")) {
        (Some(input), tokens) if tokens.is_empty() => {
            texts(input)?.into_iter().map(Input::Text).collect()
        }
        (None, tokens) if !tokens.is_empty() => vec![Input::Tokens(tokens)],
        _ => {
            let text = "output `embedding` needs either input `text_input` or input `input_ids`";
            return Err(Error::invalid(text));
        }
    };
    let dimensions = settings.integer("dimensions", 0).map(|count| count as usize);
    Ok(TensorRequest::Embed(Inputs { texts, dimensions, truncation: truncation(settings) }))
}

fn truncation(settings: &Settings) -> Option<usize> {
    settings.integer("truncate_prompt_tokens", 0).map(|count| count as usize)
}

fn prompts(bridge: &TextBridge, request: &InferRequest, settings: &Settings) -> Result<Prompts> {
    let tokens = settings.tokens("input_ids");
    let (text, chats) = (request.input("text_input"), request.input("messages"));
    match (text, chats, tokens.is_empty()) {
        (Some(input), None, true) => Ok(Prompts::Texts(texts(input)?)),
        (None, Some(input), true) => {
            let conversations = texts(input)?;
            let conversations: Vec<Vec<Json>> =
                conversations.iter().map(|text| chat::messages(text)).collect::<Result<_>>()?;
            settings.check(conversations.len())?;
            bridge.chats(settings, conversations).map_err(|error| match error.param() {
                Some(param) if param.starts_with("messages") => {
                    error.with_prefix("input `messages`: ")
                }
                _ => error,
            })
        }
        (None, None, false) => Ok(Prompts::Tokens(vec![tokens])),
        (None, None, true) => {
            Err(Error::invalid("expected input `text_input` or input `messages`, got neither"))
        }
        (Some(_), Some(_), _) => {
            Err(Error::invalid("expected input `text_input` or input `messages`, got both"))
        }
        _ => Err(Error::invalid("input `input_ids`: is itself the prompt, got another one too")),
    }
}

impl Wanted {
    fn read(request: &InferRequest, settings: &Settings, is_chat: bool) -> Self {
        let named = |name: &str| request.outputs.iter().any(|output| output.name == name);
        let has_names = !request.outputs.is_empty();
        let flag = |name: &str| settings.flag(name);
        // An output is given if it is asked for by its flag or by its name; names, if there are
        // any, say which outputs come at all.
        let asked = |flag: Option<bool>, name: &str| match has_names {
            true => named(name),
            false => flag.unwrap_or(false),
        };
        let has_tools = settings.structure("tools").is_some();
        let has_prompt_scores = settings.integer("prompt_logprobs", 0).is_some();
        Self {
            text: !has_names || named(profile::TEXT_OUTPUT),
            finish_reason: asked(flag("return_finish_reason"), profile::FINISH_REASON),
            cumulative_logprob: asked(
                flag("return_cumulative_logprob"),
                profile::CUMULATIVE_LOGPROB,
            ),
            logprobs: asked(flag("return_logprobs"), profile::LOGPROBS),
            lists_logprobs: false,
            num_input_tokens: asked(flag("return_num_input_tokens"), profile::NUM_INPUT_TOKENS),
            num_output_tokens: asked(flag("return_num_output_tokens"), profile::NUM_OUTPUT_TOKENS),
            num_cached_tokens: asked(None, profile::NUM_CACHED_TOKENS),
            num_reasoning_tokens: asked(None, profile::NUM_REASONING_TOKENS),
            reasoning_content: asked(Some(is_chat), profile::REASONING_CONTENT),
            tool_calls: asked(Some(is_chat && has_tools), profile::TOOL_CALLS),
            token_ids: asked(flag("return_token_ids"), profile::TOKEN_IDS),
            prompt_logprobs: asked(Some(has_prompt_scores), profile::PROMPT_LOGPROBS),
        }
    }
}
