//! What models write, and what it means: a table for each format.
//!
//! Events are written short: `r` reasoning, `c` content, `b0` a call that begins (`name` or
//! `name#id`), `a0` its arguments.

use crate::parser::{ReasoningFormat, Syntax, ToolFormat};

/// The texts of one format with their events.
pub(crate) struct Sheet {
    pub(crate) tools: Option<Syntax>,
    pub(crate) reasoning: Option<ReasoningFormat>,
    pub(crate) starts_in_reasoning: bool,
    pub(crate) cases: &'static [(&'static str, &'static [&'static str])],
}

const fn tools(
    format: ToolFormat,
    reasoning: Option<ReasoningFormat>,
    cases: &'static [(&'static str, &'static [&'static str])],
) -> Sheet {
    let tools = Some(Syntax::Format(format));
    Sheet { tools, reasoning, starts_in_reasoning: false, cases }
}

const fn reasoning(
    format: ReasoningFormat,
    starts_in_reasoning: bool,
    cases: &'static [(&'static str, &'static [&'static str])],
) -> Sheet {
    Sheet { tools: None, reasoning: Some(format), starts_in_reasoning, cases }
}

/// Returns all sheets.
pub(crate) fn sheets() -> Vec<Sheet> {
    let mut sheets = json();
    sheets.extend(framed());
    sheets.extend(tagged());
    sheets.extend(pythonic());
    sheets.extend(reasonings());
    sheets.extend(constrained());
    sheets
}

