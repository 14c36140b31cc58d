//! The formats by name, and which one a chat template speaks.

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, Granite 4.
    Hermes,
    /// `{"name": …, "parameters": {…}}`, with `<|python_tag|>` before it or not, several by `;`.
    Llama3Json,
    /// `[f(a=1), g(b="x")]`: Llama 3.2 and 4.
    Pythonic,
    /// `<|tool_call_start|>[f(a=1)]<|tool_call_end|>`: LFM 2.
    Lfm2,
    /// `[TOOL_CALLS]` and a list, or a name and `[ARGS]{…}`: Mistral.
    Mistral,
    /// Sections of calls with fenced arguments: DeepSeek V3 and R1.
    DeepseekV3,
    /// Sections of calls with bare arguments: DeepSeek V3.1.
    DeepseekV31,
    /// Parameters one by one, between DSML tags: DeepSeek V3.2 and V4.
    DeepseekV32,
    /// `functools[{…}]`: Phi 4 mini.
    Phi4,
    /// `<|tool_call|>[{…}]`: Granite 3.
    Granite,
    /// `<tool_calls>[{…}]</tool_calls>`: Jamba.
    Jamba,
    /// `<TOOLCALL>[{…}]</TOOLCALL>`: Nemotron.
    Nemotron,
    /// `<function=NAME><parameter=KEY>VALUE</parameter></function>`: Qwen 3 Coder, Nemotron 3.
    Qwen3Coder,
    /// The same in `<seed:tool_call>`: Seed OSS.
    SeedOss,
    /// `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`: GLM 4.5.
    Glm45,
    /// `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}`: Kimi K2.
    KimiK2,
    /// `<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`: MiniMax M2.
    MinimaxM2,
    /// Messages in channels: gpt-oss. It tells the reasoning itself.
    Harmony,
}

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasoningFormat {
    /// `<think>…</think>`.
    Think,
    /// The same, and the first tag may be missing: DeepSeek R1.
    DeepseekR1,
    /// The same, where the prompt decides: DeepSeek V3.1 and later.
    DeepseekV3,
    /// The same: Qwen 3.
    Qwen3,
    /// The same: GLM 4.5.
    Glm45,
    /// The same, and the first tag may be missing: Step 3.
    Step3,
    /// The same: Nemotron.
    Nemotron,
    /// The same, and the first tag may be missing: MiniMax M2.
    Minimax,
    /// The same: EXAONE 4.
    Exaone4,
    /// The same: Kimi K2 Thinking.
    KimiK2,
    /// `<thought>…</thought>`: EXAONE Deep.
    ExaoneDeep,
    /// `<seed:think>…</seed:think>`: Seed OSS.
    SeedOss,
    /// `◁think▷…◁/think▷`: Kimi VL.
    Kimi,
    /// `[THINK]…[/THINK]`: Magistral.
    Mistral,
    /// `Here is my thought process:` … `Here is my response:`: Granite 3.
    Granite,
    /// The `analysis` channel of Harmony: gpt-oss.
    GptOss,
}

/// The formats of calls with their names, the first of which is the format's own.
const TOOLS: &[(ToolFormat, &[&str])] = &[
    (ToolFormat::Hermes, &["hermes", "qwen25", "qwen2_5", "qwen3"]),
    (ToolFormat::Llama3Json, &["llama3_json", "llama4_json", "llama3"]),
    (ToolFormat::Pythonic, &["pythonic", "llama4_pythonic", "llama4"]),
    (ToolFormat::Lfm2, &["lfm2"]),
    (ToolFormat::Mistral, &["mistral"]),
    (ToolFormat::DeepseekV3, &["deepseek_v3", "deepseek_r1"]),
    (ToolFormat::DeepseekV31, &["deepseek_v3_1", "deepseek_v31"]),
    (ToolFormat::DeepseekV32, &["deepseek_v3_2", "deepseek_v32", "deepseek_v4"]),
    (ToolFormat::Phi4, &["phi4", "phi4_mini_json"]),
    (ToolFormat::Granite, &["granite"]),
    (ToolFormat::Jamba, &["jamba"]),
    (ToolFormat::Nemotron, &["nemotron", "nemotron_deci", "nemotron_nano_v2"]),
    (ToolFormat::Qwen3Coder, &["qwen3_coder", "qwen3_xml", "nemotron_nano", "nemotron_v3"]),
    (ToolFormat::SeedOss, &["seed_oss"]),
    (ToolFormat::Glm45, &["glm45", "glm47"]),
    (ToolFormat::KimiK2, &["kimi_k2"]),
    (ToolFormat::MinimaxM2, &["minimax_m2"]),
    (ToolFormat::Harmony, &["harmony", "gpt_oss", "openai"]),
];

