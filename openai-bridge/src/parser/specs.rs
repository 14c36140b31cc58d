//! What each format looks like: its markers, and the machine that reads it.

use std::sync::Arc;

use super::call::Rules;
use super::harmony;
use super::marked::{Header, Marked, Spec};
use super::pythonic::{self, Pythonic};
use super::reasoning::Marks;
use super::tagged::{Tagged, Tags};
use super::{Machine, ReasoningFormat, Schemas, ToolFormat};

const HERMES: Spec =
    Spec { opens: &["<tool_call>"], closes: &["</tool_call>"], has_objects: true, ..Spec::NONE };

const LLAMA: Spec = Spec {
    opens: &["<|python_tag|>"],
    starts: &['{'],
    has_objects: true,
    rules: Rules { is_wary: true, takes_id: false },
    ..Spec::NONE
};

const MISTRAL: Spec = Spec {
    opens: &["[TOOL_CALLS]"],
    header: Some(mistral_header),
    has_objects: true,
    rules: Rules { is_wary: false, takes_id: true },
    ..Spec::NONE
};

const PHI: Spec = Spec { opens: &["functools["], has_objects: true, ..Spec::NONE };

const GRANITE: Spec = Spec {
    opens: &["<|tool_call|>", "<tool_call>"],
    closes: &["</tool_call>"],
    has_objects: true,
    ..Spec::NONE
};

const JAMBA: Spec =
    Spec { opens: &["<tool_calls>"], closes: &["</tool_calls>"], has_objects: true, ..Spec::NONE };

const NEMOTRON: Spec =
    Spec { opens: &["<TOOLCALL>"], closes: &["</TOOLCALL>"], has_objects: true, ..Spec::NONE };

const DEEPSEEK: Spec = Spec {
    opens: &["<｜tool▁calls▁begin｜>"],
    begins: &["<｜tool▁call▁begin｜>"],
    ends: &["<｜tool▁call▁end｜>"],
    closes: &["<｜tool▁calls▁end｜>"],
    header: Some(deepseek_v3_header),
    ..Spec::NONE
};

const KIMI: Spec = Spec {
    opens: &["<|tool_calls_section_begin|>"],
    begins: &["<|tool_call_begin|>"],
    ends: &["<|tool_call_end|>"],
    closes: &["<|tool_calls_section_end|>"],
    header: Some(kimi_header),
    ..Spec::NONE
};

/// The list that is the whole text: the server asked for it.
pub(super) const ARRAY: Spec = Spec { starts: &['[', '{'], has_objects: true, ..Spec::NONE };

const QWEN: Tags = Tags {
    opens: &["<tool_call>", "<function="],
    closes: &["</tool_call>"],
    name: Some("<function="),
    name_ends: &[">"],
    key: ("<parameter=", ">"),
    value: None,
    value_end: "</parameter>",
    call_end: "</function>",
    trims: true,
    says_type: false,
};

const SEED: Tags =
    Tags { opens: &["<seed:tool_call>", "<function="], closes: &["</seed:tool_call>"], ..QWEN };

const MINIMAX: Tags = Tags {
    opens: &["<minimax:tool_call>"],
    closes: &["</minimax:tool_call>"],
    name: Some("<invoke name="),
    key: ("<parameter name=", ">"),
    call_end: "</invoke>",
    ..QWEN
};

const DSML: Tags = Tags {
    opens: &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"],
    closes: &["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"],
    name: Some("<｜DSML｜invoke name="),
    key: ("<｜DSML｜parameter name=", ">"),
    value_end: "</｜DSML｜parameter>",
    call_end: "</｜DSML｜invoke>",
    trims: false,
    says_type: true,
    ..QWEN
};

const GLM: Tags = Tags {
    opens: &["<tool_call>"],
    closes: &[],
    name: None,
    name_ends: &["\n", "<arg_key>", "</tool_call>"],
    key: ("<arg_key>", "</arg_key>"),
    value: Some("<arg_value>"),
    value_end: "</arg_value>",
    call_end: "</tool_call>",
    trims: false,
    says_type: false,
};

const LLAMA_PYTHON: pythonic::Marks =
    pythonic::Marks { open: "<|python_start|>", close: "<|python_end|>", starts: true };

const LFM: pythonic::Marks =
    pythonic::Marks { open: "<|tool_call_start|>", close: "<|tool_call_end|>", starts: false };

/// `function<｜tool▁sep｜>NAME`, and a line break.
fn deepseek_v3_header(text: &str) -> Option<Header> {
    let name = text.split_once("<｜tool▁sep｜>")?.1.strip_suffix(['\n', '{', '`'])?;
    Some(Header { id: None, name: name.trim().to_owned() })
}

/// `NAME<｜tool▁sep｜>`.
fn deepseek_v31_header(text: &str) -> Option<Header> {
    let name = text.strip_suffix("<｜tool▁sep｜>")?;
    Some(Header { id: None, name: name.trim().to_owned() })
}

/// `functions.NAME:INDEX<|tool_call_argument_begin|>`, of which all but the marker is the identity.
fn kimi_header(text: &str) -> Option<Header> {
    let id = text.strip_suffix("<|tool_call_argument_begin|>")?.trim();
    let name = id.strip_prefix("functions.").unwrap_or(id);
    let is_index = |index: &str| !index.is_empty() && index.chars().all(|c| c.is_ascii_digit());
    let name = match name.rsplit_once(':') {
        Some((name, index)) if is_index(index) => name,
        _ => name,
    };
    Some(Header { id: Some(id.to_owned()), name: name.to_owned() })
}

