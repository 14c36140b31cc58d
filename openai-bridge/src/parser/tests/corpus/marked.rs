//! Calls between markers.

use super::Cases;

pub(super) const HERMES: Cases = &[
    ("Hello, <b>world</b>!\n", &["c:Hello, <b>world</b>!\n"]),
    (
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        &["b0:f", "a0:{\"a\": 1}"],
    ),
    (
        "<think>\nHm <tool_call>\n\nyes.\n</think>\n\nI look.\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": [1, {}]}, \"s\": \"}\\\"</tool_call>é😀\\n\"}}\n</tool_call>\n<tool_call>\n{\"arguments\": {\"x\": null}, \"name\": \"g\"}\n</tool_call>\n\nDone.",
        &[
            "r:Hm <tool_call>\n\nyes.",
            "c:I look.",
            "b0:f",
            "a0:{\"a\": {\"b\": [1, {}]}, \"s\": \"}\\\"</tool_call>é😀\\n\"}",
            "b1:g",
            "a1:{\"x\": null}",
            "c:\n\nDone.",
        ],
    ),
    (
        "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": \\\"\\u00e9\\\"}\"}</tool_call>\n",
        &["b0:f", "a0:{\"a\": \"é\"}"],
    ),
    ("<tool_call>{\"name\":\"f\"}</tool_call>", &["b0:f", "a0:{}"]),
    ("<tool_call>{\"name\":\"f\",\"arguments\":null}", &["b0:f", "a0:{}"]),
    // A brace too few, one too many, a missing end.
    (
        "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}</tool_call>x",
        &["b0:f", "a0:{\"a\":1}", "c:x"],
    ),
    ("<tool_call>{\"name\":\"f\",\"arguments\":{}}}\n</tool_call>", &["b0:f", "a0:{}"]),
    (
        "<tool_call>{\"name\":\"f\",\"arguments\":{}}\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_c",
        &["b0:f", "a0:{}", "b1:g", "a1:{}"],
    ),
    // Cut off, or no call at all.
    ("<tool_call>{\"name\":\"f\",\"argum", &["b0:f"]),
    ("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"x", &["b0:f", "a0:{\"a\":\"x"]),
    ("a\n<tool_call>\n{\"name\":\"f", &["c:a\n<tool_call>\n{\"name\":\"f"]),
    ("a <tool_ca", &["c:a <tool_ca"]),
    ("Use <tool_call> and {x}.", &["c:Use <tool_call> and {x}."]),
    (
        "<tool_call><tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>",
        &["c:<tool_call>", "b0:f", "a0:{}"],
    ),
    ("<tool_call></tool_call> ", &["c:<tool_call></tool_call> "]),
    ("<tool_call>{\"name\":7}</tool_call>", &["c:<tool_call>{\"name\":7}</tool_call>"]),
];

