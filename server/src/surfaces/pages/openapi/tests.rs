//! That the document says all and only what is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

/// Files that hold routes, from the crate's root, and what their routes are nested under.
const ROUTERS: [(&str, &[&str]); 2] =
    [("src/surfaces/rest/mod.rs", &["", "/v2", MODEL]), ("src/surfaces/openai", &["", "/v1"])];

/// Returns the sources at a path: a file, or those in a folder.
fn sources(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if let Ok(text) = fs::read_to_string(&path) {
        return text;
    }
    let files = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    files.filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// Returns a path without the names of its parameters.
fn anonymous(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    let path = parts.collect::<Vec<_>>().join("/");
    if path.len() > 1 { path.trim_end_matches('/').to_owned() } else { path }
}

#[test]
fn every_route_of_the_routers_is_described() {
    let document = document();
    let described: BTreeSet<String> =
        document["paths"].as_object().unwrap().keys().map(|path| anonymous(path)).collect();
    let mut count = 0;
    for (file, prefixes) in ROUTERS {
        for rest in sources(file).split(".route(").skip(1) {
            let Some(rest) = rest.trim_start().strip_prefix('"') else { continue };
            let route = rest.split('"').next().unwrap();
            let forms = prefixes.iter().map(|prefix| anonymous(&format!("{prefix}{route}")));
            let is_told = forms.into_iter().any(|form| described.contains(&form));
            assert!(is_told, "the OpenAPI document lacks {route} of {file}");
            count += 1;
        }
    }
    // The routes that can be moved are named in PATHS, and looked for below.
    assert!(count > 25, "only {count} routes were found");
    for (name, path) in PATHS {
        assert!(described.contains(path), "the OpenAPI document lacks {name} at {path}");
    }
}

#[test]
fn moved_routes_are_described_where_they_are() {
    let moves = ["models=/m", "page=/ui", "videos=/v", "chat=/a/chat/completions"];
    let paths = Paths::parse("", &moves.map(str::to_owned)).unwrap();
    let table = [
        ("/v1/models", "/m"),
        ("/v1/models/{model}", "/m/{model}"),
        ("/", "/ui"),
        ("/docs", "/docs"),
        ("/v1/videos/generations", "/v"),
        ("/v1/videos/generations/stream", "/v1/videos/generations/stream"),
        ("/v1/chat/completions", "/a/chat/completions"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v2/models/{model}", "/v2/models/{model}"),
    ];
    let document = document_of(&paths);
    for (usual, moved) in table {
        assert_eq!(moved_to(&paths, usual), moved, "{usual}");
        assert!(document["paths"][moved].is_object(), "{moved}");
    }
}

/// Calls a function with every object of a value.
fn visit(value: &Value, seen: &mut dyn FnMut(&Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            seen(object);
            object.values().for_each(|value| visit(value, seen));
        }
        Value::Array(list) => list.iter().for_each(|value| visit(value, seen)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    visit(&document, &mut |object| {
        if let Some(Value::String(to)) = object.get("$ref") {
            let pointer = to.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{to} leads nowhere");
            used.insert(to.rsplit('/').next().unwrap().to_owned());
        }
    });
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(used.contains(name), "the schema {name} is used nowhere");
    }
}

#[test]
fn every_operation_has_a_name_of_its_own_a_group_and_its_parameters() {
    let mut document = document();
    let tags: Vec<Value> = document["tags"].as_array().unwrap().clone();
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object_mut().unwrap() {
        let told = item["parameters"].as_array().map_or(0, Vec::len);
        assert_eq!(told, path.matches('{').count(), "{path}: parameters");
        for operation in operations(item) {
            let name = operation["operationId"].as_str().unwrap().to_owned();
            assert!(names.insert(name.clone()), "{name} is the name of two operations");
            let tag = &operation["tags"][0];
            assert!(tags.iter().any(|known| known["name"] == *tag), "{path}: {tag}");
            assert!(operation["summary"].is_string(), "{path}: no summary");
            assert!(operation["responses"]["200"].is_object(), "{path}: no answer");
        }
    }
}

#[test]
fn errors_are_told_in_the_words_of_each_protocol() {
    let document = document();
    let table = [
        ("/v1/chat/completions", "OpenAiError"),
        ("/v1/messages/count_tokens", "AnthropicError"),
        ("/v2/models/{model}/versions/{version}/infer", "KserveError"),
    ];
    for (path, expected) in table {
        let to = &document["paths"][path]["post"]["responses"]["default"]["$ref"];
        assert_eq!(to, &format!("#/components/responses/{expected}"), "{path}");
    }
}
