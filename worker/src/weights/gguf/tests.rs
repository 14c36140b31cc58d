//! Hostile files: every cut and many flipped bytes of a small valid file.

use super::header::MAGIC;
use super::*;

/// A small valid file: three metadata values and one tensor of two F32.
fn small_file() -> Vec<u8> {
    let mut file = Vec::new();
    let string = |file: &mut Vec<u8>, text: &str| {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.as_bytes());
    };
    file.extend(MAGIC);
    file.extend(3u32.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(3u64.to_le_bytes());
    string(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    string(&mut file, "llama");
    string(&mut file, "llama.block_count");
    file.extend(4u32.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    string(&mut file, "tokens");
    file.extend(9u32.to_le_bytes());
    file.extend(8u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    string(&mut file, "a");
    string(&mut file, "b");
    string(&mut file, "weight");
    file.extend(1u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(1f32.to_le_bytes());
    file.extend(2f32.to_le_bytes());
    file
}

fn open(bytes: &[u8]) -> Result<Gguf, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Gguf::open(file.path())
}

#[test]
fn a_file_gives_back_what_is_in_it() {
    let gguf = open(&small_file()).unwrap();
    assert_eq!(gguf.optional_string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.number("llama.block_count").unwrap(), 7);
    let letters = ["a", "b"].map(|letter| Value::String(letter.into()));
    assert_eq!(gguf.get("tokens"), Some(&Value::Array(letters.to_vec())));
    let tensor = gguf.tensor("weight").unwrap();
    assert_eq!((tensor.dims, tensor.weight_type), (vec![2], WeightType::F32));
    assert_eq!(tensor.data, [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat());
}

#[test]
fn refusals_name_the_field() {
    let gguf = open(&small_file()).unwrap();
    let missing = gguf.number("llama.nothing").unwrap_err().to_string();
    assert!(missing.contains("`llama.nothing` is missing"), "{missing}");
    let kind = gguf.number("general.architecture").unwrap_err().to_string();
    assert!(kind.contains("expected a whole number"), "{kind}");
    assert!(gguf.tensor("x").unwrap_err().to_string().contains("tensor `x`: is missing"));
    assert!(open(b"PK\x03\x04____").unwrap_err().to_string().contains("does not begin"));
}

#[test]
fn weights_that_are_not_run_are_told_from_those_that_are() {
    let refusal = |kind: u32| {
        let mut file = small_file();
        // The last words before the data: the type and the offset of the one tensor.
        let at = file.windows(6).position(|bytes| bytes == b"weight").unwrap() + 6 + 4 + 8;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        open(&file).unwrap().tensor("weight").unwrap_err().to_string()
    };
    let unknown = refusal(10);
    assert!(unknown.contains("tensor `weight`: type 10 is not known; known are F32,"), "{unknown}");
    WeightType::ALL.iter().for_each(|kind| assert!(unknown.contains(kind.name()), "{unknown}"));
    let odd = refusal(14);
    assert!(odd.contains("expected rows of a multiple of 256 for Q6_K, got 2"), "{odd}");
}

#[test]
fn an_element_of_an_array_takes_no_more_than_the_bound_says() {
    let mut file = small_file();
    // Three numbers of 8 bits take the place of the two strings.
    let at = file.windows(6).position(|bytes| bytes == b"tokens").unwrap() + "tokens".len() + 4;
    let numbers = [&0u32.to_le_bytes()[..], &3u64.to_le_bytes(), &[7, 8, 9]].concat();
    let end = file.windows(6).position(|bytes| bytes == b"weight").unwrap() - 8;
    file.splice(at..end, numbers);
    let header = Header::parse(&file[..], file.len() as u64).unwrap();
    let Some(Value::Array(values)) = header.metadata.get("tokens") else { panic!("no array") };
    assert_eq!(values[..], [7, 8, 9].map(Value::Unsigned));
    assert_eq!(values.capacity() * size_of::<Value>(), 3 * 32);
}

#[test]
fn every_cut_is_an_error() {
    let file = small_file();
    for length in 0..file.len() {
        let outcome = open(&file[..length]).and_then(|gguf| gguf.tensor("weight"));
        assert!(outcome.is_err(), "cut at {length}");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let file = small_file();
    let mut state = 1u64;
    let mut refused = 0;
    for position in 0..file.len() {
        for _ in 0..8 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut broken = file.clone();
            broken[position] = (state >> 33) as u8;
            let parsed = Header::parse(&broken[..], broken.len() as u64);
            refused += usize::from(parsed.is_err());
        }
    }
    assert!(refused > 100, "the flips have to break something: {refused}");
    let mut huge = file;
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open(&huge).is_err());
}

#[test]
fn lengths_counts_and_places_are_bounded_by_name() {
    let file = small_file();
    let find = |text: &str| file.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
    let with = |place: usize, number: u64| {
        let mut broken = file.clone();
        broken[place..place + 8].copy_from_slice(&number.to_le_bytes());
        open(&broken).and_then(|gguf| gguf.tensor("weight")).unwrap_err().to_string()
    };
    let key = find("llama.block_count") - 8;
    let (array, name) = (find("tokens") + "tokens".len() + 8, find("weight"));
    let (dim, offset) = (name + 10, name + 22);
    let cases = [
        (with(8, 1 << 40), "tensor count: expected at most 262144, got 1099511627776"),
        (with(16, u64::MAX), "metadata count: expected at most 262144"),
        (with(key, 1 << 17), "metadata key 1: expected a string of at most 65535 bytes"),
        (with(key, 60_000), "metadata key 1: the file ends before its 60000 bytes"),
        (with(array, 1 << 40), "`tokens`: expected at most 4194304 elements"),
        (with(array, 1 << 20), "`tokens`: the file ends before its 1048576 elements"),
        (with(dim, 0), "tensor `weight`: dimensions [0] are out of range"),
        (with(dim, u64::MAX), "tensor `weight`: dimensions"),
        (with(dim, 1 << 30), "tensor `weight`: 4294967296 bytes at"),
        (with(offset, 31), "tensor `weight`: offset: expected a multiple of 32, got 31"),
        (with(offset, 1 << 62), "tensor `weight`: 8 bytes at"),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
    let mut twice = file.clone();
    twice.splice(find("llama.block_count")..find("llama.block_count") + 17, *b"general.architect");
    let place = find("general.architecture");
    twice.splice(place - 8..place + 20, [&17u64.to_le_bytes()[..], b"general.architect"].concat());
    let error = open(&twice).unwrap_err().to_string();
    assert!(error.contains("`general.architect`: comes twice"), "{error}");
}