pub(super) const LLAMA3_JSON: Cases = &[
    (
        "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}",
        &["b0:f", "a0:{\"a\": \"b\"}"],
    ),
    (
        "\n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": [\"};\"]}}; {\"parameters\": {}, \"name\": \"g\"}",
        &["b0:f", "a0:{\"a\": [\"};\"]}", "b1:g", "a1:{}"],
    ),
    ("{\"name\": \"f\", \"parameters\": {\"a\"", &["b0:f", "a0:{\"a\""]),
    ("{\"name\": \"Bob\"} is", &["c:{\"name\": \"Bob\"} is"]),
    ("{\"name\": \"h\", \"parameters\": {}}", &["c:{\"name\": \"h\", \"parameters\": {}}"]),
    ("{\"city\": {\"name\": \"f\"}}", &["c:{\"city\": {\"name\": \"f\"}}"]),
    ("So: {\"name\": \"f\", \"parameters\": {}}", &["c:So: {\"name\": \"f\", \"parameters\": {}}"]),
    ("<|python_tag|>print(1)", &["c:<|python_tag|>print(1)"]),
    ("", &[]),
];

pub(super) const MISTRAL: Cases = &[
    (
        "[THINK]Hm.[/THINK]Wait. [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"[TOOL_CALLS]\"}}, {\"id\": \"abcdefghi\", \"name\": \"g\", \"arguments\": {}}]",
        &["r:Hm.", "c:Wait.", "b0:f", "a0:{\"a\": \"[TOOL_CALLS]\"}", "b1:g#abcdefghi", "a1:{}"],
    ),
    (
        "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{\"a\": {\"b\": 1}}[TOOL_CALLS]g[ARGS]{}",
        &["b0:f#abcdefghi", "a0:{\"a\": {\"b\": 1}}", "b1:g", "a1:{}"],
    ),
    ("[TOOL_CALLS]f{\"a\": 1} [1]", &["b0:f", "a0:{\"a\": 1}", "c: [1]"]),
    ("[TOOL_CALLS]f[ARGS]{\"a\": \"x", &["b0:f", "a0:{\"a\": \"x"]),
    ("[TOOL_CALLS][]", &["c:[TOOL_CALLS][]"]),
    ("x [TOOL_CALLS]f[AR", &["c:x [TOOL_CALLS]f[AR"]),
    ("[TOOL_CALLS]not a name{}", &["c:[TOOL_CALLS]not a name{}"]),
    ("See [1] and [TOOL", &["c:See [1] and [TOOL"]),
];

pub(super) const PHI4: Cases = &[
    (
        "Sure. functools[{\"name\": \"f\", \"arguments\": {\"a\": \"]\"}},\n {\"name\": \"g\", \"arguments\": {}}]\nOK",
        &["c:Sure.", "b0:f", "a0:{\"a\": \"]\"}", "b1:g", "a1:{}", "c:\nOK"],
    ),
    ("from functools import f", &["c:from functools import f"]),
    ("functools[0]", &["c:functools[0]"]),
];

pub(super) const GRANITE: Cases = &[
    (
        "Here is my thought process: I ask.\n\nHere is my response:\n <|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
        &["r:I ask.", "b0:f", "a0:{\"a\": 1}", "b1:g", "a1:{}"],
    ),
    ("<tool_call>[{\"name\": \"f\", \"arguments\": {}}]", &["b0:f", "a0:{}"]),
    ("Here is my plan.", &["c:Here is my plan."]),
    ("Here is my thought process: no end", &["r:no end"]),
];

pub(super) const JAMBA: Cases = &[
    (
        "Yes.\n<tool_calls>[\n  {\"name\": \"f\", \"arguments\": {\"a\": \"</tool_calls>\"}},\n  {\"name\": \"g\", \"arguments\": {}}\n]</tool_calls>",
        &["c:Yes.", "b0:f", "a0:{\"a\": \"</tool_calls>\"}", "b1:g", "a1:{}"],
    ),
    ("<tool_calls>[]</tool_calls>", &["c:<tool_calls>[]</tool_calls>"]),
];

pub(super) const NEMOTRON: Cases = &[(
    "<think>\nA\n</think>\n\n<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1.5}}]</TOOLCALL>\n",
    &["r:A", "b0:f", "a0:{\"a\": 1.5}"],
)];

pub(super) const DEEPSEEK_V3: Cases = &[
    (
        "Hm.\n</think>\n\nI ask.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": \"```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["r:Hm.", "c:I ask.", "b0:f", "a0:{\"a\": \"```\"}", "b1:g", "a1:{}"],
    ),
    (
        "<think>Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1",
        &["r:Hm.", "b0:f", "a0:{\"a\": 1"],
    ),
    (
        "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool",
        &["c:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool"],
    ),
];

pub(super) const DEEPSEEK_V31: Cases = &[
    (
        "OK<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": {\"b\": \"}\"}}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n",
        &["c:OK", "b0:f", "a0:{\"a\": {\"b\": \"}\"}}", "b1:g", "a1:{}"],
    ),
    ("<｜tool▁call▁begin｜>f<｜tool▁sep｜><｜tool▁call▁end｜>", &["b0:f", "a0:{}"]),
    ("<｜tool▁calls▁begin｜>?", &["c:<｜tool▁calls▁begin｜>?"]),
];

pub(super) const KIMI_K2: Cases = &[
    (
        "<think>Hm.</think>I ask.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{\"a\": \"é\"}<|tool_call_end|><|tool_call_begin|>functions.g:h:12 <|tool_call_argument_begin|> {}<|tool_call_end|><|tool_calls_section_end|>",
        &[
            "r:Hm.",
            "c:I ask.",
            "b0:f#functions.f:0",
            "a0:{\"a\": \"é\"}",
            "b1:g:h#functions.g:h:12",
            "a1:{}",
        ],
    ),
    (
        "<think>Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
        &["r:Hm.", "b0:f#functions.f:0", "a0:{}"],
    ),
    (
        "x<|tool_calls_section_begin|><|tool_call_begin|>functions.f",
        &["c:x<|tool_calls_section_begin|><|tool_call_begin|>functions.f"],
    ),
];

pub(super) const HARMONY: Cases = &[
    (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": \"<|call|>\"}<|call|>",
        &["r:Hm.", "c:I ask.", "b0:f", "a0:{\"a\": \"<|call|>\"}"],
    ),
    (
        "<|channel|>analysis<|message|>A.<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|><|start|>assistant to=g<|channel|>analysis code<|message|>{\"b\":2}<|call|>",
        &["r:A.", "b0:f", "a0:{}", "b1:g", "a1:{\"b\":2}"],
    ),
    (" to=functions.f<|channel|>commentary<|message|>{}", &["b0:f", "a0:{}"]),
    ("<|channel|>final<|message|>Hello <b> to=x\n<|return|>", &["c:Hello <b> to=x\n"]),
    ("<|channel|>analysis<|message|>cut <|e", &["r:cut <|e"]),
    ("<|channel|>ana", &[]),
    ("<|channel|>commentary to=functions.f", &["c:<|channel|>commentary to=functions.f"]),
    ("<|channel|>commentary to=functions.f<|message|><|call|>", &["b0:f", "a0:{}"]),
    (" plain to=text", &["c: plain to=text"]),
];
