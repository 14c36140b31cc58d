//! Grammars of every format, as the engine reads them.

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Map;

use super::*;
use crate::settings::Settings;

/// What a model would say in a format to call `clock` with a zone.
fn call(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::Hermes => {
            "<tool_call>\n{\"name\": \"clock\", \"arguments\": {\"zone\": \"CET\"}}\n</tool_call>"
        }
        ToolFormat::Llama3Json => "{\"name\": \"clock\", \"parameters\": {\"zone\": \"CET\"}}",
        ToolFormat::Pythonic => "[clock(zone=\"CET\")]",
        ToolFormat::Lfm2 => "<|tool_call_start|>[clock(zone=\"CET\")]<|tool_call_end|>",
        ToolFormat::Mistral => "[TOOL_CALLS]clock[ARGS]{\"zone\": \"CET\"}",
        ToolFormat::DeepseekV3 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n\
             {\"zone\": \"CET\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolFormat::DeepseekV31 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{\"zone\": \"CET\"}\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolFormat::DeepseekV32 => {
            "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"clock\">\n\
             <｜DSML｜parameter name=\"zone\" string=\"true\">CET</｜DSML｜parameter>\n\
             </｜DSML｜invoke>\n</｜DSML｜function_calls>"
        }
        ToolFormat::Phi4 => "functools[{\"name\": \"clock\", \"arguments\": {\"zone\": \"CET\"}}]",
        ToolFormat::Granite => {
            "<|tool_call|>[{\"name\": \"clock\", \"arguments\": {\"zone\": \"CET\"}}]"
        }
        ToolFormat::Jamba => {
            "<tool_calls>[{\"name\": \"clock\", \"arguments\": {\"zone\": \"CET\"}}]</tool_calls>"
        }
        ToolFormat::Nemotron => {
            "<TOOLCALL>[{\"name\": \"clock\", \"arguments\": {\"zone\": \"CET\"}}]</TOOLCALL>"
        }
        ToolFormat::Qwen3Coder => {
            "<tool_call>\n<function=clock>\n<parameter=zone>\nCET\n</parameter>\n</function>\n\
             </tool_call>"
        }
        ToolFormat::SeedOss => {
            "<seed:tool_call>\n<function=clock>\n<parameter=zone>CET</parameter>\n</function>\n\
             </seed:tool_call>"
        }
        ToolFormat::Glm45 => {
            "<tool_call>clock\n<arg_key>zone</arg_key>\n<arg_value>CET</arg_value>\n</tool_call>"
        }
        ToolFormat::KimiK2 => {
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.clock:0\
             <|tool_call_argument_begin|>{\"zone\": \"CET\"}<|tool_call_end|>\
             <|tool_calls_section_end|>"
        }
        ToolFormat::MinimaxM2 => {
            "<minimax:tool_call>\n<invoke name=\"clock\">\n<parameter name=\"zone\">CET\
             </parameter>\n</invoke>\n</minimax:tool_call>"
        }
        ToolFormat::Harmony => {
            "<|channel|>analysis<|message|>Which zone?<|end|><|start|>assistant<|channel|>\
             commentary to=functions.clock <|constrain|>json<|message|>{\"zone\": \"CET\"}"
        }
    }
}

fn tools(more: Json) -> Tools {
    let zone = json!({"type": "string", "enum": ["UTC", "CET"]});
    let parameters = json!({"type": "object", "properties": {"zone": zone},
        "required": ["zone"], "additionalProperties": false});
    let clock = json!({"type": "function",
        "function": {"name": "clock", "parameters": parameters}});
    let mut body = Map::new();
    body.insert("tools".into(), json!([clock]));
    body.extend(more.as_object().cloned().unwrap_or_default());
    Tools::read(&Settings::of_body(&body).unwrap()).unwrap()
}

/// The bytes, the end of a text and what a format marks calls with, as control tokens or not.
struct Words {
    texts: Vec<Vec<u8>>,
    marks: Marks,
    factory: ParserFactory,
}

impl Words {
    fn new(format: ToolFormat, has_controls: bool) -> Self {
        let mut texts: Vec<Vec<u8>> = (0..=255_u8).map(|byte| vec![byte]).collect();
        let mut words = texts.clone();
        words.push(b"\xFF<eos>".to_vec());
        texts.push(Vec::new());
        let mut marks = Marks::default();
        for marker in format.markers().iter().filter(|_| has_controls) {
            marks.0.push(((*marker).to_owned(), words.len() as TokenId));
            texts.push(marker.as_bytes().to_vec());
            words.push([b"\xFF", marker.as_bytes()].concat());
        }
        // A token of a single such byte would be taken for a control token's name.
        words[255] = Vec::new();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, 256), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).unwrap();
        factory.quiet();
        Self { texts, marks, factory }
    }

    /// Returns whether a text fits, whole; an error says from where on it does not.
    fn reads(&self, grammar: &str, text: &str) -> Result<(), String> {
        let grammar = TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(grammar.into()));
        let parser = self.factory.create_parser(grammar).map_err(|error| error.to_string())?;
        let mut matcher = Matcher::new(Ok(parser));
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let longest = self.texts.iter().zip(0..).filter(|(word, _)| !word.is_empty());
            let longest = longest.filter(|(word, _)| rest.starts_with(word));
            let (word, token) = longest.max_by_key(|(word, _)| word.len()).unwrap();
            let mask = matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
            if !mask.is_allowed(token) {
                return Err(String::from_utf8_lossy(rest).into_owned());
            }
            matcher.consume_token(token).map_err(|error| error.to_string())?;
            rest = &rest[word.len()..];
        }
        let is_whole = matcher.is_accepting().map_err(|error| error.to_string())?;
        is_whole.then_some(()).ok_or_else(|| "it is not whole".to_owned())
    }
}

