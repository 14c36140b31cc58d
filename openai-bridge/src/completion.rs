//! What a request for text asks for, checked: prompts, settings of each row, how to read the text.

use std::num::NonZeroU32;

use engine::{Constraint, Error, MAX_ANSWER_SCORES, Result, Sampling, StopConditions, TokenId};
use serde_json::{Map, Value as Json};

use crate::chat::Chat;
use crate::settings::Settings;
use crate::tools::Choice;

/// Tokens that a continuation may have when a tensor request says nothing.
pub const DEFAULT_MAX_TOKENS: u32 = 256;

/// Most continuations of one request: prompts times `n`.
pub(crate) const MAX_CONTINUATIONS: usize = 256;

/// Most stop texts, and most stop tokens, of one request.
const MAX_STOPS: usize = 64;

/// Longest stop text, in bytes.
const MAX_STOP_BYTES: usize = 1024;

/// Most tokens of one request that have a bias.
const MAX_BIASES: usize = 1024;

/// A checked request for text, whatever door it came through.
#[derive(Clone, Debug)]
pub struct Completion {
    pub(crate) prompts: Prompts,
    pub(crate) rows: Vec<Row>,
    pub(crate) choices: NonZeroU32,
    /// The prompt is told before the text.
    pub(crate) has_echo: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) has_stop_in_output: bool,
    pub(crate) shows_special_tokens: bool,
    pub(crate) logprobs: Option<u32>,
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) has_token_ids: bool,
    /// What every text has to look like.
    pub(crate) constraint: Option<Constraint>,
    /// The setting that the constraint is from, or the tools.
    pub(crate) constraint_field: &'static str,
    /// Only so many of a prompt's last tokens are taken.
    pub(crate) truncation: Option<usize>,
    /// What the client set, for engines that take texts.
    pub(crate) settings: Settings,
    /// What it set that only such an engine knows.
    pub(crate) extras: Map<String, Json>,
}

/// The prompts, one a row.
#[derive(Clone, Debug)]
pub(crate) enum Prompts {
    /// Plain texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<Vec<TokenId>>),
    /// Conversations.
    Chats(Vec<Chat>),
}

/// The settings of one row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub sampling: Sampling,
    pub stop: StopConditions,
}

impl Completion {
    /// Makes a request of checked settings; `max_tokens` stands where they say nothing.
    ///
    /// Errors: settings that do not fit the prompts or one another, by name.
    pub(crate) fn new(settings: Settings, prompts: Prompts, max_tokens: u32) -> Result<Self> {
        let count = prompts.len();
        if count == 0 {
            return Err(Error::invalid("expected at least 1 prompt, got 0"));
        }
        settings.check(count)?;
        let choices = choices(&settings, count)?;
        let (field, constraint) = crate::constraint::read(&settings)?.unzip();
        let common = (biases(&settings)?, stop_tokens(&settings)?);
        let row = |row| Row::read(&settings, row, max_tokens, &common);
        let number = |name| settings.integer(name, 0).map(|count| count as u32);
        Ok(Self {
            rows: (0..count).map(row).collect::<Result<_>>()?,
            choices,
            has_echo: settings.flag("echo").unwrap_or(false),
            stops: stops(&settings)?,
            has_stop_in_output: settings.flag("include_stop_str_in_output").unwrap_or(false),
            shows_special_tokens: !settings.flag("skip_special_tokens").unwrap_or(true),
            logprobs: number("logprobs"),
            prompt_logprobs: number("prompt_logprobs"),
            has_token_ids: settings.flag("return_token_ids").unwrap_or(false),
            constraint,
            constraint_field: field.unwrap_or("tool_choice"),
            truncation: number("truncate_prompt_tokens").map(|count| count as usize),
            prompts,
            settings,
            extras: Map::new(),
        })
    }

    /// Returns how many continuations there are: prompts times choices.
    pub fn continuations(&self) -> usize {
        self.rows.len() * self.choices.get() as usize
    }

