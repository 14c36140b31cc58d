#![no_main]
//! Model output as hostile text: every format of calls and of reasoning, cut anywhere.
//!
//! Nothing panics, the cuts do not matter, and no call gets arguments before it begins.

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use openai_bridge::parser::{
    Event, OutputParser, ParserConfig, ReasoningFormat, Schemas, Syntax, ToolFormat,
};

static CONFIGS: LazyLock<Vec<ParserConfig>> = LazyLock::new(|| {
    let typed = r#"{"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}"#;
    let typed = serde_json::from_str(typed).expect("it is JSON");
    let schemas: Arc<Schemas> = Arc::new([("f".to_owned(), typed)].into());
    let mut syntaxes: Vec<Option<Syntax>> =
        ToolFormat::all().map(|format| Some(format.into())).collect();
    syntaxes.extend([None, Some(Syntax::Array), Some(Syntax::Named("f".to_owned()))]);
    let mut configs = Vec::new();
    for tools in syntaxes {
        configs.push(ParserConfig { tools, schemas: schemas.clone(), ..ParserConfig::default() });
    }
    for (at, reasoning) in ReasoningFormat::all().enumerate() {
        let tools = ToolFormat::all().nth(at % ToolFormat::all().count()).map(Syntax::Format);
        let schemas = Arc::default();
        let starts_in_reasoning = at % 2 == 0;
        let reasoning = Some(reasoning);
        configs.push(ParserConfig { tools, reasoning, starts_in_reasoning, schemas });
    }
    configs
});

fuzz_target!(|data: &[u8]| {
    let Some((&seed, data)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(data);
    for config in CONFIGS.iter() {
        let whole = parse(config, [&*text]);
        check(&whole);
        assert_eq!(parse(config, pieces(&text, seed)), whole, "{config:?}");
    }
});

/// Cuts a text into pieces whose lengths the seed chooses.
fn pieces(mut text: &str, seed: u8) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut state = usize::from(seed);
    while !text.is_empty() {
        state = state.wrapping_mul(31).wrapping_add(7);
        let mut end = (1 + state % 9).min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let (piece, rest) = text.split_at(end);
        pieces.push(piece);
        text = rest;
    }
    pieces
}

/// Returns the events with neighbours joined, each push having written to a list of its own.
fn parse<'a>(config: &ParserConfig, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Event> {
    let mut parser = OutputParser::new(config.clone());
    let (mut all, mut out) = (Vec::new(), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut out);
        out.drain(..).for_each(|event| join(&mut all, event));
    }
    parser.finish(&mut out);
    out.drain(..).for_each(|event| join(&mut all, event));
    all
}

fn join(all: &mut Vec<Event>, event: Event) {
    match (all.last_mut(), event) {
        (Some(Event::Content(last)), Event::Content(text))
        | (Some(Event::Reasoning(last)), Event::Reasoning(text)) => last.push_str(&text),
        (
            Some(Event::Arguments { index: before, text: last }),
            Event::Arguments { index, text },
        ) if *before == index => last.push_str(&text),
        (_, event) => all.push(event),
    }
}

/// Calls count from 0, and arguments belong to the last call.
fn check(events: &[Event]) {
    let mut begun = 0;
    for event in events {
        match event {
            Event::CallBegun { index, name, .. } => {
                assert_eq!(*index, begun);
                assert!(!name.is_empty());
                begun += 1;
            }
            Event::Arguments { index, .. } => assert_eq!(*index + 1, begun),
            Event::Content(_) | Event::Reasoning(_) => {}
        }
    }
}
