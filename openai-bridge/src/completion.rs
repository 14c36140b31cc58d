//! What a text request asks for, checked: prompts, settings of each row, wanted outputs.

use std::num::NonZeroU32;

use engine::{Error, InferRequest, Result, Sampling, StopConditions, TokenId};

use crate::profile;
use crate::settings::{Settings, texts};

/// Tokens that a continuation may have when nothing is said.
pub const DEFAULT_MAX_TOKENS: u32 = 256;

/// Most continuations of one request: prompts times `n`.
const MAX_CONTINUATIONS: usize = 256;

/// Most stop texts, and most stop tokens, of one request.
const MAX_STOPS: usize = 64;

/// Longest stop text, in bytes.
const MAX_STOP_BYTES: usize = 1024;

/// A checked text request.
#[derive(Clone, Debug)]
pub struct Completion {
    pub(crate) prompts: Prompts,
    pub(crate) rows: Vec<Row>,
    pub(crate) choices: NonZeroU32,
    pub(crate) is_streaming: bool,
    /// The prompt is put in front of each text.
    pub(crate) has_prompt_in_output: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) has_stop_in_output: bool,
    pub(crate) shows_special_tokens: bool,
    pub(crate) logprobs: Option<u32>,
    pub(crate) wanted: Wanted,
}

/// The prompts, one a row.
#[derive(Clone, Debug)]
pub(crate) enum Prompts {
    /// Plain texts.
    Texts(Vec<String>),
    /// Conversations as JSON.
    Messages(Vec<String>),
}

/// The settings of one row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub sampling: Sampling,
    pub stop: StopConditions,
}

/// The outputs of a response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub text: bool,
    pub finish_reason: bool,
    /// The word for "goes on" is `None`, as in vLLM's backend, instead of nothing.
    pub says_none: bool,
    pub cumulative_logprob: bool,
    pub logprobs: bool,
    pub num_input_tokens: bool,
    pub num_output_tokens: bool,
}

impl Completion {
    /// Reads a request whose tensors were validated.
    pub(crate) fn parse(request: &InferRequest) -> Result<Self> {
        let settings = Settings::collect(request)?;
        let prompts = Prompts::read(request)?;
        let count = prompts.len();
        settings.check(count)?;
        let choices = choices(&settings, count)?;
        let is_streaming = settings.flag("stream").unwrap_or(false);
        let excludes = settings.flag("exclude_input_in_output");
        if is_streaming && excludes == Some(false) {
            return Err(Error::invalid(
                "Error generating stream: When streaming, `exclude_input_in_output` = False is \
                 not allowed.",
            ));
        }
        let is_plain = matches!(prompts, Prompts::Texts(_));
        let wanted = Wanted::read(request, &settings);
        let asked = settings.integer("logprobs", 0).map(|count| count as u32);
        let has_logprobs = wanted.logprobs || wanted.cumulative_logprob;
        let rows = (0..count).map(|row| Row::read(&settings, row)).collect::<Result<_>>()?;
        Ok(Self {
            rows,
            choices,
            is_streaming,
            has_prompt_in_output: is_plain && !is_streaming && !excludes.unwrap_or(false),
            stops: stops(&settings)?,
            has_stop_in_output: settings.flag("include_stop_str_in_output").unwrap_or(false),
            shows_special_tokens: !settings.flag("skip_special_tokens").unwrap_or(true),
            logprobs: has_logprobs.then(|| asked.unwrap_or(0)),
            wanted,
            prompts,
        })
    }

    /// Returns whether the client wants tokens as they come, in many responses.
    pub fn is_streaming(&self) -> bool {
        self.is_streaming
    }
}

impl Prompts {
    fn read(request: &InferRequest) -> Result<Self> {
        let prompts = match (request.input("text_input"), request.input("messages")) {
            (Some(input), None) => Self::Texts(texts(input)?),
            (None, Some(input)) => Self::Messages(texts(input)?),
            (None, None) => {
                let text = "expected input `text_input` or input `messages`, got neither";
                return Err(Error::invalid(text));
            }
            (Some(_), Some(_)) => {
                let text = "expected input `text_input` or input `messages`, got both";
                return Err(Error::invalid(text));
            }
        };
        match prompts.len() {
            0 => Err(Error::invalid("expected at least 1 prompt, got 0")),
            _ => Ok(prompts),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Texts(prompts) | Self::Messages(prompts) => prompts.len(),
        }
    }
}