/// The formats of reasoning with their names.
const REASONINGS: &[(ReasoningFormat, &[&str])] = &[
    (ReasoningFormat::Think, &["think", "basic"]),
    (ReasoningFormat::DeepseekR1, &["deepseek_r1"]),
    (ReasoningFormat::DeepseekV3, &["deepseek_v3", "deepseek_v3_1", "deepseek_v31"]),
    (ReasoningFormat::Qwen3, &["qwen3"]),
    (ReasoningFormat::Glm45, &["glm45", "glm47"]),
    (ReasoningFormat::Step3, &["step3"]),
    (ReasoningFormat::Nemotron, &["nemotron", "nemotron_deci", "nemotron_nano", "nemotron_v3"]),
    (ReasoningFormat::Minimax, &["minimax", "minimax_m2"]),
    (ReasoningFormat::Exaone4, &["exaone4"]),
    (ReasoningFormat::KimiK2, &["kimi_k2", "kimi_k25"]),
    (ReasoningFormat::ExaoneDeep, &["exaone_deep"]),
    (ReasoningFormat::SeedOss, &["seed_oss"]),
    (ReasoningFormat::Kimi, &["kimi"]),
    (ReasoningFormat::Mistral, &["mistral"]),
    (ReasoningFormat::Granite, &["granite"]),
    (ReasoningFormat::GptOss, &["gpt_oss", "harmony", "openai_gptoss"]),
];

fn find<T: Copy>(table: &[(T, &[&str])], name: &str) -> Option<T> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    table.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(format, _)| *format)
}

