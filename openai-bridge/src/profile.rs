//! The tensors of a text model: names of Triton's vLLM backend and of TensorRT-LLM in one profile.
//!
//! This table is the whole of it: the model's configuration, the shapes that are accepted and the
//! checks of values are made from it.

use engine::MAX_LOGPROBS;
use tensor::{Datatype, Tensor, TensorSpec};

/// What a value means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// One text a row.
    Prompt,
    /// A flag of the whole request.
    Flag,
    /// A whole number, one for all rows or one a row.
    Integer { least: i128, most: i128 },
    /// A number, one for all rows or one a row.
    Real { range: Range },
    /// Texts for all rows.
    Texts,
    /// Token ids for all rows.
    Tokens,
    /// A JSON object with settings.
    Json,
    /// One text for the whole request.
    Word,
    /// A JSON value for the whole request, as text in a tensor.
    Structure,
}

/// An interval; the lower end may be open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    pub least: f64,
    pub is_least_open: bool,
    pub most: f64,
}

impl Range {
    const fn closed(least: f64, most: f64) -> Self {
        Self { least, is_least_open: false, most }
    }

    const fn above(least: f64, most: f64) -> Self {
        Self { least, is_least_open: true, most }
    }

    pub(crate) fn contains(&self, value: f64) -> bool {
        let is_above = if self.is_least_open { value > self.least } else { value >= self.least };
        is_above && value <= self.most
    }
}

/// An input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    /// The name of the tensor, the parameter and the key in `sampling_parameters`.
    pub name: &'static str,
    /// The name that the setting has here; another one for an alias.
    pub meaning: &'static str,
    pub datatype: Datatype,
    pub kind: Kind,
}

const fn field(name: &'static str, datatype: Datatype, kind: Kind) -> Field {
    Field { name, meaning: name, datatype, kind }
}

const fn alias(name: &'static str, meaning: &'static str, datatype: Datatype, kind: Kind) -> Field {
    Field { name, meaning, datatype, kind }
}

const COUNT: Kind = Kind::Integer { least: 1, most: i32::MAX as i128 };
const CHOICES: Kind = Kind::Integer { least: 1, most: 128 };
const SEED: Kind = Kind::Integer { least: 0, most: u64::MAX as i128 };
const ONE: Kind = Kind::Integer { least: 1, most: 1 };
const ALTERNATIVES: Kind = Kind::Integer { least: 0, most: MAX_LOGPROBS as i128 };
const PENALTY: Kind = Kind::Real { range: Range::closed(-2.0, 2.0) };

/// Every input there is.
pub(crate) const FIELDS: [Field; 58] = [
    field("text_input", Datatype::Bytes, Kind::Prompt),
    field("messages", Datatype::Bytes, Kind::Prompt),
    field("stream", Datatype::Bool, Kind::Flag),
    alias("streaming", "stream", Datatype::Bool, Kind::Flag),
    field("sampling_parameters", Datatype::Bytes, Kind::Json),
    field("exclude_input_in_output", Datatype::Bool, Kind::Flag),
    field("return_finish_reason", Datatype::Bool, Kind::Flag),
    field("return_num_input_tokens", Datatype::Bool, Kind::Flag),
    field("return_num_output_tokens", Datatype::Bool, Kind::Flag),
    field("return_logprobs", Datatype::Bool, Kind::Flag),
    field("return_cumulative_logprob", Datatype::Bool, Kind::Flag),
    field("max_tokens", Datatype::Int32, COUNT),
    field("min_tokens", Datatype::Int32, Kind::Integer { least: 0, most: i32::MAX as i128 }),
    field("temperature", Datatype::Fp32, Kind::Real { range: Range::closed(0.0, 2.0) }),
    field("top_p", Datatype::Fp32, Kind::Real { range: Range::above(0.0, 1.0) }),
    field("top_k", Datatype::Int32, Kind::Integer { least: -1, most: i32::MAX as i128 }),
    field("min_p", Datatype::Fp32, Kind::Real { range: Range::closed(0.0, 1.0) }),
    field("repetition_penalty", Datatype::Fp32, Kind::Real { range: Range::closed(0.01, 10.0) }),
    field("presence_penalty", Datatype::Fp32, PENALTY),
    field("frequency_penalty", Datatype::Fp32, PENALTY),
    field("length_penalty", Datatype::Fp32, Kind::Real { range: Range::closed(1.0, 1.0) }),
    field("seed", Datatype::Uint64, SEED),
    alias("random_seed", "seed", Datatype::Uint64, SEED),
    field("n", Datatype::Int32, CHOICES),
    alias("num_return_sequences", "n", Datatype::Int32, CHOICES),
    field("best_of", Datatype::Int32, ONE),
    field("beam_width", Datatype::Int32, ONE),
    field("stop", Datatype::Bytes, Kind::Texts),
    alias("stop_words", "stop", Datatype::Bytes, Kind::Texts),
    field("stop_token_ids", Datatype::Int32, Kind::Tokens),
    alias("end_id", "stop_token_ids", Datatype::Int32, Kind::Tokens),
    field("ignore_eos", Datatype::Bool, Kind::Flag),
    field("include_stop_str_in_output", Datatype::Bool, Kind::Flag),
    field("skip_special_tokens", Datatype::Bool, Kind::Flag),
    field("logprobs", Datatype::Int32, ALTERNATIVES),
    field("prompt_logprobs", Datatype::Int32, ALTERNATIVES),
    field("logit_bias", Datatype::Bytes, Kind::Structure),
    field("echo", Datatype::Bool, Kind::Flag),
    field("tools", Datatype::Bytes, Kind::Structure),
    field("tool_choice", Datatype::Bytes, Kind::Structure),
    field("parallel_tool_calls", Datatype::Bool, Kind::Flag),
    field("response_format", Datatype::Bytes, Kind::Structure),
    field("guided_json", Datatype::Bytes, Kind::Structure),
    field("guided_regex", Datatype::Bytes, Kind::Word),
    field("guided_grammar", Datatype::Bytes, Kind::Word),
    field("guided_choice", Datatype::Bytes, Kind::Texts),
    field("structured_outputs", Datatype::Bytes, Kind::Structure),
    field("chat_template_kwargs", Datatype::Bytes, Kind::Structure),
    field("reasoning_effort", Datatype::Bytes, Kind::Word),
    field("add_generation_prompt", Datatype::Bool, Kind::Flag),
    field("continue_final_message", Datatype::Bool, Kind::Flag),
    field("max_completion_tokens", Datatype::Int32, COUNT),
    field("return_token_ids", Datatype::Bool, Kind::Flag),
    field("input_ids", Datatype::Int32, Kind::Tokens),
    field("query", Datatype::Bytes, Kind::Word),
    field("documents", Datatype::Bytes, Kind::Texts),
    field("dimensions", Datatype::Int32, COUNT),
    field("truncate_prompt_tokens", Datatype::Int32, COUNT),
];

