//! Files that are right, and files that lie about lengths, offsets, shapes and names.

use super::*;

/// Returns a file of a header and some bytes of data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn open(bytes: &[u8]) -> Result<SafeTensors, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    SafeTensors::open(file.path())
}

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},
    "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
    "none":{"dtype":"F16","shape":[0],"data_offsets":[4,4]}}"#;

#[test]
fn a_file_gives_back_what_is_in_it() {
    let data: Vec<u8> = (0..28).collect();
    let file = open(&file(HEADER, &data)).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "none"]);
    let tensor = file.tensor("b").unwrap();
    assert_eq!((&tensor.dims[..], tensor.weight_type), (&[3, 2][..], WeightType::F32));
    assert_eq!(tensor.data, data[4..]);
    let tensor = file.tensor("a").unwrap();
    assert_eq!((&tensor.dims[..], tensor.weight_type), (&[2][..], WeightType::Bf16));
    assert_eq!(tensor.data, data[..4]);
    assert!(file.tensor("none").unwrap().data.is_empty());
    assert!(file.tensor("c").unwrap_err().to_string().contains("tensor `c`: is missing"));
}

#[test]
fn every_cut_is_an_error() {
    let whole = file(HEADER, &[0; 28]);
    for length in 0..whole.len() {
        assert!(open(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn refusals_name_the_field() {
    let one = |entry: &str| file(&format!(r#"{{"x":{entry}}}"#), &[0; 8]);
    let cases: [(Vec<u8>, &str); 12] = [
        (u64::MAX.to_le_bytes().to_vec(), "header length: expected at most 0 bytes"),
        (file("[]", &[]), "header: invalid type: sequence, expected an object of tensors"),
        (file("{}", &[0]), "expected 0 bytes of tensors, got 1"),
        (one(r#"{"dtype":"F32","shape":[2]}"#), "tensor `x`: missing field `data_offsets`"),
        (
            one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            "tensor `x`: invalid value: integer `-2`",
        ),
        (
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "tensor `x`: `shape`: [3] of F32 does not have 8 bytes",
        ),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#),
            "tensor `x`: `shape`",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "tensor `x`: `data_offsets`: expected a range within 8 bytes, got 8 to 0",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}"#),
            "tensor `x`: `data_offsets`",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}"#),
            "tensor `x`: `shape`: expected at most 8 dimensions, got 9",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#),
            "tensor `x`: `data_offsets`: expected to begin at 0, got 4",
        ),
        (
            file(
                r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                    "x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                &[0; 8],
            ),
            "tensor `x`: comes twice",
        ),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
    let unknown = one(r#"{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}"#);
    let error = open(&unknown).unwrap().tensor("x").unwrap_err().to_string();
    assert!(error.contains("type `F8_E4M3` is not known; known are F32, F16 and BF16"), "{error}");
}
