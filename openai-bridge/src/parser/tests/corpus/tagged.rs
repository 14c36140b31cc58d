//! Calls between tags, and calls in Python.

use super::Cases;

pub(super) const QWEN3_CODER: Cases = &[
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
    ("<tool_call>\n<function=typed>\n<parameter=count>\n1", &["b0:typed", "a0:{\"count\": 1"]),
    ("<tool_call>\n<function=typ", &["c:<tool_call>\n<function=typ"]),
    ("<tool_call>{\"name\": 1}", &["c:<tool_call>{\"name\": 1}"]),
    ("<tool_call><function=f></tool_call>.", &["b0:f", "a0:{}", "c:."]),
];

pub(super) const SEED_OSS: Cases = &[(
    "<seed:think>\nA</seed:think>\n<seed:tool_call>\n<function=typed>\n<parameter=text>x</parameter>\n</function>\n</seed:tool_call>",
    &["r:A", "b0:typed", "a0:{\"text\": \"x\"}"],
)];

pub(super) const GLM45: Cases = &[
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
    ("<tool_call>typed\n<arg_key>text</arg_key>\noops", &["b0:typed", "a0:{\"text\": ", "c:oops"]),
];

pub(super) const MINIMAX_M2: Cases = &[(
    "A\n</think>\n\nI ask.\n<minimax:tool_call>\n<invoke name=\"typed\">\n<parameter name=\"text\">x</parameter>\n<parameter name=\"flag\">true</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>",
    &["r:A", "c:I ask.", "b0:typed", "a0:{\"text\": \"x\", \"flag\": true}", "b1:g", "a1:{}"],
)];

pub(super) const DEEPSEEK_V32: Cases = &[(
    "I ask.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">5</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">5</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    &["c:I ask.", "b0:f", "a0:{\"a\": \"5\", \"b\": 5}"],
)];

pub(super) const PYTHONIC: Cases = &[
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
];

pub(super) const LFM2: Cases = &[
    (
        "<think>A</think><|tool_call_start|>[f(a=-1.5, b='é\\'')]<|tool_call_end|>Checking.",
        &["r:A", "b0:f", "a0:{\"a\": -1.5, \"b\": \"é'\"}", "c:Checking."],
    ),
    ("[f()]", &["c:[f()]"]),
];
