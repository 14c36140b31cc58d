//! The validation table: what is refused, and with which of Triton's fragments.

use bytes::Bytes;
use proto::inference::model_infer_request::InferInputTensor;
use proto::inference::{InferTensorContents, ModelInferRequest};

use super::*;
use crate::request::decode_inputs;

/// Triton's `simple`: two INT32 inputs of 16 elements, batches up to 8.
fn simple() -> ModelConfig {
    let tensor = |name| TensorSpec::new(name, Datatype::Int32, [16]);
    let outputs = vec![tensor("OUTPUT0"), tensor("OUTPUT1")];
    ModelConfig::new("simple", 8, vec![tensor("INPUT0"), tensor("INPUT1")], outputs)
}

fn words() -> ModelConfig {
    let one = TensorSpec::new("WORDS", Datatype::Bytes, [-1]);
    let extra = TensorSpec::new("EXTRA", Datatype::Fp32, [1]).optional();
    ModelConfig::new("words", 0, vec![one, extra], vec![])
}

fn ints(name: &'static str, shape: &[i64], count: usize) -> Tensor {
    Tensor::from_values(name, shape.to_vec(), vec![7i32; count])
}

fn bytes(data: &[u8], shape: &[i64]) -> Tensor {
    let data = Bytes::copy_from_slice(data);
    Tensor::new("WORDS", Datatype::Bytes, shape.to_vec(), data)
}

fn check(config: &ModelConfig, inputs: &[Tensor], outputs: &[&str], fragments: &[&str]) {
    let result = config.validate(inputs, outputs.iter().copied());
    let text = result.map_or_else(|error| error.to_string(), |()| "accepted".into());
    for fragment in fragments {
        assert!(text.contains(fragment), "expected `{fragment}` in `{text}`");
    }
}

#[test]
fn requests_that_fit_are_accepted() {
    let pair = [ints("INPUT1", &[2, 16], 32), ints("INPUT0", &[2, 16], 32)];
    check(&simple(), &pair, &[], &["accepted"]);
    check(&simple(), &pair, &["OUTPUT1"], &["accepted"]);
    check(&words(), &[bytes(b"\x01\0\0\0a\0\0\0\0", &[2])], &[], &["accepted"]);
    check(&words(), &[bytes(b"", &[0])], &[], &["accepted"]);
}

#[test]
fn counts_come_before_names() {
    let one = ints("INPUT0", &[1, 16], 16);
    check(
        &simple(),
        std::slice::from_ref(&one),
        &[],
        &[
            "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], ",
            "but missing required input(s) ['INPUT1']. Please provide all required input(s).",
        ],
    );
    let strange = ints("X", &[1, 16], 16);
    check(&simple(), std::slice::from_ref(&strange), &[], &["expected 2 inputs but got 1"]);
    let unexpected = "unexpected inference input 'X' for model 'simple'";
    check(&simple(), &[one, strange], &[], &[unexpected]);
    check(&words(), &[], &[], &["expected number of inputs between 1 and 2 but got 0 inputs"]);
    let extra = Tensor::from_values("EXTRA", vec![1], [1f32]);
    check(&words(), &[extra], &[], &["missing required input(s) ['WORDS']"]);
}

#[test]
fn outputs_have_to_exist_once() {
    let pair = [ints("INPUT0", &[1, 16], 16), ints("INPUT1", &[1, 16], 16)];
    check(&simple(), &pair, &["X"], &["unexpected inference output 'X' for model 'simple'"]);
    check(&simple(), &pair, &["OUTPUT0", "OUTPUT0"], &["output 'OUTPUT0' already exists"]);
}

#[test]
fn shapes_and_batches_are_checked() {
    let with = |shape: &[i64], count| [ints("INPUT0", shape, count), ints("INPUT1", shape, count)];
    let table: [(&[i64], usize, &str); 6] = [
        (
            &[1, 8],
            8,
            "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,8]",
        ),
        (&[16], 16, "inference request batch-size must be <= 8 for 'simple'"),
        (&[9, 16], 144, "inference request batch-size must be <= 8 for 'simple'"),
        (
            &[1, -1],
            16,
            "All input dimensions should be specified for input 'INPUT0' for model 'simple', got [1,-1]",
        ),
        (&[], 1, "input 'INPUT0' has no shape but model requires batch dimension for 'simple'"),
        (&[0, 16], 0, "input byte size mismatch"),
    ];
    for (shape, count, fragment) in table {
        check(&simple(), &with(shape, count), &[], &[fragment]);
    }
    let ragged = [ints("INPUT0", &[1, 16], 16), ints("INPUT1", &[2, 16], 32)];
    let text = "input 'INPUT1' batch size does not match other inputs for 'simple'";
    check(&simple(), &ragged, &[], &[text]);
    let huge = bytes(b"", &[i64::MAX]);
    check(&words(), &[huge], &[], &["expected 9223372036854775807 string elements"]);
    let any =
        ModelConfig::new("any", 0, vec![TensorSpec::new("IN", Datatype::Int32, [-1, -1])], vec![]);
    let overflow = ints("IN", &[i64::MAX, i64::MAX], 1);
    check(&any, &[overflow], &[], &["has more elements than can be counted"]);
}

