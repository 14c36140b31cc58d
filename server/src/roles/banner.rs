//! What the server prints when it is ready: calls that can be pasted into another shell.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::args::TlsListener;
use crate::models::registry::{Model, Models};
use crate::security::SecurityConfig;

/// Returns the calls for the first model of each kind.
pub(crate) fn text(
    address: SocketAddr,
    http: Option<SocketAddr>,
    models: &Models,
    security: &SecurityConfig,
) -> String {
    let host = host_of(address);
    let mut ready = models.ready();
    ready.retain(|model| model.is_ready());
    let names: Vec<&str> = ready.iter().map(|model| &*model.name).collect();
    let mut out = format!("\nStator serves KServe v2 over gRPC at {host}\n");
    let tls = security.tls.as_ref();
    let has_tls = tls.is_some_and(|tls| tls.listeners.contains(&TlsListener::Http));
    let scheme = if has_tls { "https" } else { "http" };
    let http = http.map(|http| format!("{scheme}://{}", host_of(http)));
    if let Some(http) = &http {
        let _ = writeln!(out, "and the OpenAI API at {http}/v1; a page to chat is at {http}/");
    }
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let _ = writeln!(out, "models: {names}");
    if models.are_of_fleet() {
        let list = http.as_ref();
        let list = list.map(|http| format!("; curl -X POST {http}/v2/repository/index lists all"));
        let list = list.unwrap_or_default();
        let _ = writeln!(out, "A model that workers bring later is logged as `model ready`{list}.");
    }
    out.push('\n');
    let has_tls = tls.is_some_and(|tls| tls.listeners.contains(&TlsListener::Grpc));
    if has_tls || security.api_keys.is_some() {
        out.push_str(&secured(&host, has_tls, security));
        return out;
    }
    let is_text = |model: &&Arc<Model>| model.text.is_some();
    // An encoder has one answer to a request.
    let (writers, encoders): (Vec<_>, Vec<_>) =
        ready.iter().filter(is_text).partition(|model| model.config.decoupled);
    if let Some(model) = writers.first() {
        out.push_str(&text_calls(&host, &model.name));
    } else if let Some((model, http)) = encoders.first().zip(http) {
        let body = format!(r#"{{"model": "{}", "input": "a text"}}"#, model.name);
        let _ = writeln!(out, "Try it: curl {http}/v1/embeddings -d '{body}'\n");
    }
    let _ = writeln!(
        out,
        "Every call is listed by: grpcurl -plaintext {host} list inference.GRPCInferenceService"
    );
    out
}

/// Returns how a client on this machine names an address.
fn host_of(address: SocketAddr) -> String {
    match address.ip().is_unspecified() {
        true => format!("localhost:{}", address.port()),
        false => address.to_string(),
    }
}

/// Returns the one call that everybody who may get in can make; secrets and files are theirs to
/// fill in.
fn secured(host: &str, has_tls: bool, security: &SecurityConfig) -> String {
    let has_client = security.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let transport = match (has_tls, has_client) {
        (false, _) => " -plaintext",
        (true, false) => " -cacert CA.pem",
        (true, true) => " -cacert CA.pem -cert CLIENT.crt -key CLIENT.key",
    };
    let key = match security.api_keys {
        Some(_) => " -H \"authorization: Bearer $KEY\"",
        None => "",
    };
    format!("Try it: grpcurl{transport}{key} {host} list inference.GRPCInferenceService\n")
}

fn text_calls(host: &str, model: &str) -> String {
    format!(
        r#"Try it with grpcurl, streamed (the outputs are base64 after a length of four bytes):

grpcurl -plaintext -d '{{"model_name": "{model}",
  "inputs": [{{"name": "text_input", "datatype": "BYTES", "shape": [1],
              "contents": {{"bytes_contents": ["'$(printf %s "The capital of France is" | base64 | tr -d '\n')'"]}}}},
             {{"name": "streaming", "datatype": "BOOL", "shape": [1],
              "contents": {{"bool_contents": [true]}}}}],
  "parameters": {{"max_tokens": {{"int64_param": 16}}, "temperature": {{"double_param": 0}}}}}}' \
  {host} inference.GRPCInferenceService/ModelStreamInfer

or with Python (pip install 'tritonclient[grpc]'):

import json, numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("{host}")
chat = triton.InferInput("messages", [1], "BYTES")
question = [{{"role": "user", "content": "What is the capital of France?"}}]
chat.set_data_from_numpy(np.array([json.dumps(question)], dtype=object))
answer = client.infer("{model}", [chat], parameters={{"max_tokens": 32, "temperature": 0.0}})
print(answer.as_numpy("text_output")[0].decode())

"#
    )
}