fn json() -> Vec<Sheet> {
    vec![
        tools(
            ToolFormat::Hermes,
            Some(ReasoningFormat::Qwen3),
            &[
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
            ],
        ),
        tools(
            ToolFormat::Llama3Json,
            None,
            &[
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
                (
                    "{\"name\": \"h\", \"parameters\": {}}",
                    &["c:{\"name\": \"h\", \"parameters\": {}}"],
                ),
                ("{\"city\": {\"name\": \"f\"}}", &["c:{\"city\": {\"name\": \"f\"}}"]),
                (
                    "So: {\"name\": \"f\", \"parameters\": {}}",
                    &["c:So: {\"name\": \"f\", \"parameters\": {}}"],
                ),
                ("<|python_tag|>print(1)", &["c:<|python_tag|>print(1)"]),
                ("", &[]),
            ],
        ),
        tools(
            ToolFormat::Mistral,
            Some(ReasoningFormat::Mistral),
            &[
                (
                    "[THINK]Hm.[/THINK]Wait. [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"[TOOL_CALLS]\"}}, {\"id\": \"abcdefghi\", \"name\": \"g\", \"arguments\": {}}]",
                    &[
                        "r:Hm.",
                        "c:Wait.",
                        "b0:f",
                        "a0:{\"a\": \"[TOOL_CALLS]\"}",
                        "b1:g#abcdefghi",
                        "a1:{}",
                    ],
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
            ],
        ),
        tools(
            ToolFormat::Phi4,
            None,
            &[
                (
                    "Sure. functools[{\"name\": \"f\", \"arguments\": {\"a\": \"]\"}},\n {\"name\": \"g\", \"arguments\": {}}]\nOK",
                    &["c:Sure.", "b0:f", "a0:{\"a\": \"]\"}", "b1:g", "a1:{}", "c:\nOK"],
                ),
                ("from functools import f", &["c:from functools import f"]),
                ("functools[0]", &["c:functools[0]"]),
            ],
        ),
        tools(
            ToolFormat::Granite,
            Some(ReasoningFormat::Granite),
            &[
                (
                    "Here is my thought process: I ask.\n\nHere is my response:\n <|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
                    &["r:I ask.", "b0:f", "a0:{\"a\": 1}", "b1:g", "a1:{}"],
                ),
                ("<tool_call>[{\"name\": \"f\", \"arguments\": {}}]", &["b0:f", "a0:{}"]),
                ("Here is my plan.", &["c:Here is my plan."]),
                ("Here is my thought process: no end", &["r:no end"]),
            ],
        ),
        tools(
            ToolFormat::Jamba,
            None,
            &[
                (
                    "Yes.\n<tool_calls>[\n  {\"name\": \"f\", \"arguments\": {\"a\": \"</tool_calls>\"}},\n  {\"name\": \"g\", \"arguments\": {}}\n]</tool_calls>",
                    &["c:Yes.", "b0:f", "a0:{\"a\": \"</tool_calls>\"}", "b1:g", "a1:{}"],
                ),
                ("<tool_calls>[]</tool_calls>", &["c:<tool_calls>[]</tool_calls>"]),
            ],
        ),
        tools(
            ToolFormat::Nemotron,
            Some(ReasoningFormat::Nemotron),
            &[(
                "<think>\nA\n</think>\n\n<TOOLCALL>[{\"name\": \"f\", \"arguments\": {\"a\": 1.5}}]</TOOLCALL>\n",
                &["r:A", "b0:f", "a0:{\"a\": 1.5}"],
            )],
        ),
    ]
}

fn framed() -> Vec<Sheet> {
    vec![
        tools(
            ToolFormat::DeepseekV3,
            Some(ReasoningFormat::DeepseekR1),
            &[
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
            ],
        ),
        tools(
            ToolFormat::DeepseekV31,
            Some(ReasoningFormat::DeepseekV3),
            &[
                (
                    "OK<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": {\"b\": \"}\"}}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\n",
                    &["c:OK", "b0:f", "a0:{\"a\": {\"b\": \"}\"}}", "b1:g", "a1:{}"],
                ),
                ("<｜tool▁call▁begin｜>f<｜tool▁sep｜><｜tool▁call▁end｜>", &["b0:f", "a0:{}"]),
                ("<｜tool▁calls▁begin｜>?", &["c:<｜tool▁calls▁begin｜>?"]),
            ],
        ),
        tools(
            ToolFormat::KimiK2,
            Some(ReasoningFormat::KimiK2),
            &[
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
            ],
        ),
        tools(
            ToolFormat::Harmony,
            Some(ReasoningFormat::GptOss),
            &[
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
                (
                    "<|channel|>commentary to=functions.f",
                    &["c:<|channel|>commentary to=functions.f"],
                ),
                ("<|channel|>commentary to=functions.f<|message|><|call|>", &["b0:f", "a0:{}"]),
                (" plain to=text", &["c: plain to=text"]),
            ],
        ),
    ]
}

fn tagged() -> Vec<Sheet> {
    vec![
        tools(
            ToolFormat::Qwen3Coder,
            Some(ReasoningFormat::Qwen3),
            &[
                (
                    "<think>\nA\n</think>\n\nI ask.\n<tool_call>\n<function=typed>\n<parameter=text>\nif a < b:\n  print(\"</b>\")\n\n</parameter>\n<parameter=count>\n12\n</parameter>\n<parameter=map>\n{\"a\": [1]}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>\n",
                    &[
                        "r:A",
                        "c:I ask.",
                        "b0:typed",
                        "a0:{\"text\": \"if a < b:\\n  print(\\\"</b>\\\")\\n\", \"count\": 12, \"map\": {\"a\": [1]}}",
                        "b1:g",
                        "a1:{}",
                    ],
                ),
                (
                    "<function=f><parameter=any>True</parameter></function>\nOK",
                    &["b0:f", "a0:{\"any\": true}", "c:\nOK"],
                ),
                (
                    "<tool_call>\n<function=typed>\n<parameter=text>\nab\nc\n",
                    &["b0:typed", "a0:{\"text\": \"ab\\nc\\n"],
                ),
                (
                    "<tool_call>\n<function=typed>\n<parameter=count>\n1",
                    &["b0:typed", "a0:{\"count\": 1"],
                ),
                ("<tool_call>\n<function=typ", &["c:<tool_call>\n<function=typ"]),
                ("<tool_call>{\"name\": 1}", &["c:<tool_call>{\"name\": 1}"]),
                ("<tool_call><function=f></tool_call>.", &["b0:f", "a0:{}", "c:."]),
            ],
        ),
        tools(
            ToolFormat::SeedOss,
            Some(ReasoningFormat::SeedOss),
            &[(
                "<seed:think>\nA</seed:think>\n<seed:tool_call>\n<function=typed>\n<parameter=text>x</parameter>\n</function>\n</seed:tool_call>",
                &["r:A", "b0:typed", "a0:{\"text\": \"x\"}"],
            )],
        ),
        tools(
            ToolFormat::Glm45,
            Some(ReasoningFormat::Glm45),
            &[
                (
                    "<think>A</think>\nI ask.\n<tool_call>typed\n<arg_key>text</arg_key>\n<arg_value> \"x\"\n</arg_value>\n<arg_key>count</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g</tool_call><tool_call>f<arg_key>any</arg_key><arg_value>[1]</arg_value></tool_call>",
                    &[
                        "r:A",
                        "c:I ask.",
                        "b0:typed",
                        "a0:{\"text\": \" \\\"x\\\"\\n\", \"count\": 3}",
                        "b1:g",
                        "a1:{}",
                        "b2:f",
                        "a2:{\"any\": [1]}",
                    ],
                ),
                ("<tool_call>typed\n<arg_key>te", &["b0:typed"]),
                ("<tool_call>typ", &["c:<tool_call>typ"]),
                (
                    "<tool_call>typed\n<arg_key>text</arg_key>\noops",
                    &["b0:typed", "a0:{\"text\": ", "c:oops"],
                ),
            ],
        ),
        tools(
            ToolFormat::MinimaxM2,
            Some(ReasoningFormat::Minimax),
            &[(
                "A\n</think>\n\nI ask.\n<minimax:tool_call>\n<invoke name=\"typed\">\n<parameter name=\"text\">x</parameter>\n<parameter name=\"flag\">true</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>",
                &[
                    "r:A",
                    "c:I ask.",
                    "b0:typed",
                    "a0:{\"text\": \"x\", \"flag\": true}",
                    "b1:g",
                    "a1:{}",
                ],
            )],
        ),
        tools(
            ToolFormat::DeepseekV32,
            Some(ReasoningFormat::DeepseekV3),
            &[(
                "I ask.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">5</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
                &["c:I ask.", "b0:f", "a0:{\"a\": \"5\", \"b\": 5}"],
            )],
        ),
    ]
}

fn pythonic() -> Vec<Sheet> {
    vec![
        tools(
            ToolFormat::Pythonic,
            None,
            &[
                (
                    "[f(a=1, b=\"x)]\", c={'k': [True, None]}), typed()]",
                    &[
                        "b0:f",
                        "a0:{\"a\": 1, \"b\": \"x)]\", \"c\": {\"k\": [true, null]}}",
                        "b1:typed",
                        "a1:{}",
                    ],
                ),
                ("<|python_start|>[f(a=1)]<|python_end|>\n", &["b0:f", "a0:{\"a\": 1}"]),
                ("x <|python_start|>[f()]<|python_end|> y", &["c:x", "b0:f", "a0:{}", "c: y"]),
                ("[f(a=1), g", &["b0:f", "a0:{\"a\": 1}", "c:, g"]),
                ("[f(a='cut", &["b0:f", "a0:{\"a\": \"cut"]),
                ("[f(a=12", &["b0:f", "a0:{\"a\": 12"]),
                ("[f(", &["c:[f("]),
                ("[link](https://x.org) [f()]", &["c:[link](https://x.org) [f()]"]),
                ("[h(a=1)]", &["c:[h(a=1)]"]),
                ("[1, 2]\n", &["c:[1, 2]\n"]),
                ("[f(1)]", &["c:[f(1)]"]),
            ],
        ),
        tools(
            ToolFormat::Lfm2,
            Some(ReasoningFormat::Think),
            &[
                (
                    "<think>A</think><|tool_call_start|>[f(a=-1.5, b='é\\'')]<|tool_call_end|>Checking.",
                    &["r:A", "b0:f", "a0:{\"a\": -1.5, \"b\": \"é'\"}", "c:Checking."],
                ),
                ("[f()]", &["c:[f()]"]),
            ],
        ),
    ]
}

fn reasonings() -> Vec<Sheet> {
    vec![
        reasoning(
            ReasoningFormat::Think,
            false,
            &[
                ("\n<think>\nA\n\nB\n</think>\n\nC <think>", &["r:A\n\nB", "c:C <think>"]),
                ("no </think> here", &["c:no </think> here"]),
                ("<think>cut\n</thi", &["r:cut\n</thi"]),
                ("<th", &["c:<th"]),
                ("<think></think>x", &["c:x"]),
            ],
        ),
        reasoning(
            ReasoningFormat::Qwen3,
            true,
            &[
                ("A\n</think>\n\nB", &["r:A", "c:B"]),
                ("<think>\nA</think>B", &["r:A", "c:B"]),
                ("A", &["r:A"]),
                ("\n</think>\n\n{\"a\": 1}", &["c:{\"a\": 1}"]),
            ],
        ),
        reasoning(ReasoningFormat::DeepseekR1, false, &[("A</think>B", &["r:A", "c:B"])]),
        reasoning(ReasoningFormat::Step3, false, &[("A</think>B", &["r:A", "c:B"])]),
        reasoning(ReasoningFormat::Exaone4, false, &[("<think>A</think>B", &["r:A", "c:B"])]),
        reasoning(
            ReasoningFormat::ExaoneDeep,
            false,
            &[("<thought>A</thought>B", &["r:A", "c:B"])],
        ),
        reasoning(ReasoningFormat::Kimi, false, &[("◁think▷A◁/think▷B", &["r:A", "c:B"])]),
        reasoning(
            ReasoningFormat::GptOss,
            true,
            &[(
                "A<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
                &["r:A", "c:<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}"],
            )],
        ),
    ]
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
