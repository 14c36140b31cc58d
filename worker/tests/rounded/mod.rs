//! Directories of the tiny models with weights that are rounded to bf16.

use std::path::Path;

use half::bf16;
use serde_json::{Value, json};

/// Writes a model anew with weights that are rounded to bf16: as such, or the same numbers as f32.
pub(crate) fn write(model: &Path, as_bf16: bool, folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    for file in std::fs::read_dir(model).unwrap() {
        let (from, to) = (file.as_ref().unwrap().path(), folder.join(file.unwrap().file_name()));
        match from.extension().is_some_and(|end| end == "safetensors") {
            true => std::fs::write(to, tensors(&std::fs::read(from).unwrap(), as_bf16)),
            false => std::fs::copy(from, to).map(|_| ()),
        }
        .unwrap();
    }
}

/// Returns what a file of safetensors should hold.
fn tensors(bytes: &[u8], as_bf16: bool) -> Vec<u8> {
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let mut written = Vec::new();
    for tensor in header.values_mut().filter(|about| about.get("dtype").is_some()) {
        assert_eq!(tensor["dtype"], "F32");
        let [first, last] = [0, 1].map(|at| tensor["data_offsets"][at].as_u64().unwrap() as usize);
        let start = written.len();
        for number in data[first..last].as_chunks::<4>().0 {
            let number = bf16::from_f32(f32::from_le_bytes(*number));
            match as_bf16 {
                true => written.extend(number.to_le_bytes()),
                false => written.extend(number.to_f32().to_le_bytes()),
            }
        }
        tensor["dtype"] = if as_bf16 { "BF16" } else { "F32" }.into();
        tensor["data_offsets"] = json!([start, written.len()]);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], &header, &written].concat()
}
