//! Completions with the log-probabilities of prompt and text.

use engine::FinishReason;

use super::*;
use crate::{Finish, Scored};

fn score(text: &str, rank: u32, logprob: f32) -> Score {
    let scored = |text: &str, logprob| Scored { id: 0, bytes: text.into(), logprob };
    let top = if rank == 0 { Vec::new() } else { vec![scored("x", -0.5)] };
    Score { token: scored(text, logprob), rank, top }
}

#[test]
fn an_echo_has_scores_from_the_second_token_on() {
    let delta = Delta {
        events: vec![Event::Content("ab".into()), Event::Content("é!".into())],
        prompt_logprobs: vec![score("a", 0, f32::NAN), score("b", 2, -1.0)],
        logprobs: vec![score("é", 1, -0.25), score("!", 1, -0.5)],
        tokens: 2,
        finish: Some(Finish { reason: FinishReason::Stop, stop: None, cached_tokens: 0 }),
        ..Delta::default()
    };
    let output = TextOutput {
        deltas: vec![delta],
        prompt_tokens: [2].into(),
        is_last: true,
        ..TextOutput::default()
    };
    let stamp = Stamp { id: "0".into(), created: 1, model: "m".into() };
    let mut form = Text::new(stamp, StreamOptions::default(), 1, (true, true));
    let mut out = Vec::new();
    form.write(output.clone(), &mut out);
    let streamed: Json = serde_json::from_slice(&out[6..]).unwrap();
    let mut fold = Fold::default();
    fold.push(output);
    let whole = form.whole(fold);
    assert_eq!(whole["choices"], streamed["choices"]);
    let choice = &whole["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("abé!"), &json!("stop")));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "é", "!"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -0.25, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!(logprobs["top_logprobs"][0], Json::Null);
    assert_eq!(logprobs["top_logprobs"][1], json!({"x": -0.5}));
}
