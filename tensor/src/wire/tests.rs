//! The law: what is written reads back, through the general decoder, as what was meant; and a
//! decoded request shares the buffer it came in.

use std::collections::HashMap;

use proptest::prelude::*;
use prost::Message;
use proto::Envelope;
use proto::inference::model_infer_response::InferOutputTensor;
use proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};

use super::*;
use crate::{Datatype, Elements, encode_elements, parameters};

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let tensor = (
        "[a-z]{0,12}",
        0..Datatype::ALL.len(),
        prop::collection::vec(any::<i64>(), 0..4),
        prop_oneof![0..40usize, LARGE_BYTES - 1..LARGE_BYTES + 300],
    );
    let tensor = (tensor, values(), 1..5000usize);
    let tensor = tensor.prop_map(|((name, datatype, shape, length), parameters, cut)| {
        let data: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let data: Payload = data.chunks(cut).map(Bytes::copy_from_slice).collect();
        Tensor { parameters, ..Tensor::new(name, Datatype::ALL[datatype], shape, data) }
    });
    prop::collection::vec(tensor, 0..5)
}

fn values() -> impl Strategy<Value = Parameters> {
    let value = prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int64),
        any::<u64>().prop_map(Parameter::Uint64),
        (-1e9..1e9f64).prop_map(Parameter::Double),
        ".{0,200}".prop_map(Parameter::String),
    ];
    prop::collection::btree_map("[a-z]{0,8}", value, 0..4)
}

fn meant(head: &ResponseHead<'_>, tensors: &[Tensor]) -> ModelInferResponse {
    ModelInferResponse {
        model_name: head.model_name.into(),
        model_version: head.model_version.into(),
        id: head.id.into(),
        parameters: encoded(head.parameters),
        outputs: tensors
            .iter()
            .map(|tensor| InferOutputTensor {
                name: tensor.name.to_string(),
                datatype: tensor.datatype.name().into(),
                shape: tensor.shape.clone(),
                parameters: encoded(&tensor.parameters),
                ..Default::default()
            })
            .collect(),
        raw_output_contents: tensors.iter().map(|tensor| tensor.data.to_bytes()).collect(),
    }
}

fn encoded(parameters: &Parameters) -> HashMap<String, InferParameter> {
    parameters.iter().map(|(key, value)| (key.clone(), parameters::encode(value))).collect()
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        name in ".{0,20}", id in ".{0,200}", parameters in values(), tensors in tensors(),
        is_last: bool,
    ) {
        let head =
            ResponseHead { model_name: &name, model_version: "1", id: &id, parameters: &parameters };
        let mut expected = meant(&head, &tensors);
        let unary = encode_response(&head, &tensors);
        prop_assert_eq!(unary.len(), expected.encoded_len());
        prop_assert_eq!(ModelInferResponse::decode(unary.to_bytes()), Ok(expected.clone()));

        let streamed = encode_stream_response(&head, &tensors, is_last);
        let last = parameters::encode(&Parameter::Bool(is_last));
        expected.parameters.insert(FINAL.into(), last);
        let expected = ModelStreamInferResponse {
            infer_response: Some(expected), ..Default::default()
        };
        prop_assert_eq!(ModelStreamInferResponse::decode(streamed.to_bytes()), Ok(expected));
    }

    #[test]
    fn a_request_is_the_same_however_it_is_cut(
        name in "[a-z]{0,9}", id in ".{0,20}", raw: Vec<Vec<u8>>, parameters in values(),
        noise: Vec<u8>, cut in 1..40usize,
    ) {
        let request = ModelInferRequest {
            model_name: name,
            id,
            parameters: encoded(&parameters),
            raw_input_contents: raw.into_iter().map(Bytes::from).collect(),
            ..Default::default()
        };
        let sound = request.encode_to_vec();
        for bytes in [sound.clone(), [sound, noise.clone()].concat(), noise] {
            let whole = ModelInferRequest::decode(&bytes[..]).map(Envelope::from);
            let cut = Envelope::decode(bytes.chunks(cut).map(Bytes::copy_from_slice).collect());
            prop_assert_eq!(whole.is_ok(), cut.is_ok());
            if let (Ok(whole), Ok(cut)) = (whole, cut) {
                // A map's bytes may name a key twice; messages compare by what they mean.
                prop_assert_eq!(whole.message, cut.message);
                prop_assert_eq!(whole.payloads, cut.payloads);
            }
        }
    }

    #[test]
    fn elements_survive_the_round_trip(elements: Vec<Vec<u8>>) {
        let decoded: Result<Vec<_>, _> = Elements::new(encode_elements(&elements)).collect();
        let decoded = decoded.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!(decoded, elements);
    }

    #[test]
    fn any_bytes_end_in_elements_or_one_error(data: Vec<u8>) {
        let found: Vec<_> = Elements::new(data.into()).collect();
        let errors = found.iter().filter(|element| element.is_err()).count();
        prop_assert!(errors == 0 || errors == 1 && found.last().is_some_and(Result::is_err));
    }
}

#[test]
fn a_field_of_another_wire_type_is_left_to_the_general_decoder() {
    // Field 4 is a map; its tag says varint here, and the decoder reads a length all the same.
    let bytes = [0x20, 3, 0x3a, 1, b'P'];
    let whole = ModelInferRequest::decode(&bytes[..]).map(Envelope::from);
    let cut = Envelope::decode(bytes.chunks(2).map(Bytes::copy_from_slice).collect());
    assert_eq!(whole.as_ref().map(|whole| whole.payloads.len()), Ok(0));
    assert_eq!(cut.map(|cut| cut.payloads.len()), Ok(0));
}

#[test]
fn a_number_of_more_than_64_bits_is_refused_however_it_is_cut() {
    // Field 10, which no request has, as a varint of ten bytes.
    for (last, is_sound) in [(1, true), (2, false)] {
        let bytes = [&[0x50][..], &[0xff; 9], &[last]].concat();
        let whole = Envelope::decode(Payload::from(Bytes::from(bytes.clone())));
        let cut = Envelope::decode(bytes.chunks(3).map(Bytes::copy_from_slice).collect());
        assert_eq!((whole.is_ok(), cut.is_ok()), (is_sound, is_sound), "{last}");
    }
}

#[test]
fn a_large_payload_is_shared_both_ways() {
    let payload = Bytes::from(vec![1u8; 1 << 20]);
    let tensor = Tensor::new("OUT", Datatype::Uint8, vec![1 << 20], payload.clone());
    let head = ResponseHead {
        model_name: "m",
        model_version: "1",
        id: "",
        parameters: &Parameters::new(),
    };
    let encoded = encode_response(&head, &[tensor]);
    assert!(encoded.segments().any(|segment| segment.as_ptr() == payload.as_ptr()));

    let request = ModelInferRequest { raw_input_contents: vec![payload], ..Default::default() };
    let buffer = Bytes::from(request.encode_to_vec());
    let inside = buffer.as_ptr_range();
    for cut in [buffer.len(), 5000] {
        let pieces = (0..buffer.len()).step_by(cut);
        let pieces = pieces.map(|at| buffer.slice(at..buffer.len().min(at + cut)));
        let decoded = Envelope::decode(pieces.collect()).unwrap();
        let shared = |segment: &Bytes| inside.contains(&segment.as_ptr());
        assert!(decoded.payloads[0].segments().all(shared), "cut at {cut}");
    }
}
