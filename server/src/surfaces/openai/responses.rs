//! Responses that were kept: gone on from, asked for, forgotten.

use axum::extract::{Path, State};
use axum::response::Response;
use engine::{Error, Result};
use http::Uri;
use openai_bridge::api::{Body, responses};
use serde_json::{Value as Json, json};

use super::OpenAi;
use super::answer::{failure, fine};
use crate::security::Grant;
use crate::support::status::Dialect;

/// Items of one page of a list, when nothing is said and at most.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// Puts the conversation that a body goes on from before its input.
///
/// Errors: the response that it names is not kept.
pub(super) fn resolve(door: &OpenAi, grant: &Grant, body: &mut Body) -> Result<()> {
    let field = "previous_response_id";
    match body.get(field) {
        None | Some(Json::Null) => Ok(()),
        Some(Json::String(id)) => {
            let record = door.stored.get(grant.owner(), id).ok_or_else(|| {
                Error::invalid(format!("Previous response with id '{id}' not found."))
                    .with_param(field)
                    .with_code("previous_response_not_found")
            })?;
            responses::follow(body, &record);
            Ok(())
        }
        Some(_) => Err(Error::invalid(format!("`{field}`: expected a text")).with_param(field)),
    }
}

/// `GET /v1/responses/ID`
pub(super) async fn retrieve(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
    uri: Uri,
) -> Response {
    let is_streaming = value(&uri, "stream").is_some_and(|value| value != "false");
    let found = match is_streaming {
        true => Err(Error::invalid("`stream`: a response that is over is not streamed again")
            .with_param("stream")),
        false => record(&door, &grant, &id).map(|mut record| record["response"].take()),
    };
    answer(&door, found)
}

/// `DELETE /v1/responses/ID`
pub(super) async fn delete(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
) -> Response {
    let result = match door.stored.remove(grant.owner(), &id) {
        true => Ok(json!({"id": id, "object": "response", "deleted": true})),
        false => Err(unknown(&id)),
    };
    answer(&door, result)
}

/// `POST /v1/responses/ID/cancel`: what is kept is over, and what is not over ends with its
/// client's connection.
pub(super) async fn cancel(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
) -> Response {
    let refused =
        |_| Err(Error::invalid("Cannot cancel a synchronous response.").with_param("background"));
    answer(&door, record(&door, &grant, &id).and_then(refused))
}

/// `GET /v1/responses/ID/input_items`
pub(super) async fn input_items(
    State(door): State<OpenAi>,
    grant: Grant,
    Path(id): Path<String>,
    uri: Uri,
) -> Response {
    let found = record(&door, &grant, &id).and_then(|mut record| match record["input"].take() {
        Json::Array(items) => page(items, &uri),
        _ => Err(Error::internal("a kept response has no items")),
    });
    answer(&door, found)
}

fn answer(door: &OpenAi, result: Result<Json>) -> Response {
    match result {
        Ok(value) => fine(&value),
        Err(error) => failure(door, Dialect::OpenAi, &error),
    }
}

fn record(door: &OpenAi, grant: &Grant, id: &str) -> Result<Json> {
    door.stored.get(grant.owner(), id).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("Response with id '{id}' not found."))
}

/// Returns a value of a query. Ids, numbers and words need no escapes.
pub(super) fn value<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, text)| text)
}

/// Returns a page of items, the last first unless the query says otherwise.
fn page(mut items: Vec<Json>, uri: &Uri) -> Result<Json> {
    let wrong =
        |name: &str, why: &str| Err(Error::invalid(format!("`{name}`: {why}")).with_param(name));
    let limit = match value(uri, "limit").map(str::parse) {
        None => PAGE,
        Some(Ok(limit)) if (1..=MAX_PAGE).contains(&limit) => limit,
        Some(_) => return wrong("limit", "expected a whole number from 1 to 100"),
    };
    match value(uri, "order") {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return wrong("order", "expected asc or desc"),
    }
    if let Some(after) = value(uri, "after") {
        match items.iter().position(|item| item["id"] == after) {
            Some(place) => drop(items.drain(..=place)),
            None => return wrong("after", &format!("there is no item `{after}`")),
        }
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Json>| item.map_or(Json::Null, |item| item["id"].clone());
    Ok(json!({
        "object": "list",
        "first_id": id(items.first()),
        "last_id": id(items.last()),
        "has_more": has_more,
        "data": items,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_pages() {
        let items = || ["a", "b", "c"].map(|id| json!({ "id": id })).to_vec();
        let ids = |query: &str| {
            let uri = format!("/x?{query}").parse().unwrap();
            let page = page(items(), &uri).map_err(|error| error.to_string())?;
            let ids = page["data"].as_array().unwrap().iter();
            let ids: String = ids.map(|item| item["id"].as_str().unwrap()).collect();
            Ok::<_, String>((ids, page["has_more"] == true))
        };
        let table = [
            ("", "cba", false),
            ("order=asc", "abc", false),
            ("order=asc&limit=2", "ab", true),
            ("order=asc&after=a", "bc", false),
            ("limit=1&after=c", "b", true),
            ("after=a", "", false),
        ];
        for (query, expected, has_more) in table {
            assert_eq!(ids(query), Ok((expected.to_owned(), has_more)), "{query}");
        }
        for query in ["limit=0", "limit=101", "limit=x", "order=up", "after=z"] {
            let error = ids(query).unwrap_err();
            let name = query.split_once('=').unwrap().0;
            assert!(error.starts_with(&format!("`{name}`")), "{error}");
        }
    }
}
