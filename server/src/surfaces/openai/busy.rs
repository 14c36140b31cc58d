//! `/busy_threshold`: when a model counts as busy, read and changed while it runs.

use axum::extract::{Request, State};
use axum::response::Response;
use engine::{Error, Result};
use openai_bridge::api::Body;
use serde_json::{Value as Json, json};

use super::OpenAi;
use super::answer::{failure, fine};
use super::call::{read, text_model};
use crate::pipeline::Limits;
use crate::support::status::Dialect;
use crate::surfaces::http::receive::receive;

/// The fields, by the reference's names.
const BLOCKS: &str = "active_decode_blocks_threshold";
const PREFILL: &str = "active_prefill_tokens_threshold";

/// The field of what the reference has no threshold for.
const WAITING: &str = "waiting_requests_threshold";

/// `GET /busy_threshold`: the thresholds of every text model.
pub(super) async fn list(State(door): State<OpenAi>) -> Response {
    let ready = door.shared.models.ready();
    let texts = ready.iter().filter_map(|model| Some((model, model.text.as_ref()?)));
    let all: Vec<Json> =
        texts.map(|(model, text)| described(&model.name, text.thresholds.limits())).collect();
    fine(&json!({ "thresholds": all }))
}

/// `POST /busy_threshold`: changes the thresholds that the body names; null takes one away.
pub(super) async fn set(State(door): State<OpenAi>, request: Request) -> Response {
    let work = async {
        let received = receive(request, &door.intake).await?;
        let (received, body) = read(received).await?;
        let (model, text) = text_model(&door, &received.grant, &body)?;
        check_known(&model.name, text.texts.bridge.takes_texts(), &body)?;
        let limits = changed(text.thresholds.limits(), &body)?;
        text.thresholds.set(limits);
        Ok(described(&model.name, limits))
    };
    match work.await {
        Ok(value) => fine(&value),
        Err(error) => failure(&door, Dialect::OpenAi, &error),
    }
}

fn described(model: &str, limits: Limits) -> Json {
    let Limits { blocks, prefill_tokens, waiting_requests } = limits;
    json!({ "model": model, BLOCKS: blocks, PREFILL: prefill_tokens, WAITING: waiting_requests })
}

/// Refuses thresholds of what is not known of a model whose engine takes texts.
fn check_known(model: &str, takes_texts: bool, body: &Body) -> Result<()> {
    let is_set = |field: &&str| body.get(*field).is_some_and(|value| !value.is_null());
    match [BLOCKS, PREFILL].into_iter().find(is_set).filter(|_| takes_texts) {
        None => Ok(()),
        Some(field) => {
            let text = format!(
                "`{field}`: model `{model}` takes texts, so its tokens and KV blocks are not known \
                 here: only `{WAITING}` can be set"
            );
            Err(Error::invalid(text).with_param(field))
        }
    }
}

fn changed(mut limits: Limits, body: &Body) -> Result<Limits> {
    let wrong = |field: &str, expected: &str, got: &Json| {
        Error::invalid(format!("`{field}`: expected {expected} or null, got {got}"))
            .with_param(field)
    };
    match body.get(BLOCKS) {
        None => {}
        Some(Json::Null) => limits.blocks = None,
        Some(value) => {
            let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
            let share = share.ok_or_else(|| wrong(BLOCKS, "a number above 0 and up to 1", value));
            limits.blocks = Some(share?);
        }
    }
    for (field, limit) in
        [(PREFILL, &mut limits.prefill_tokens), (WAITING, &mut limits.waiting_requests)]
    {
        match body.get(field) {
            None => {}
            Some(Json::Null) => *limit = None,
            Some(value) => {
                let count = value.as_u64().filter(|count| *count > 0);
                *limit = Some(count.ok_or_else(|| wrong(field, "a whole number from 1", value))?);
            }
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |takes_texts, body: Json| {
            let Json::Object(body) = body else { panic!("not an object") };
            check_known("m", takes_texts, &body).map_err(|error| error.param().map(str::to_owned))
        };
        for field in [BLOCKS, PREFILL] {
            assert_eq!(check(true, json!({ field: 0.5 })), Err(Some(field.to_owned())));
            assert_eq!(check(true, json!({ field: null })), Ok(()));
            assert_eq!(check(false, json!({ field: 0.5 })), Ok(()));
        }
        assert_eq!(check(true, json!({ WAITING: 3 })), Ok(()));
    }

    #[test]
    fn only_what_is_named_changes() {
        let before =
            Limits { blocks: Some(0.5), prefill_tokens: Some(100), waiting_requests: Some(3) };
        let change = |body: Json| {
            let Json::Object(body) = body else { panic!("not an object") };
            changed(before, &body).map_err(|error| error.to_string())
        };
        assert_eq!(change(json!({})), Ok(before));
        let without = Limits { blocks: None, ..before };
        assert_eq!(change(json!({ BLOCKS: null })), Ok(without));
        let more = Limits { prefill_tokens: Some(7), ..before };
        assert_eq!(change(json!({ PREFILL: 7 })), Ok(more));
        let other = Limits { waiting_requests: Some(8), ..before };
        assert_eq!(change(json!({ WAITING: 8 })), Ok(other));
        for body in [json!({ BLOCKS: 0 }), json!({ BLOCKS: 1.5 }), json!({ PREFILL: "x" })] {
            assert!(change(body.clone()).unwrap_err().contains("expected"), "{body}");
        }
    }

    #[test]
    fn what_is_described_is_what_is_taken() {
        let base: Json = serde_json::from_str(include_str!("../pages/openapi/base.json")).unwrap();
        let described = &base["components"]["schemas"]["BusyThreshold"]["properties"];
        let none = Limits { blocks: None, prefill_tokens: None, waiting_requests: None };
        for field in [BLOCKS, PREFILL, WAITING] {
            let described = &described[field];
            let is_taken = |value: f64| {
                let value = match described["type"][0] == "integer" {
                    true => json!(value as u64),
                    false => json!(value),
                };
                let Json::Object(body) = json!({ field: value }) else { panic!("no object") };
                changed(none, &body).is_ok()
            };
            match (described["minimum"].as_f64(), described["exclusiveMinimum"].as_f64()) {
                (Some(least), None) => assert!(is_taken(least) && !is_taken(least - 1.0)),
                (None, Some(bound)) => assert!(!is_taken(bound) && is_taken(bound + 0.01)),
                bounds => panic!("{field}: {bounds:?}"),
            }
        }
    }
}
