//! What models write, and what it means: a table for each format.
//!
//! Events are written short: `r` reasoning, `c` content, `b0` a call that begins (`name` or
//! `name#id`), `a0` its arguments.

use crate::parser::{ReasoningFormat, Syntax, ToolFormat};

mod marked;
mod reasoning;
mod tagged;

/// Texts and their events.
pub(crate) type Cases = &'static [(&'static str, &'static [&'static str])];

/// The texts of one format with their events.
pub(crate) struct Sheet {
    pub(crate) tools: Option<Syntax>,
    pub(crate) reasoning: Option<ReasoningFormat>,
    pub(crate) starts_in_reasoning: bool,
    pub(crate) cases: Cases,
}

/// Returns all sheets.
pub(crate) fn sheets() -> Vec<Sheet> {
    use {ReasoningFormat as Reasoning, ToolFormat as Tool};
    let calls = [
        (Tool::Hermes, Some(Reasoning::Qwen3), marked::HERMES),
        (Tool::Llama3Json, None, marked::LLAMA3_JSON),
        (Tool::Mistral, Some(Reasoning::Mistral), marked::MISTRAL),
        (Tool::Phi4, None, marked::PHI4),
        (Tool::Granite, Some(Reasoning::Granite), marked::GRANITE),
        (Tool::Jamba, None, marked::JAMBA),
        (Tool::Nemotron, Some(Reasoning::Nemotron), marked::NEMOTRON),
        (Tool::DeepseekV3, Some(Reasoning::DeepseekR1), marked::DEEPSEEK_V3),
        (Tool::DeepseekV31, Some(Reasoning::DeepseekV3), marked::DEEPSEEK_V31),
        (Tool::KimiK2, Some(Reasoning::KimiK2), marked::KIMI_K2),
        (Tool::Harmony, Some(Reasoning::GptOss), marked::HARMONY),
        (Tool::Qwen3Coder, Some(Reasoning::Qwen3), tagged::QWEN3_CODER),
        (Tool::SeedOss, Some(Reasoning::SeedOss), tagged::SEED_OSS),
        (Tool::Glm45, Some(Reasoning::Glm45), tagged::GLM45),
        (Tool::MinimaxM2, Some(Reasoning::Minimax), tagged::MINIMAX_M2),
        (Tool::DeepseekV32, Some(Reasoning::DeepseekV3), tagged::DEEPSEEK_V32),
        (Tool::Pythonic, None, tagged::PYTHONIC),
        (Tool::Lfm2, Some(Reasoning::Think), tagged::LFM2),
    ];
    let reasonings = [
        (Reasoning::Think, false, reasoning::THINK),
        (Reasoning::Qwen3, true, reasoning::QWEN3),
        (Reasoning::DeepseekR1, false, reasoning::DEEPSEEK_R1),
        (Reasoning::Step3, false, reasoning::STEP3),
        (Reasoning::Exaone4, false, reasoning::EXAONE4),
        (Reasoning::ExaoneDeep, false, reasoning::EXAONE_DEEP),
        (Reasoning::Kimi, false, reasoning::KIMI),
        (Reasoning::GptOss, true, reasoning::GPT_OSS),
    ];
    let calls = calls.map(|(format, reasoning, cases)| {
        let tools = Some(Syntax::Format(format));
        Sheet { tools, reasoning, starts_in_reasoning: false, cases }
    });
    let reasonings = reasonings.map(|(format, starts_in_reasoning, cases)| Sheet {
        tools: None,
        reasoning: Some(format),
        starts_in_reasoning,
        cases,
    });
    calls.into_iter().chain(reasonings).chain(constrained()).collect()
}

fn constrained() -> Vec<Sheet> {
    let sheet = |tools, cases| Sheet {
        tools: Some(tools),
        reasoning: Some(ReasoningFormat::DeepseekR1),
        starts_in_reasoning: false,
        cases,
    };
    vec![
        Sheet {
            tools: None,
            reasoning: None,
            starts_in_reasoning: true,
            cases: &[("<think>a</think><tool_call>\n", &["c:<think>a</think><tool_call>\n"])],
        },
        sheet(
            Syntax::Named("pick".into()),
            &[
                (" {\"a\": {\"b\": \"}\"}}\n", &["b0:pick", "a0:{\"a\": {\"b\": \"}\"}}"]),
                ("<think>x</think>{\"a\"", &["r:x", "b0:pick", "a0:{\"a\""]),
                ("no", &["c:no"]),
                ("", &[]),
            ],
        ),
        sheet(
            Syntax::Array,
            &[
                (
                    "[{\"name\": \"f\", \"parameters\": {\"a\": 1}}, {\"name\": \"h\", \"parameters\": {}}]",
                    &["b0:f", "a0:{\"a\": 1}", "b1:h", "a1:{}"],
                ),
                ("[1]", &["c:[1]"]),
            ],
        ),
    ]
}