    /// Checks how many log probabilities the answer may have. A context of 0 is not known.
    ///
    /// Errors: more than [`MAX_ANSWER_SCORES`].
    pub(crate) fn check_scores(&self, context_length: u32) -> Result<()> {
        let Some(top) = self.logprobs else { return Ok(()) };
        // One text ends by itself where its context does, and its client need not know that.
        if context_length == 0 && self.continuations() == 1 {
            return Ok(());
        }
        let room = if context_length == 0 { u32::MAX } else { context_length };
        let tokens = self.rows.iter().map(|row| u64::from(row.stop.max_tokens.min(room)));
        let (tokens, choices, each) =
            (tokens.sum::<u64>(), u64::from(self.choices.get()), u64::from(top) + 1);
        if tokens.saturating_mul(choices).saturating_mul(each) <= MAX_ANSWER_SCORES {
            return Ok(());
        }
        let text = format!(
            "`max_tokens`: {tokens} tokens of all prompts, times {choices} of `n`, times {each} \
             for `logprobs` are more than {MAX_ANSWER_SCORES} log probabilities"
        );
        Err(Error::invalid(text).with_param("max_tokens"))
    }

    /// Returns whether the client named the tool to be called.
    pub(crate) fn names_a_call(&self) -> bool {
        self.chats().iter().any(|chat| matches!(chat.tools.choice, Choice::Named(_)))
    }

    /// Returns whether no more than one call is welcome.
    pub(crate) fn is_single_call(&self) -> bool {
        self.chats().iter().any(|chat| !chat.tools.all.is_empty() && !chat.tools.is_parallel)
    }

    /// Returns whether the texts are held to be calls and nothing else.
    pub(crate) fn is_calls_only(&self) -> bool {
        let is_held = |choice: &Choice| matches!(choice, Choice::Named(_) | Choice::Required);
        self.chats().iter().any(|chat| is_held(&chat.tools.choice))
    }

    fn chats(&self) -> &[Chat] {
        match &self.prompts {
            Prompts::Chats(chats) => chats,
            Prompts::Texts(_) | Prompts::Tokens(_) => &[],
        }
    }

    /// Returns how many prompts there are.
    pub fn prompts(&self) -> usize {
        self.rows.len()
    }

    /// Returns the setting that the constraint on the texts is from, for errors about it.
    pub fn constraint_field(&self) -> &'static str {
        self.constraint_field
    }

    /// Says by which name clients of an API know the field that the constraint is from.
    pub(crate) fn name_format(&mut self, name: &'static str) {
        if self.constraint_field == "response_format" {
            self.constraint_field = name;
        }
    }

    /// Returns the size of the prompts, in bytes of text or four a token.
    pub fn size(&self) -> usize {
        match &self.prompts {
            Prompts::Texts(texts) => texts.iter().map(String::len).sum(),
            Prompts::Tokens(lists) => lists.iter().map(|tokens| tokens.len() * 4).sum(),
            Prompts::Chats(chats) => chats.iter().map(|chat| chat.size).sum(),
        }
    }
}

impl Prompts {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Texts(prompts) => prompts.len(),
            Self::Tokens(prompts) => prompts.len(),
            Self::Chats(prompts) => prompts.len(),
        }
    }
}

