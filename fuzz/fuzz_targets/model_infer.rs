#![no_main]
//! ModelInfer as bytes: decoding, validation against several models, and the text bridge.
//!
//! Whatever comes in is refused or becomes a request; what became one keeps what validation
//! promises.

use std::sync::LazyLock;

use bytes::Bytes;
use engine::{GenerateRequest, InferRequest};
use libfuzzer_sys::fuzz_target;
use openai_bridge::{Now, TensorRequest, TextBridge};
use proto::inference::ModelInferRequest;
use proto::{Envelope, Payload};
use tensor::request::WireInputs;
use tensor::{Datatype, ModelConfig, Tensor, parameters, request, shape};
use worker::infer::{AddSub, Identity, RepeatInt32};
use worker::runner::mock::{self, MockConfig};

static MODELS: LazyLock<Vec<ModelConfig>> = LazyLock::new(|| {
    let mut models = vec![AddSub::config("add_sub"), RepeatInt32::config("repeat_int32")];
    for datatype in Datatype::ALL {
        models.push(Identity::config("any", datatype, vec![-1], 0));
        models.push(Identity::config("batched", datatype, vec![-1, 2], 4));
    }
    models
});

static BRIDGE: LazyLock<TextBridge> = LazyLock::new(|| {
    let card = mock::card("mock", &MockConfig::default());
    TextBridge::new(&card, &mock::vocabulary()).expect("the mock's own tables are sound")
});

fuzz_target!(|data: &[u8]| {
    let cut = 1 + usize::from(data.first().copied().unwrap_or(0));
    let whole = Envelope::decode(Bytes::copy_from_slice(data).into());
    let segmented = Envelope::decode(data.chunks(cut).map(Bytes::copy_from_slice).collect());
    assert_eq!(whole.is_ok(), segmented.is_ok());
    let Ok(Envelope { message: wire, payloads }) = segmented else { return };
    let outputs: Vec<String> = wire.outputs.iter().map(|output| output.name.clone()).collect();
    for model in MODELS.iter() {
        let Ok(inputs) = request::decode_inputs(model, wire_inputs(&wire, &payloads)) else {
            continue;
        };
        if model.validate(&inputs, outputs.iter().map(String::as_str)).is_ok() {
            inputs.iter().for_each(check);
        }
    }
    text(wire, payloads);
});

/// A validated tensor has as many elements as its shape says.
fn check(tensor: &Tensor) {
    let count = shape::element_count(&tensor.shape).expect("validated shapes can be counted");
    match tensor.datatype.size_bytes() {
        Some(size) => assert_eq!(tensor.data.len(), count * size),
        None => {
            let elements: Result<Vec<_>, _> = tensor.elements().expect("BYTES").collect();
            assert_eq!(elements.expect("validated elements decode").len(), count);
        }
    }
}

/// Returns the inputs as a door hands them over.
fn wire_inputs(wire: &ModelInferRequest, payloads: &[Payload]) -> WireInputs {
    WireInputs { inputs: wire.inputs.clone(), payloads: payloads.to_vec(), lent: Vec::new() }
}

fn text(mut wire: ModelInferRequest, payloads: Vec<Payload>) {
    let config = BRIDGE.config();
    let Ok(parameters) = parameters::decode(std::mem::take(&mut wire.parameters)) else { return };
    let Ok(mut inputs) = request::decode_inputs(&config, wire_inputs(&wire, &payloads)) else {
        return;
    };
    BRIDGE.normalize(&mut inputs);
    if config.validate(&inputs, []).is_err() {
        return;
    }
    let request = InferRequest { inputs, parameters, ..InferRequest::default() };
    if let Ok(TensorRequest::Generate(completion, _)) = BRIDGE.parse(&request)
        && let Ok((requests, _)) = BRIDGE.encode(&completion, Now::default())
    {
        let draws = |request: &GenerateRequest| {
            request.stop.max_tokens > 0 || request.prompt_logprobs.is_some()
        };
        assert!(requests.iter().all(draws));
    }
}