impl Row {
    fn read(settings: &Settings, row: usize) -> Result<Self> {
        let default = Sampling::default();
        let real = |name, default| settings.real(name, row).unwrap_or(default);
        let max_tokens = settings.integer("max_tokens", row);
        let max_tokens = max_tokens.map_or(DEFAULT_MAX_TOKENS, |count| count as u32);
        let min_tokens = settings.integer("min_tokens", row).unwrap_or(0) as u32;
        if min_tokens > max_tokens {
            return Err(Error::invalid(format!(
                "{}: expected at most `max_tokens`, which is {max_tokens}, got {min_tokens}",
                settings.spell("min_tokens")
            )));
        }
        let sampling = Sampling {
            // What vLLM and the OpenAI API do when nothing is said.
            temperature: real("temperature", 1.0),
            // -1 and 0 both mean all tokens.
            top_k: settings.integer("top_k", row).unwrap_or(0).max(0) as u32,
            top_p: real("top_p", default.top_p),
            min_p: real("min_p", default.min_p),
            repetition_penalty: real("repetition_penalty", default.repetition_penalty),
            presence_penalty: real("presence_penalty", default.presence_penalty),
            frequency_penalty: real("frequency_penalty", default.frequency_penalty),
            seed: settings.integer("seed", row).map(|seed| seed as u64),
            logit_bias: Vec::new(),
        };
        let stop = StopConditions {
            max_tokens,
            min_tokens,
            stop_token_ids: stop_tokens(settings)?,
            ignore_eos: settings.flag("ignore_eos").unwrap_or(false),
        };
        Ok(Self { sampling, stop })
    }
}

impl Wanted {
    fn read(request: &InferRequest, settings: &Settings) -> Self {
        let named = |name: &str| request.outputs.iter().any(|output| output.name == name);
        let has_names = !request.outputs.is_empty();
        let flag = |name: &str| settings.flag(name);
        // An output is given if it is asked for by its flag or by its name; names, if there are
        // any, say which outputs come at all.
        let asked = |flag: Option<bool>, name: &str| match has_names {
            true => named(name),
            false => flag.unwrap_or(false),
        };
        Self {
            text: !has_names || named(profile::TEXT_OUTPUT),
            finish_reason: match has_names {
                true => named(profile::FINISH_REASON),
                false => flag("return_finish_reason").unwrap_or(true),
            },
            says_none: flag("return_finish_reason") == Some(true),
            cumulative_logprob: asked(
                flag("return_cumulative_logprob"),
                profile::CUMULATIVE_LOGPROB,
            ),
            logprobs: asked(flag("return_logprobs"), profile::LOGPROBS),
            num_input_tokens: asked(flag("return_num_input_tokens"), profile::NUM_INPUT_TOKENS),
            num_output_tokens: asked(flag("return_num_output_tokens"), profile::NUM_OUTPUT_TOKENS),
        }
    }
}

fn choices(settings: &Settings, rows: usize) -> Result<NonZeroU32> {
    let choices = settings.integer("n", 0).unwrap_or(1) as u32;
    if (1..rows).any(|row| settings.integer("n", row).unwrap_or(1) as u32 != choices) {
        let name = settings.spell("n");
        return Err(Error::invalid(format!("{name}: expected the same number for all prompts")));
    }
    let all = rows.saturating_mul(choices as usize);
    if all > MAX_CONTINUATIONS {
        return Err(Error::invalid(format!(
            "{rows} prompts with {choices} continuations each are {all}, \
             expected at most {MAX_CONTINUATIONS}"
        )));
    }
    Ok(NonZeroU32::new(choices).unwrap_or(NonZeroU32::MIN))
}

fn stop_tokens(settings: &Settings) -> Result<Vec<TokenId>> {
    let tokens = settings.tokens("stop_token_ids");
    match tokens.len() {
        0..=MAX_STOPS => Ok(tokens),
        got => {
            let name = settings.spell("stop_token_ids");
            Err(Error::invalid(format!("{name}: expected at most {MAX_STOPS} tokens, got {got}")))
        }
    }
}

fn stops(settings: &Settings) -> Result<Vec<String>> {
    let stops = settings.texts("stop");
    let name = settings.spell("stop");
    if stops.len() > MAX_STOPS {
        let got = stops.len();
        let text = format!("{name}: expected at most {MAX_STOPS} texts, got {got}");
        return Err(Error::invalid(text));
    }
    if let Some(long) = stops.iter().find(|stop| stop.len() > MAX_STOP_BYTES) {
        return Err(Error::invalid(format!(
            "{name}: expected texts of at most {MAX_STOP_BYTES} bytes, got {}",
            long.len()
        )));
    }
    // An empty text stops nothing: TensorRT-LLM's clients fill rows up with it.
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}
