#![no_main]
//! Bodies of the OpenAI API and its relatives: whatever JSON comes is refused or becomes a request.
//!
//! The first byte chooses the API, the rest is the body. What was accepted is also encoded, so the
//! chat template and the tokenizer see it.

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use openai_bridge::api::{self, Asked, Body, Stamp};
use openai_bridge::{Now, TextBridge};
use worker::runner::mock::{self, MockConfig};

static BRIDGE: LazyLock<TextBridge> = LazyLock::new(|| {
    let card = mock::card("mock", &MockConfig::default());
    TextBridge::new(&card, &mock::vocabulary()).expect("the mock's own tables are sound")
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let Ok(body) = serde_json::from_slice::<Body>(data) else { return };
    let stamp = || Stamp { id: "0".repeat(32), created: 0, model: "mock".into() };
    let text = |asked: engine::Result<Asked>| {
        if let Ok(asked) = asked {
            let _ = BRIDGE.encode(&asked.completion, Now::default());
        }
    };
    match choice % 8 {
        0 => text(api::chat::read(&BRIDGE, body, stamp())),
        1 => text(api::completions::read(&BRIDGE, body, stamp())),
        2 => text(api::responses::read(&BRIDGE, body, stamp())),
        3 => text(api::messages::read(&BRIDGE, body, stamp())),
        4 => drop(api::embeddings::read(&body)),
        5 => drop(api::rerank::read(&body)),
        6 => drop(api::tokens::tokenize(&BRIDGE, &body, Now::default())),
        _ => drop(api::tokens::detokenize(&BRIDGE, &body)),
    }
});