fn grammar(constraint: &Constraint, tools: &Tools, format: ToolFormat, marks: &Marks) -> String {
    match either(constraint, tools, format, marks) {
        Some(Constraint::Grammar(grammar)) => grammar,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_format_may_call_or_keep_the_schema() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}},
        "required": ["city"], "additionalProperties": false});
    let schema = Constraint::JsonSchema(schema.to_string());
    for format in ToolFormat::all() {
        for has_controls in [false, true] {
            let words = Words::new(format, has_controls);
            let grammar = grammar(&schema, &tools(json!({})), format, &words.marks);
            let reads = |text: &str| words.reads(&grammar, text);
            assert_eq!(reads(call(format)), Ok(()), "{format:?}\n{grammar}");
            assert_eq!(reads("{\"city\": \"Rome\"}"), Ok(()), "{format:?}\n{grammar}");
            for text in ["Hello", "{\"town\": \"Rome\"}", "{\"city\": \"Rome\"} and"] {
                assert!(reads(text).is_err(), "{format:?}: {text}\n{grammar}");
            }
        }
    }
}

#[test]
fn names_and_arguments_in_json_are_those_of_the_tools() {
    for format in [
        ToolFormat::Hermes,
        ToolFormat::Llama3Json,
        ToolFormat::Phi4,
        ToolFormat::Granite,
        ToolFormat::Jamba,
        ToolFormat::Nemotron,
    ] {
        let words = Words::new(format, false);
        let grammar = grammar(&Constraint::JsonObject, &tools(json!({})), format, &words.marks);
        let right = call(format);
        for (from, to) in [("clock", "cloak"), ("CET", "MEZ"), ("zone", "area")] {
            let wrong = right.replace(from, to);
            let is_marked = !right.starts_with('{');
            assert_eq!(words.reads(&grammar, &wrong).is_err(), is_marked, "{format:?}: {wrong}");
        }
    }
}

#[test]
fn calls_are_bounded_in_their_number() {
    let format = ToolFormat::Hermes;
    let words = Words::new(format, false);
    let check = |tools: &Tools, most: usize| {
        let grammar = grammar(&Constraint::JsonObject, tools, format, &words.marks);
        assert_eq!(words.reads(&grammar, &vec![call(format); most].join("\n")), Ok(()));
        assert!(words.reads(&grammar, &vec![call(format); most + 1].join("\n")).is_err());
    };
    check(&tools(json!({})), 16);
    check(&Tools { max_calls: 3, ..tools(json!({})) }, 3);
    check(&tools(json!({"parallel_tool_calls": false})), 1);
}

#[test]
fn other_constraints_are_alternatives_too() {
    let format = ToolFormat::Hermes;
    let words = Words::new(format, true);
    let check = |constraint: Constraint, right: &str, wrong: &str| {
        let grammar = grammar(&constraint, &tools(json!({})), format, &words.marks);
        assert_eq!(words.reads(&grammar, right), Ok(()), "{grammar}");
        assert_eq!(words.reads(&grammar, call(format)), Ok(()), "{grammar}");
        assert!(words.reads(&grammar, wrong).is_err(), "{grammar}");
    };
    check(Constraint::Regex("^[a-z]/[0-9]$".into()), "a/7", "a7");
    check(Constraint::Regex(r"a\/\$".into()), "a/$", "a/");
    check(Constraint::Choice(vec!["say \"yes\"\n".into(), "no".into()]), "say \"yes\"\n", "yes");
    let own = Constraint::Grammar("start: \"x\"".into());
    assert_eq!(either(&own, &tools(json!({})), format, &words.marks), None);
}

#[test]
fn structural_tags_leave_all_else_free() {
    let mut body = Map::new();
    let structure = json!({"begin": "<function=clock>", "end": "</function>",
        "schema": {"type": "object", "properties": {"zone": {"enum": ["CET"]}},
            "required": ["zone"], "additionalProperties": false}});
    let old = json!({"type": "structural_tag", "structures": [structure],
        "triggers": ["<function="]});
    let tag = json!({"type": "tag", "begin": structure["begin"], "end": structure["end"],
        "content": {"type": "json_schema", "json_schema": structure["schema"]}});
    let new = json!({"type": "structural_tag", "format": {"type": "triggered_tags",
        "triggers": ["<function="], "tags": [tag]}});
    let words = Words::new(ToolFormat::Hermes, false);
    for tags in [old.clone(), new, Json::from(old.to_string())] {
        body.insert("structured_outputs".into(), json!({"structural_tag": tags}));
        let read = crate::constraint::read(&Settings::of_body(&body).unwrap()).unwrap().unwrap();
        let Constraint::Grammar(grammar) = read.1 else { panic!("{read:?}") };
        let call = "<function=clock>{\"zone\": \"CET\"}</function>";
        for text in ["Hello", call, &format!("Two: {call}{call}!")] {
            assert_eq!(words.reads(&grammar, text), Ok(()), "{grammar}");
        }
        for text in ["<function=cloak>", "So <function=clock>{\"zone\": \"UTC\"}"] {
            assert!(words.reads(&grammar, text).is_err(), "{grammar}");
        }
    }
}