/// The outputs; [`crate::Answer`] makes them in this order.
pub(crate) const TEXT_OUTPUT: &str = "text_output";
pub(crate) const FINISH_REASON: &str = "finish_reason";
pub(crate) const CUMULATIVE_LOGPROB: &str = "cumulative_logprob";
pub(crate) const LOGPROBS: &str = "logprobs";
pub(crate) const NUM_INPUT_TOKENS: &str = "num_input_tokens";
pub(crate) const NUM_OUTPUT_TOKENS: &str = "num_output_tokens";
pub(crate) const NUM_CACHED_TOKENS: &str = "num_cached_tokens";
pub(crate) const NUM_REASONING_TOKENS: &str = "num_reasoning_tokens";
pub(crate) const REASONING_CONTENT: &str = "reasoning_content";
pub(crate) const TOOL_CALLS: &str = "tool_calls";
pub(crate) const TOKEN_IDS: &str = "token_ids";
pub(crate) const PROMPT_LOGPROBS: &str = "prompt_logprobs";
pub(crate) const EMBEDDING: &str = "embedding";
pub(crate) const RELEVANCE_SCORE: &str = "relevance_score";

/// What a model that makes vectors and no texts has of the inputs and outputs.
pub(crate) const OF_ENCODERS: [&str; 8] = [
    "text_input",
    "input_ids",
    "query",
    "documents",
    "dimensions",
    "truncate_prompt_tokens",
    EMBEDDING,
    RELEVANCE_SCORE,
];

/// Returns the field of a name.
pub(crate) fn find(name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name)
}

/// Returns the declared inputs.
pub(crate) fn inputs() -> Vec<TensorSpec> {
    let dims = |kind| match kind {
        Kind::Flag | Kind::Json | Kind::Word | Kind::Structure => [1],
        _ => [-1],
    };
    FIELDS
        .iter()
        .map(|field| TensorSpec::new(field.name, field.datatype, dims(field.kind)).optional())
        .collect()
}

/// Returns the declared outputs.
pub(crate) fn outputs() -> Vec<TensorSpec> {
    [
        (TEXT_OUTPUT, Datatype::Bytes),
        (FINISH_REASON, Datatype::Bytes),
        (CUMULATIVE_LOGPROB, Datatype::Fp32),
        (LOGPROBS, Datatype::Bytes),
        (NUM_INPUT_TOKENS, Datatype::Uint32),
        (NUM_OUTPUT_TOKENS, Datatype::Uint32),
        (NUM_CACHED_TOKENS, Datatype::Uint32),
        (NUM_REASONING_TOKENS, Datatype::Uint32),
        (REASONING_CONTENT, Datatype::Bytes),
        (TOOL_CALLS, Datatype::Bytes),
        (TOKEN_IDS, Datatype::Bytes),
        (PROMPT_LOGPROBS, Datatype::Bytes),
        (RELEVANCE_SCORE, Datatype::Fp32),
    ]
    .map(|(name, datatype)| TensorSpec::new(name, datatype, [-1]))
    .into_iter()
    .chain([TensorSpec::new(EMBEDDING, Datatype::Fp32, [-1, -1])])
    .collect()
}

/// Brings the shapes that clients of the two backends send to the declared ones: `[n,1]` to `[n]`
/// for what has one value a row, `[1,k]` to `[k]` for lists.
pub(crate) fn normalize(inputs: &mut [Tensor]) {
    for input in inputs {
        let Some(field) = find(&input.name) else {
            continue;
        };
        match (field.kind, &input.shape[..]) {
            (Kind::Texts | Kind::Tokens, [1, k]) => input.shape = vec![*k],
            (Kind::Texts | Kind::Tokens, _) => {}
            (_, [n, 1]) => input.shape = vec![*n],
            _ => {}
        }
    }
}