/// What a template has to hold, all of it, for a format.
type Signs<T> = &'static [(&'static [&'static str], T)];

/// The first format whose signs a template holds; what is specific stands first.
const TOOL_SIGNS: Signs<ToolFormat> = &[
    (&["<|channel|>", "<|message|>"], ToolFormat::Harmony),
    (&["<|tool_calls_section_begin|>"], ToolFormat::KimiK2),
    (&["｜DSML｜"], ToolFormat::DeepseekV32),
    (&["<｜tool▁calls▁begin｜>", "```json"], ToolFormat::DeepseekV3),
    (&["<｜tool▁calls▁begin｜>"], ToolFormat::DeepseekV31),
    (&["<minimax:tool_call>"], ToolFormat::MinimaxM2),
    (&["<seed:tool_call>"], ToolFormat::SeedOss),
    (&["<arg_key>"], ToolFormat::Glm45),
    (&["<function="], ToolFormat::Qwen3Coder),
    (&["[TOOL_CALLS]"], ToolFormat::Mistral),
    (&["<TOOLCALL>"], ToolFormat::Nemotron),
    (&["<tool_calls>"], ToolFormat::Jamba),
    (&["<|tool_call_start|>"], ToolFormat::Lfm2),
    (&["<|tool_list_start|>"], ToolFormat::Lfm2),
    (&["functools"], ToolFormat::Phi4),
    (&["<|tool|>", "<|/tool|>"], ToolFormat::Phi4),
    (&["<|tool_call|>"], ToolFormat::Granite),
    (&["<tool_call>"], ToolFormat::Hermes),
    (&["<|python_start|>"], ToolFormat::Pythonic),
    (&["func_name1("], ToolFormat::Pythonic),
    (&["<|python_tag|>"], ToolFormat::Llama3Json),
    (&["\"name\": function name", "\"parameters\""], ToolFormat::Llama3Json),
];

const REASONING_SIGNS: Signs<ReasoningFormat> = &[
    (&["<|channel|>", "<|message|>"], ReasoningFormat::GptOss),
    (&["[THINK]"], ReasoningFormat::Mistral),
    (&["◁think▷"], ReasoningFormat::Kimi),
    (&["<seed:think>"], ReasoningFormat::SeedOss),
    (&["Here is my thought process:"], ReasoningFormat::Granite),
    (&["<thought>", "[|assistant|]"], ReasoningFormat::ExaoneDeep),
    (&["</think>", "<｜Assistant｜>", "thinking"], ReasoningFormat::DeepseekV3),
    (&["</think>", "<｜Assistant｜>"], ReasoningFormat::DeepseekR1),
    (&["</think>", "<minimax:tool_call>"], ReasoningFormat::Minimax),
    (&["</think>", "<arg_key>"], ReasoningFormat::Glm45),
    (&["</think>", "[|assistant|]"], ReasoningFormat::Exaone4),
    (&["</think>", "<|tool_calls_section_begin|>"], ReasoningFormat::KimiK2),
    (&["</think>", "<TOOLCALL>"], ReasoningFormat::Nemotron),
    (&["</think>", "<|im_start|>"], ReasoningFormat::Qwen3),
    (&["</think>"], ReasoningFormat::Think),
    (&["<think>"], ReasoningFormat::Think),
];

fn first<T: Copy>(signs: Signs<T>, template: &str) -> Option<T> {
    let holds = |signs: &[&str]| signs.iter().all(|sign| template.contains(sign));
    signs.iter().find(|(signs, _)| holds(signs)).map(|(_, format)| *format)
}

impl ToolFormat {
    /// All formats.
    pub fn all() -> impl Iterator<Item = Self> {
        TOOLS.iter().map(|(format, _)| *format)
    }

    /// Returns the format whose markers a chat template (Jinja) holds.
    pub fn detect(template: &str) -> Option<Self> {
        first(TOOL_SIGNS, template)
    }

    /// Returns the format of a name, or of a name that other servers know it by.
    pub fn by_name(name: &str) -> Option<Self> {
        find(TOOLS, name)
    }

    /// Returns the formats' own names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::all().map(Self::name)
    }

    /// Returns the format's own name.
    pub fn name(self) -> &'static str {
        TOOLS.iter().find(|(format, _)| *format == self).map_or("", |(_, names)| names[0])
    }
}

impl ReasoningFormat {
    /// All formats.
    pub fn all() -> impl Iterator<Item = Self> {
        REASONINGS.iter().map(|(format, _)| *format)
    }

    /// Returns the format whose markers a chat template (Jinja) holds.
    pub fn detect(template: &str) -> Option<Self> {
        first(REASONING_SIGNS, template)
    }

    /// Returns the format of a name, or of a name that other servers know it by.
    pub fn by_name(name: &str) -> Option<Self> {
        find(REASONINGS, name)
    }

