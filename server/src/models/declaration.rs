//! A model's declared configuration as text: protobuf text in `config.pbtxt`, JSON over the wire.
//!
//! The schema is the whole of `model_config.proto`; a field that it lacks is an error.

use std::sync::LazyLock;

use miette::Diagnostic;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage,
    SerializeOptions,
};
use proto::inference as wire;
use serde_json::Value;

/// The descriptor of `inference.ModelConfig`; the pool is made from our own protos.
static MODEL_CONFIG: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).ok()?;
    pool.get_message_by_name("inference.ModelConfig")
});

fn descriptor() -> Result<MessageDescriptor, String> {
    MODEL_CONFIG.clone().ok_or_else(|| "the schema of model configurations is broken".to_owned())
}

/// Reads protobuf text. Errors: `LINE: what is wrong`.
pub(crate) fn from_text(text: &str) -> Result<wire::ModelConfig, String> {
    let text = &with_colons(text);
    let message = DynamicMessage::parse_text_format(descriptor()?, text).map_err(|error| {
        let offset = error.labels().and_then(|mut labels| labels.next()).map(|l| l.offset());
        let before = &text.as_bytes()[..offset.unwrap_or(text.len()).min(text.len())];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("{line}: {error}")
    })?;
    message.transcode_to().map_err(|error| error.to_string())
}

/// Puts the colon before lists of messages, `input [ {`, that the text format lets one leave out
/// and the parser does not. Lines stay where they are.
fn with_colons(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    // The quote of the string that we are in, and the last thing that was no space or comment.
    let (mut quote, mut is_comment, mut last) = (None, false, ' ');
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(_), '\\') => {
                out.push(letter);
                out.extend(letters.next());
                continue;
            }
            (Some(open), _) if open == letter => quote = None,
            (Some(_), _) => {}
            (None, '\n') => is_comment = false,
            (None, _) if is_comment => {}
            (None, '#') => is_comment = true,
            (None, '"' | '\'') => quote = Some(letter),
            (None, '[') if last.is_ascii_alphanumeric() || last == '_' => out.push(':'),
            (None, _) => {}
        }
        if !is_comment && !letter.is_whitespace() {
            last = letter;
        }
        out.push(letter);
    }
    out
}

/// Reads the JSON form of a configuration. Errors: what is wrong and where.
pub(crate) fn from_json(text: &str) -> Result<wire::ModelConfig, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor()?, &mut json, &options)
        .map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    message.transcode_to().map_err(|error| error.to_string())
}

/// Writes the JSON form as Triton does: proto names, defaults included, integers as numbers.
pub(crate) fn to_json(config: &wire::ModelConfig) -> Result<Value, String> {
    let mut message = DynamicMessage::new(descriptor()?);
    message.transcode_from(config).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let written = message.serialize_with_options(serde_json::value::Serializer, &options);
    written.map_err(|error| format!("{}: {error}", message.descriptor().full_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
name: "simple"
backend: "add_sub"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
parameters: { key: "k" value: { string_value: "v" } }
sequence_batching { max_sequence_idle_microseconds: 5000000 }
"#;

    #[test]
    fn text_and_json_mean_the_same() {
        let config = from_text(TEXT).unwrap();
        assert_eq!((config.max_batch_size, &*config.input[0].name), (8, "INPUT0"));
        assert_eq!(config.input[0].dims, [16]);
        let json = to_json(&config).unwrap();
        assert_eq!(json["input"][0]["data_type"], "TYPE_INT32");
        assert_eq!(json["input"][0]["dims"][0], 16);
        assert_eq!(json["input"][0]["optional"], false);
        assert_eq!(from_json(&json.to_string()).unwrap(), config);
    }

    #[test]
    fn colons_are_put_before_lists_only() {
        let table = [
            ("input [", "input :["),
            ("input: [1]", "input: [1]"),
            ("# input [\ninput [", "# input [\ninput :["),
            (r#"a: "x [\" [" b ["#, r#"a: "x [\" [" b :["#),
            ("dims: [ [", "dims: [ ["),
        ];
        for (text, expected) in table {
            assert_eq!(with_colons(text), expected);
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let error = from_text("name: \"m\"\nmax_batch: 8\n").unwrap_err();
        assert!(error.starts_with("2: ") && error.contains("max_batch"), "{error}");
        let error = from_text("input [\n {\n  name: 5 } ]").unwrap_err();
        assert!(error.starts_with("3: "), "{error}");
        let error = from_json(r#"{"max_batch": 8}"#).unwrap_err();
        assert!(error.contains("max_batch"), "{error}");
        assert!(from_json("{").is_err() && from_json("[]").is_err());
        let deep = "[".repeat(200_000);
        assert!(from_json(&deep).is_err(), "depth is bounded");
    }
}
