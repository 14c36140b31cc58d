//! Directories whose index and files agree, and such as contradict each other.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::model::bert::tests::Made;

/// Writes a file of tensors of one F32 each.
fn write(directory: &Path, file: &str, tensors: &[&str]) {
    let entry = |(place, name): (usize, &&str)| {
        let range = [4 * place, 4 * place + 4];
        ((*name).to_owned(), json!({"dtype": "F32", "shape": [1], "data_offsets": range}))
    };
    let header: serde_json::Map<_, _> = tensors.iter().enumerate().map(entry).collect();
    let header = serde_json::Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(tensors.iter().flat_map(|name| (name.len() as f32).to_le_bytes()));
    std::fs::write(directory.join(file), bytes).unwrap();
}

#[test]
fn tensors_are_found_in_whatever_file_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write(path, "a.safetensors", &["one", "three"]);
    write(path, "b.safetensors", &["x"]);
    let map = json!({"one": "a.safetensors", "three": "a.safetensors", "x": "b.safetensors"});
    let index = json!({"metadata": {"total_size": 12}, "weight_map": map});
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let weights = Directory::open(path).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["one", "three", "x"]);
    for name in ["one", "three", "x"] {
        let stored = weights.tensor(name).unwrap();
        assert_eq!(floats(name, &stored).unwrap(), [name.len() as f32]);
    }
    assert!(weights.tensor("y").unwrap_err().to_string().contains("tensor `y`: is missing"));
}

#[test]
fn contradictions_are_refused_by_name() {
    let check = |index: serde_json::Value, expected: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, "a.safetensors", &["one", "two"]);
        std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = Directory::open(path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    };
    let file = "a.safetensors";
    let map = |map: serde_json::Value| json!({"weight_map": map});
    check(json!({}), "`weight_map`: is missing");
    check(map(json!({"one": file, "two": file, "x": file})), "`x`: is not in `a.safetensors`");
    check(map(json!({"one": file})), "`two`: is missing, but `a.safetensors` has it");
    check(map(json!({"one": "../a"})), "`one`: expected the name of a file in the same directory");
    check(map(json!({"one": 7})), "`one`: expected the name of a file");
    check(map(json!({"one": "b.safetensors"})), "cannot read");
    let empty = tempfile::tempdir().unwrap();
    let error = Directory::open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("has neither `model.safetensors` nor"), "{error}");
}

#[test]
fn a_sum_stands_for_all_that_was_read() {
    let sum = |values: [f32; 3], names: &[&str]| {
        let mut made = Made::default();
        for (name, value) in ["a", "b", "c"].into_iter().zip(values) {
            made.set(name, &[1], &[value]);
        }
        let weights = Summed::new(Box::new(made));
        names.iter().for_each(|name| drop(weights.tensor(name).unwrap()));
        weights.sum()
    };
    let whole = sum([1.0, 2.0, 3.0], &["a", "b", "c"]);
    assert_eq!(sum([1.0, 2.0, 3.0], &["c", "a", "b"]), whole);
    let others = [
        sum([1.0, 2.0, 3.0], &["a", "b"]),
        sum([2.0, 1.0, 3.0], &["a", "b", "c"]),
        sum([1.0, 2.0, 3.000_000_2], &["a", "b", "c"]),
    ];
    assert!(others.iter().all(|other| *other != whole));
}