/// `NAME[ARGS]`, `NAME[CALL_ID]ID[ARGS]` or no more than `NAME` before the arguments.
fn mistral_header(text: &str) -> Option<Header> {
    let text = text.strip_suffix("[ARGS]").or_else(|| text.strip_suffix('{'))?;
    let (name, id) = match text.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.trim().to_owned())),
        None => (text, None),
    };
    Some(Header { id, name: name.trim().to_owned() })
}

impl ToolFormat {
    /// Returns the special tokens that have to be decoded as text for this format.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Pythonic => &["<|python_start|>", "<|python_end|>"],
            Self::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>"],
            Self::Mistral => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
            Self::DeepseekV3 | Self::DeepseekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::DeepseekV32 => &["｜DSML｜"],
            Self::Phi4 => &["functools"],
            Self::Granite => &["<|tool_call|>", "<tool_call>", "</tool_call>"],
            Self::Jamba => &["<tool_calls>", "</tool_calls>"],
            Self::Nemotron => &["<TOOLCALL>", "</TOOLCALL>"],
            Self::Qwen3Coder => &["<tool_call>", "</tool_call>"],
            Self::SeedOss => &["<seed:tool_call>", "</seed:tool_call>"],
            Self::Glm45 => &[
                "<tool_call>",
                "</tool_call>",
                "<arg_key>",
                "</arg_key>",
                "<arg_value>",
                "</arg_value>",
            ],
            Self::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            Self::MinimaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            Self::Harmony => harmony::MARKERS,
        }
    }

    /// Returns the markers that end an open reasoning: tokens that no prose holds.
    pub(super) fn interrupts(self) -> &'static [&'static str] {
        match self {
            Self::DeepseekV3 | Self::DeepseekV31 => DEEPSEEK.opens,
            Self::KimiK2 => KIMI.opens,
            _ => &[],
        }
    }

    pub(super) fn machine(self, schemas: Arc<Schemas>) -> Machine {
        let v31 = Spec { header: Some(deepseek_v31_header), ..DEEPSEEK };
        match self {
            Self::Hermes => Machine::Marked(Marked::new(HERMES, schemas)),
            Self::Llama3Json => Machine::Marked(Marked::new(LLAMA, schemas)),
            Self::Pythonic => Machine::Pythonic(Pythonic::new(LLAMA_PYTHON, schemas)),
            Self::Lfm2 => Machine::Pythonic(Pythonic::new(LFM, schemas)),
            Self::Mistral => Machine::Marked(Marked::new(MISTRAL, schemas)),
            Self::DeepseekV3 => Machine::Marked(Marked::new(DEEPSEEK, schemas)),
            Self::DeepseekV31 => Machine::Marked(Marked::new(v31, schemas)),
            Self::DeepseekV32 => Machine::Tagged(Tagged::new(DSML, schemas)),
            Self::Phi4 => Machine::Marked(Marked::new(PHI, schemas)),
            Self::Granite => Machine::Marked(Marked::new(GRANITE, schemas)),
            Self::Jamba => Machine::Marked(Marked::new(JAMBA, schemas)),
            Self::Nemotron => Machine::Marked(Marked::new(NEMOTRON, schemas)),
            Self::Qwen3Coder => Machine::Tagged(Tagged::new(QWEN, schemas)),
            Self::SeedOss => Machine::Tagged(Tagged::new(SEED, schemas)),
            Self::Glm45 => Machine::Tagged(Tagged::new(GLM, schemas)),
            Self::KimiK2 => Machine::Marked(Marked::new(KIMI, schemas)),
            Self::MinimaxM2 => Machine::Tagged(Tagged::new(MINIMAX, schemas)),
            Self::Harmony => Machine::Harmony(harmony::Harmony::new(true, false)),
        }
    }
}

impl ReasoningFormat {
    /// Returns the special tokens that have to be decoded as text for this format.
    pub fn markers(self) -> &'static [&'static str] {
        match self {
            Self::SeedOss => &["<seed:think>", "</seed:think>"],
            Self::Kimi => &["◁think▷", "◁/think▷"],
            Self::Mistral => &["[THINK]", "[/THINK]"],
            Self::Granite => &[],
            Self::GptOss => harmony::MARKERS,
            Self::ExaoneDeep => &["<thought>", "</thought>"],
            _ => &["<think>", "</think>"],
        }
    }

    pub(super) fn marks(self) -> Marks {
        let (starts, ends): (&'static [&'static str], &'static [&'static str]) = match self {
            Self::Granite => (
                &["Here is my thought process:", "Here's my thought process:"],
                &["Here is my response:", "Here's my response:"],
            ),
            _ => (&self.markers()[..1], &self.markers()[1..2]),
        };
        Marks { starts, ends, trims_space: self == Self::Granite }
    }

    /// Returns whether the reasoning may begin without its first marker.
    pub(super) fn is_implied(self) -> bool {
        matches!(self, Self::DeepseekR1 | Self::Step3 | Self::Minimax)
    }
}
