//! The pages of the HTTP door: the chat at `/`, the reference at `/docs`, `/openapi.json`.
//!
//! A page is one document without a reference to anything else, so it works offline, and its
//! content security policy lets it run only its own script and talk only to this server.

mod openapi;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use ring::digest;
use serde_json::{Map, Value, json};

use crate::surfaces::paths::Paths;

pub use openapi::document;

const STYLE: &str = include_str!("style.css");

/// What the scripts of both pages begin with.
const COMMON: &str = include_str!("common.js");

/// A document that is ready to be sent.
#[derive(Clone)]
struct Page {
    kind: &'static str,
    policy: Option<HeaderValue>,
    body: Bytes,
}

/// What the pages tell their scripts of the server, as JSON in a `meta` element.
fn facts(grpc_port: u16, paths: &Paths, own: &str) -> String {
    let routes: Map<String, Value> = ["page", "docs", "openapi", "models", "chat"]
        .map(|name| (name.to_owned(), Value::from(paths.get(name))))
        .into_iter()
        .collect();
    json!({ "grpc_port": grpc_port, "paths": routes, "own": paths.get(own) }).to_string()
}

/// Makes the routes; the chat tells the port of gRPC in its examples.
pub(crate) fn router(grpc_port: u16, paths: &Paths) -> Router {
    let facts = |own| facts(grpc_port, paths, own);
    let chat = page(include_str!("chat.html"), include_str!("chat.js"), &facts("page"));
    let docs = page(include_str!("docs.html"), include_str!("docs.js"), &facts("docs"));
    let json = Bytes::from(openapi::document_of(paths).to_string());
    let json = Page { kind: "application/json", policy: None, body: json };
    let route = |page: Page| get(move || async move { page.into_response() });
    Router::new()
        .route(paths.get("page"), route(chat))
        .route(paths.get("docs"), route(docs))
        .route(paths.get("openapi"), route(json))
}

/// Puts style and script into a frame, and names the script's digest in the policy.
fn page(frame: &str, script: &str, facts: &str) -> Page {
    let script = format!("{COMMON}\n{}", script.trim_end());
    let digest = digest::digest(&digest::SHA256, script.as_bytes());
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'unsafe-inline'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        BASE64_STANDARD.encode(digest)
    );
    // The facts are ports and paths, which hold no quote; JSON's own are spelled for HTML.
    let body = frame
        .replace("{{FACTS}}", &facts.replace('&', "&amp;").replace('"', "&quot;"))
        .replace("{{STYLE}}", STYLE)
        .replace("{{SCRIPT}}", &script);
    let policy = HeaderValue::try_from(policy).expect("a policy is made of ASCII");
    Page { kind: "text/html; charset=utf-8", policy: Some(policy), body: Bytes::from(body) }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = self.body.into_response();
        let headers = response.headers_mut();
        let mut set = |name: HeaderName, value| headers.insert(name, value);
        set(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        // A new version of the server has new pages.
        set(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        set(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        set(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        if let Some(policy) = self.policy {
            set(header::CONTENT_SECURITY_POLICY, policy);
        }
        response
    }
}

#[cfg(test)]
mod tests;