#[test]
fn datatypes_and_sizes_are_checked() {
    let floats = Tensor::from_values("INPUT0", vec![1, 16], [0f32; 16]);
    let text = "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'";
    check(&simple(), &[floats, ints("INPUT1", &[1, 16], 16)], &[], &[text]);
    let short = [ints("INPUT0", &[1, 16], 15), ints("INPUT1", &[1, 16], 16)];
    let text =
        "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 60";
    check(&simple(), &short, &[], &[text]);
}

#[test]
fn bytes_elements_are_checked() {
    let table: [(&[u8], i64, &str); 4] = [
        (b"\x01\0\0\0a\x01\0\0\0b", 1, "unexpected number of string elements 2"),
        (b"\x01\0\0\0a", 2, "expected 2 string elements for inference input 'WORDS'"),
        (b"\x01\0\0\0a\x01\0", 2, "incomplete string length indicator"),
        (b"\x05\0\0\0abc", 1, "incomplete string data"),
    ];
    for (data, count, fragment) in table {
        check(&words(), &[bytes(data, &[count])], &[], &[fragment]);
    }
}

fn wire(name: &str, datatype: &str, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        contents,
        ..Default::default()
    }
}

fn refusal(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> String {
    let raw_input_contents = raw.iter().map(|data| Bytes::from_static(data)).collect();
    let request = ModelInferRequest { inputs, raw_input_contents, ..Default::default() };
    match decode_inputs(&words(), request.into()) {
        Ok(inputs) => format!("accepted {:?}", inputs[0].data.to_bytes()),
        Err(error) => error.to_string(),
    }
}

fn typed(change: impl FnOnce(&mut InferTensorContents)) -> Option<InferTensorContents> {
    let mut contents = InferTensorContents::default();
    change(&mut contents);
    Some(contents)
}

#[test]
fn data_is_found_or_refused() {
    let text = || typed(|t| t.bytes_contents = vec!["ab".into()]);
    let found = refusal(vec![wire("WORDS", "BYTES", text())], &[]);
    assert_eq!(found, r#"accepted b"\x02\0\0\0ab""#);
    let surplus = refusal(vec![wire("WORDS", "BYTES", None)], &[b"xyz", b"surplus"]);
    assert_eq!(surplus, r#"accepted b"xyz""#);

    let check = |inputs, raw: &[&'static [u8]], fragment: &str| {
        let text = refusal(inputs, raw);
        assert!(text.contains(fragment), "expected `{fragment}` in `{text}`");
    };
    let unable = "unable to find data for input tensor 'WORDS' for model 'words' in request.";
    check(vec![wire("WORDS", "BYTES", None)], &[], unable);
    let twice = vec![wire("WORDS", "BYTES", None), wire("WORDS", "BYTES", None)];
    check(twice, &[b"x", b"y"], "input 'WORDS' already exists in request");
    let mixed = vec![wire("WORDS", "BYTES", text())];
    check(mixed, &[b"x"], "contents field must not be specified when using raw_input_contents");
    let lower = vec![wire("WORDS", "bytes", None)];
    check(lower, &[b"x"], "data-type is '<invalid>', but model 'words' expects 'BYTES'");
    check(vec![wire("X", "nonsense", None)], &[b"x"], "unexpected inference input 'X'");
}

#[test]
fn typed_contents_belong_to_their_datatype() {
    let ints = || typed(|t| t.int_contents = vec![300]);
    let both = || {
        typed(|t| {
            t.int_contents = vec![1];
            t.fp32_contents = vec![1.0];
        })
    };
    let table = [
        ("INT16", ints(), r#"accepted b",\x01""#),
        ("INT8", ints(), "300 is out of range for INT8"),
        ("FP32", ints(), "of type 'INT32', expected datatype 'FP32'"),
        ("FP32", both(), "of type 'INT32', expected datatype 'FP32'"),
        ("FP16", ints(), "FP16 has no typed contents"),
        ("BF16", ints(), "BF16 has no typed contents"),
    ];
    for (datatype, contents, fragment) in table {
        let text = refusal(vec![wire("WORDS", datatype, contents)], &[]);
        assert!(text.contains(fragment), "{datatype}: expected `{fragment}` in `{text}`");
    }
}
