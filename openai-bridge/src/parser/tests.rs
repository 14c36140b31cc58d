//! The laws of the parsers, over a corpus and over any text.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;

mod corpus;

use corpus::{Sheet, sheets};

/// How often the texts of a sheet are cut.
const CUTS: u32 = 10_000;

fn schemas() -> Arc<Schemas> {
    let typed = json!({"properties": {
        "text": {"type": "string"}, "count": {"type": "integer"}, "map": {"type": "object"},
        "flag": {"type": "boolean"},
    }});
    let tools = [("f", json!({})), ("g", json!({})), ("typed", typed)];
    Arc::new(tools.map(|(name, schema)| (name.to_owned(), schema)).into())
}

fn parser(sheet: &Sheet) -> OutputParser {
    OutputParser::new(ParserConfig {
        tools: sheet.tools.clone(),
        reasoning: sheet.reasoning,
        starts_in_reasoning: sheet.starts_in_reasoning,
        schemas: schemas(),
    })
}

/// Parses pieces, each push with a list of its own, and joins neighbours of one kind.
fn parse<'a>(mut parser: OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Event> {
    let mut out = Vec::new();
    let mut all = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut out);
        all.append(&mut out);
    }
    parser.finish(&mut out);
    all.append(&mut out);
    let mut joined: Vec<Event> = Vec::new();
    for event in all {
        match (joined.last_mut(), event) {
            (Some(Event::Content(last)), Event::Content(text))
            | (Some(Event::Reasoning(last)), Event::Reasoning(text)) => last.push_str(&text),
            (
                Some(Event::Arguments { index: before, text: last }),
                Event::Arguments { index, text },
            ) if *before == index => last.push_str(&text),
            (_, event) => joined.push(event),
        }
    }
    joined
}

/// Writes an event as the corpus does.
fn short(event: &Event) -> String {
    match event {
        Event::Reasoning(text) => format!("r:{text}"),
        Event::Content(text) => format!("c:{text}"),
        Event::CallBegun { index, id: None, name } => format!("b{index}:{name}"),
        Event::CallBegun { index, id: Some(id), name } => format!("b{index}:{name}#{id}"),
        Event::Arguments { index, text } => format!("a{index}:{text}"),
    }
}

fn pieces<'a>(text: &'a str, borders: &[usize]) -> Vec<&'a str> {
    let mut borders: Vec<usize> =
        borders.iter().copied().filter(|&border| text.is_char_boundary(border)).collect();
    borders.extend([0, text.len()]);
    borders.sort_unstable();
    borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

#[test]
fn every_format_has_a_sheet() {
    let sheets = sheets();
    for format in ToolFormat::all() {
        let syntax = Some(Syntax::Format(format));
        assert!(sheets.iter().any(|sheet| sheet.tools == syntax), "{format:?}");
    }
    for format in ReasoningFormat::all() {
        assert!(sheets.iter().any(|sheet| sheet.reasoning == Some(format)), "{format:?}");
    }
}

#[test]
fn texts_mean_what_the_corpus_says() {
    for sheet in sheets() {
        for (text, events) in sheet.cases {
            let parsed: Vec<String> = parse(parser(&sheet), [*text]).iter().map(short).collect();
            assert_eq!(parsed, *events, "{:?} {:?}\n{text}", sheet.tools, sheet.reasoning);
        }
    }
}

#[test]
fn arguments_of_whole_calls_are_json() {
    for sheet in sheets() {
        for (text, _) in sheet.cases.iter().filter(|(text, _)| text.ends_with(['>', ']', '}'])) {
            for event in parse(parser(&sheet), [*text]) {
                let Event::Arguments { text: arguments, .. } = event else { continue };
                let value: Result<serde_json::Value, _> = serde_json::from_str(&arguments);
                assert!(value.is_ok_and(|value| value.is_object()), "{arguments} of {text}");
            }
        }
    }
}

/// Cuts each sheet's texts again and again; the sheets are shared out among several tests.
fn cut(sheets: impl Iterator<Item = Sheet>) {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 33) as usize % below.max(1)
    };
    for sheet in sheets {
        let parser = parser(&sheet);
        let whole: Vec<Vec<Event>> =
            sheet.cases.iter().map(|(text, _)| parse(parser.clone(), [*text])).collect();
        for round in 0..CUTS {
            let case = random(sheet.cases.len());
            let text = sheet.cases[case].0;
            let count = 1 + random(if round % 4 == 0 { text.len() } else { 6 });
            let borders: Vec<usize> = (0..count).map(|_| random(text.len() + 1)).collect();
            let cut = pieces(text, &borders);
            assert_eq!(parse(parser.clone(), cut.iter().copied()), whole[case], "{cut:?}");
        }
    }
}

#[test]
fn cuts_do_not_change_the_events() {
    cut(sheets().into_iter().step_by(2));
}

#[test]
fn cuts_do_not_change_the_events_of_the_other_half() {
    cut(sheets().into_iter().skip(1).step_by(2));
}

/// Returns all text of the events, calls' names included.
fn text_of(events: &[Event]) -> String {
    let text = |event: &Event| match event {
        Event::Reasoning(text) | Event::Content(text) => text.clone(),
        Event::CallBegun { name, .. } => name.clone(),
        Event::Arguments { text, .. } => text.clone(),
    };
    events.iter().map(text).collect()
}

/// What a hostile text can make the parsers hold back costs no more than its length.
#[test]
fn long_runs_are_read_in_time() {
    for sheet in sheets() {
        for (start, run) in [("", " "), ("<tool_call>", "\n"), ("[TOOL_CALLS]", "["), ("{", "{")] {
            let text = start.to_owned() + &run.repeat(100_000);
            let events = parse(parser(&sheet), [text.as_str()]);
            assert!(events.len() <= 2, "{events:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Broken and mixed texts: pieces of the corpus, in any order, cut anywhere.
    #[test]
    fn broken_texts_obey_the_law(
        parts in
            prop::collection::vec((any::<prop::sample::Index>(), 0usize..400, 0usize..60), 1..8),
        borders in prop::collection::vec(0usize..600, 0..12),
    ) {
        for sheet in sheets() {
            let mut text = String::new();
            for (case, start, length) in &parts {
                let source = case.get(sheet.cases).0;
                let chars = source.chars().skip(start % (1 + source.len())).take(*length);
                text.extend(chars);
            }
            let whole = parse(parser(&sheet), [text.as_str()]);
            let cut = parse(parser(&sheet), pieces(&text, &borders));
            prop_assert_eq!(&cut, &whole, "{}", text);
            let mut begun = 0;
            for event in &whole {
                match event {
                    Event::CallBegun { index, .. } => {
                        prop_assert_eq!(*index, begun);
                        begun += 1;
                    }
                    Event::Arguments { index, .. } => prop_assert_eq!(*index + 1, begun),
                    _ => {}
                }
            }
        }
    }

    /// Without markers, all of it comes back, but for white space at the edges.
    #[test]
    fn plain_text_is_content(text in "[a-z é.,\n<>()]{0,60}") {
        for sheet in sheets().into_iter().filter(|sheet| !sheet.starts_in_reasoning) {
            let events = parse(parser(&sheet), [text.as_str()]);
            let read = text_of(&events);
            prop_assert_eq!(read.trim(), text.trim());
            let is_one = events.len() <= 1;
            prop_assert!(is_one, "{:?}", events);
        }
    }
}
