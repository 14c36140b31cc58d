//! The table of adapters, and directories as PEFT writes them.

use serde_json::{Value, json};

use super::*;
use crate::lora::Target;
use crate::lora::adapter::tests::{SHAPE, settings, tensors};
use crate::weights::Weights;

const LIMITS: Limits = Limits { max_adapters: 2, max_rank: 4 };

/// Writes an adapter's directory.
fn written(config: &Value, seed: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let made = tensors(&[Target::Query, Target::Down], seed);
    let (mut header, mut data) = (json!({"__metadata__": {"format": "pt"}}), Vec::new());
    for name in made.names() {
        let tensor = made.tensor(name).unwrap();
        let shape: Vec<usize> = tensor.dims.iter().rev().copied().collect();
        let end = data.len() + tensor.data.len();
        header[name] = json!({"dtype": "F32", "shape": shape, "data_offsets": [data.len(), end]});
        data.extend(tensor.data);
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let content = [&length, header.as_bytes(), &data].concat();
    std::fs::write(directory.path().join("adapter_model.safetensors"), content).unwrap();
    std::fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    directory
}

fn config(rank: usize) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": 2,
           "target_modules": ["q_proj", "down_proj"]})
}

#[test]
fn a_directory_is_loaded_and_forgotten_with_its_last_lease() {
    let adapters = Adapters::new(SHAPE, LIMITS);
    let [one, two, three] = [1, 2, 3].map(|seed| written(&config(4), seed));
    let first = adapters.load(one.path(), None).unwrap();
    let again = adapters.load(one.path(), None).unwrap();
    assert_eq!((first.id(), adapters.len()), (again.id(), 1));
    let direct = Adapter::read(
        &tensors(&[Target::Query, Target::Down], 1),
        &Settings { scale: 0.5, ..settings(&[Target::Query, Target::Down]) },
        SHAPE,
    );
    assert_eq!(first.id().0, direct.unwrap().fingerprint());
    let second = adapters.load(two.path(), None).unwrap();
    let error = adapters.load(three.path(), None).unwrap_err().to_string();
    assert_eq!(error, "2 adapters are loaded, expected at most 2");
    let id = first.id();
    drop(first);
    assert!(adapters.get(id).is_some(), "another lease holds it");
    drop(again);
    assert!(adapters.get(id).is_none());
    let third = adapters.load(three.path(), None).unwrap();
    assert_eq!(adapters.len(), 2);
    drop((second, third));
    assert!(adapters.is_empty());
}

#[test]
fn what_cannot_be_loaded_is_told() {
    let adapters = Adapters::new(SHAPE, LIMITS);
    let load = |directory: &tempfile::TempDir| {
        adapters.load(directory.path(), None).map(drop).unwrap_err().to_string()
    };
    let wide = load(&written(&config(8), 1));
    assert!(wide.contains("`adapter_config.json`: `r`: expected at most 4, got 8"), "{wide}");
    let narrow = load(&written(&config(2), 1));
    assert!(narrow.contains("expected [32, 2], got [32, 4]"), "{narrow}");
    let directory = written(&config(4), 1);
    std::fs::remove_file(directory.path().join("adapter_model.safetensors")).unwrap();
    assert!(load(&directory).contains("adapter_model.safetensors"));
    std::fs::write(directory.path().join("adapter_config.json"), "[]").unwrap();
    assert!(load(&directory).contains("adapter_config.json"));
    assert!(adapters.is_empty());
}

#[test]
fn an_adapter_that_is_replaced_leaves_its_place() {
    let adapters = Adapters::new(SHAPE, LIMITS);
    let [one, two, three, four] = [1, 2, 3, 4].map(|seed| written(&config(4), seed));
    let first = adapters.load(one.path(), None).unwrap();
    let second = adapters.load(two.path(), None).unwrap();
    let third = adapters.load(three.path(), Some(second.id())).unwrap();
    // Until the caller has let the old one go, nothing else comes in.
    let full = |replaced| adapters.load(four.path(), replaced).map(drop).unwrap_err().to_string();
    assert_eq!(full(Some(first.id())), "3 adapters are loaded, expected at most 2");
    drop(second);
    assert_eq!(full(None), "2 adapters are loaded, expected at most 2");
    // One that another name has too stays loaded.
    let again = adapters.load(one.path(), None).unwrap();
    assert_eq!(full(Some(first.id())), "2 adapters are loaded, expected at most 2");
    drop(again);
    let fourth = adapters.load(four.path(), Some(first.id())).unwrap();
    drop((first, third, fourth));
    assert!(adapters.is_empty());
}

#[cfg(unix)]
#[test]
fn files_that_are_loaded_are_not_read_again() {
    let adapters = Adapters::new(SHAPE, LIMITS);
    let one = written(&config(4), 1);
    assert!(adapters.known(&files(one.path()).unwrap()).is_none());
    let first = adapters.load(one.path(), None).unwrap();
    let state = files(one.path()).unwrap();
    let again = adapters.known(&state).unwrap();
    assert_eq!(again.id(), first.id());
    // The lease counts like any other.
    drop(first);
    assert_eq!(adapters.len(), 1);
    // What is written anew is read anew, under the same name too.
    let other = written(&config(4), 2);
    let (from, to) = (other.path().join(WEIGHTS), one.path().join(WEIGHTS));
    std::fs::rename(from, to).unwrap();
    assert!(adapters.known(&files(one.path()).unwrap()).is_none());
    let second = adapters.load(one.path(), None).unwrap();
    assert_ne!(second.id(), again.id());
    drop((second, again));
    assert!(adapters.known(&state).is_none() && adapters.is_empty());
}