impl Row {
    fn read(
        settings: &Settings,
        row: usize,
        max_tokens: u32,
        (biases, stop_tokens): &(Vec<(TokenId, f32)>, Vec<TokenId>),
    ) -> Result<Self> {
        let default = Sampling::default();
        let real = |name, default| settings.real(name, row).unwrap_or(default);
        let asked = settings.integer("max_completion_tokens", row);
        let asked = asked.or(settings.integer("max_tokens", row));
        let has_prompt_scores = settings.integer("prompt_logprobs", 0).is_some();
        let max_tokens = asked.map_or(max_tokens, |count| count as u32);
        if max_tokens == 0 && !has_prompt_scores {
            return Err(settings.wrong("max_tokens", "expected at least 1, got 0"));
        }
        let min_tokens = settings.integer("min_tokens", row).unwrap_or(0) as u32;
        if min_tokens > max_tokens {
            let why =
                format!("expected at most `max_tokens`, which is {max_tokens}, got {min_tokens}");
            return Err(settings.wrong("min_tokens", &why));
        }
        let sampling = Sampling {
            // What vLLM and the OpenAI API do when nothing is said.
            temperature: real("temperature", 1.0),
            // -1 and 0 both mean all tokens.
            top_k: settings.integer("top_k", row).unwrap_or(0).max(0) as u32,
            // What is above 0 stays above 0.
            top_p: real("top_p", default.top_p).max(f32::MIN_POSITIVE),
            min_p: real("min_p", default.min_p),
            repetition_penalty: real("repetition_penalty", default.repetition_penalty),
            presence_penalty: real("presence_penalty", default.presence_penalty),
            frequency_penalty: real("frequency_penalty", default.frequency_penalty),
            seed: settings.integer("seed", row).map(|seed| seed as u64),
            logit_bias: biases.clone(),
        };
        let stop = StopConditions {
            max_tokens,
            min_tokens,
            stop_token_ids: stop_tokens.clone(),
            ignore_eos: settings.flag("ignore_eos").unwrap_or(false),
        };
        Ok(Self { sampling, stop })
    }
}

fn choices(settings: &Settings, rows: usize) -> Result<NonZeroU32> {
    let choices = settings.integer("n", 0).unwrap_or(1) as u32;
    if (1..rows).any(|row| settings.integer("n", row).unwrap_or(1) as u32 != choices) {
        return Err(settings.wrong("n", "expected the same number for all prompts"));
    }
    let all = rows.saturating_mul(choices as usize);
    if all > MAX_CONTINUATIONS {
        return Err(Error::invalid(format!(
            "{rows} prompts with {choices} continuations each are {all}, \
             expected at most {MAX_CONTINUATIONS}"
        ))
        .with_param("n"));
    }
    Ok(NonZeroU32::new(choices).unwrap_or(NonZeroU32::MIN))
}

fn stop_tokens(settings: &Settings) -> Result<Vec<TokenId>> {
    let tokens = settings.tokens("stop_token_ids");
    match tokens.len() {
        0..=MAX_STOPS => Ok(tokens),
        got => {
            let why = format!("expected at most {MAX_STOPS} tokens, got {got}");
            Err(settings.wrong("stop_token_ids", &why))
        }
    }
}

fn stops(settings: &Settings) -> Result<Vec<String>> {
    let stops = settings.texts("stop");
    if stops.len() > MAX_STOPS {
        let why = format!("expected at most {MAX_STOPS} texts, got {}", stops.len());
        return Err(settings.wrong("stop", &why));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        let why = format!("expected texts of at most {MAX_STOP_BYTES} bytes, got {}", long.len());
        return Err(settings.wrong("stop", &why));
    }
    // An empty text stops nothing: TensorRT-LLM's clients fill rows up with it.
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

/// Reads `{"token id": bias}`.
fn biases(settings: &Settings) -> Result<Vec<(TokenId, f32)>> {
    let wrong = |why: &str| settings.wrong("logit_bias", why);
    let object = match settings.structure("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Json::Object(object)) => object,
        Some(_) => return Err(wrong("expected an object of token ids and numbers")),
    };
    if object.len() > MAX_BIASES {
        return Err(wrong(&format!("expected at most {MAX_BIASES} tokens, got {}", object.len())));
    }
    let bias = |(key, value): (&String, &Json)| {
        let token = key.trim().parse().map_err(|_| wrong(&format!("`{key}` is no token id")))?;
        let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| {
            wrong(&format!("token {token}: expected a number from -100 to 100, got {value}"))
        })?;
        Ok((token, bias as f32))
    };
    object.iter().map(bias).collect()
}

/// One text.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// As text.
    Text(String),
    /// As token ids.
    Tokens(Vec<TokenId>),
}