    /// Returns the formats' own names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::all().map(Self::name)
    }

    /// Returns the format's own name.
    pub fn name(self) -> &'static str {
        REASONINGS.iter().find(|(format, _)| *format == self).map_or("", |(_, names)| names[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_lead_back_to_their_formats() {
        for format in ToolFormat::all() {
            assert_eq!(ToolFormat::by_name(format.name()), Some(format));
        }
        for format in ReasoningFormat::all() {
            assert_eq!(ReasoningFormat::by_name(format.name()), Some(format));
        }
        assert!(ReasoningFormat::names().count() >= 8);
        assert_eq!(ToolFormat::by_name("Qwen3-Coder"), Some(ToolFormat::Qwen3Coder));
        assert_eq!(ToolFormat::by_name("abacus"), None);
        let all: Vec<&str> = TOOLS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        let all: Vec<&str> = REASONINGS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn templates_tell_the_format_of_calls() {
        let check = |template: &str, format: Option<ToolFormat>| {
            assert_eq!(ToolFormat::detect(template), format, "{template}");
        };
        let hermes = "{{- '<tool_call>\\n{\"name\": \"' }}{{ tool_call.name }}";
        check(hermes, Some(ToolFormat::Hermes));
        check("within <tool_call> tags: <function=example>", Some(ToolFormat::Qwen3Coder));
        check("{{ '<tool_call>' + tc.name }}<arg_key>{{ k }}", Some(ToolFormat::Glm45));
        check("{{- '<|python_tag|>' + tool_call.name }}", Some(ToolFormat::Llama3Json));
        check("{\"name\": function name, \"parameters\": d}", Some(ToolFormat::Llama3Json));
        check("[func_name1(params_name1=params_value1)]", Some(ToolFormat::Pythonic));
        check("'<|python_start|>'", Some(ToolFormat::Pythonic));
        check("'<|tool_list_start|>['", Some(ToolFormat::Lfm2));
        check("{{- \"[TOOL_CALLS][\" }}", Some(ToolFormat::Mistral));
        let deepseek = "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>'";
        check(&format!("{deepseek} + name + '\\n```json\\n'"), Some(ToolFormat::DeepseekV3));
        check(deepseek, Some(ToolFormat::DeepseekV31));
        check("<｜DSML｜function_calls>", Some(ToolFormat::DeepseekV32));
        check("'<|tool|>' + message['tools'] + '<|/tool|>'", Some(ToolFormat::Phi4));
        check("'<|tool_call|>'", Some(ToolFormat::Granite));
        check("'<tool_calls>['", Some(ToolFormat::Jamba));
        check("'<TOOLCALL>['", Some(ToolFormat::Nemotron));
        check("'<seed:tool_call>\\n<function='", Some(ToolFormat::SeedOss));
        check("'<|tool_calls_section_begin|>'", Some(ToolFormat::KimiK2));
        check("'<minimax:tool_call>\\n<invoke name=\"'", Some(ToolFormat::MinimaxM2));
        check("'<|start|>assistant<|channel|>final<|message|>'", Some(ToolFormat::Harmony));
        check("{{ message.content }}", None);
    }

    #[test]
    fn templates_tell_the_format_of_the_reasoning() {
        let check = |template: &str, format: Option<ReasoningFormat>| {
            assert_eq!(ReasoningFormat::detect(template), format, "{template}");
        };
        check("<|im_start|>{{ '</think>' }}", Some(ReasoningFormat::Qwen3));
        check("<｜Assistant｜>{{ split('</think>') }}", Some(ReasoningFormat::DeepseekR1));
        let toggled = "{% if thinking %}<｜Assistant｜><think>{% else %}</think>";
        check(toggled, Some(ReasoningFormat::DeepseekV3));
        check("</think><arg_key>", Some(ReasoningFormat::Glm45));
        check("</think>[|assistant|]", Some(ReasoningFormat::Exaone4));
        check("[|assistant|]<thought>", Some(ReasoningFormat::ExaoneDeep));
        check("</think><minimax:tool_call>", Some(ReasoningFormat::Minimax));
        check("</think><TOOLCALL>", Some(ReasoningFormat::Nemotron));
        check("</think><|tool_calls_section_begin|>", Some(ReasoningFormat::KimiK2));
        check("<seed:think>", Some(ReasoningFormat::SeedOss));
        check("◁think▷", Some(ReasoningFormat::Kimi));
        check("[THINK]", Some(ReasoningFormat::Mistral));
        check("'Here is my thought process:'", Some(ReasoningFormat::Granite));
        check("<|channel|>analysis<|message|>", Some(ReasoningFormat::GptOss));
        check("<think>", Some(ReasoningFormat::Think));
        check("{{ message.content }}", None);
    }
}
