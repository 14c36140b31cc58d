//! Reasoning without calls.

use super::Cases;

pub(super) const THINK: Cases = &[
    ("\n<think>\nA\n\nB\n</think>\n\nC <think>", &["r:A\n\nB", "c:C <think>"]),
    ("no </think> here", &["c:no </think> here"]),
    ("<think>cut\n</thi", &["r:cut\n</thi"]),
    ("<th", &["c:<th"]),
    ("<think></think>x", &["c:x"]),
];

pub(super) const QWEN3: Cases = &[
    ("A\n</think>\n\nB", &["r:A", "c:B"]),
    ("<think>\nA</think>B", &["r:A", "c:B"]),
    ("A", &["r:A"]),
    ("\n</think>\n\n{\"a\": 1}", &["c:{\"a\": 1}"]),
];

pub(super) const DEEPSEEK_R1: Cases = &[("A</think>B", &["r:A", "c:B"])];

pub(super) const STEP3: Cases = &[("A</think>B", &["r:A", "c:B"])];

pub(super) const EXAONE4: Cases = &[("<think>A</think>B", &["r:A", "c:B"])];

pub(super) const EXAONE_DEEP: Cases = &[("<thought>A</thought>B", &["r:A", "c:B"])];

pub(super) const KIMI: Cases = &[("◁think▷A◁/think▷B", &["r:A", "c:B"])];

pub(super) const GPT_OSS: Cases = &[(
    "A<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
    &["r:A", "c:<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}"],
)];
