//! Typed contents: the repeated fields that small clients fill instead of raw bytes.
//!
//! A datatype has exactly one field; data in another field, and numbers that the datatype cannot
//! hold, are refused rather than cut. FP16 and BF16 have no field.

use bytes::Bytes;
use proto::inference::InferTensorContents;

use crate::{Datatype, Element, encode_elements};

/// Returns the bytes of typed contents, or what is wrong with them.
pub(crate) fn decode(datatype: Datatype, contents: &InferTensorContents) -> Result<Bytes, String> {
    let family = family(datatype)
        .ok_or_else(|| format!("{datatype} has no typed contents; send raw_input_contents"))?;
    if let Some(other) = filled(contents).into_iter().find(|name| *name != family) {
        // Triton's words, with the datatype that the field stands for.
        let given = FIELDS.into_iter().find(|(name, _)| *name == other).map_or("", |(_, of)| of);
        return Err(format!(
            "of type '{given}', expected datatype '{datatype}', which belongs into {family}"
        ));
    }
    match datatype {
        Datatype::Bool => Ok(pack(contents.bool_contents.iter().copied())),
        Datatype::Int8 => narrow::<i8, _>(datatype, &contents.int_contents),
        Datatype::Int16 => narrow::<i16, _>(datatype, &contents.int_contents),
        Datatype::Int32 => Ok(pack(contents.int_contents.iter().copied())),
        Datatype::Int64 => Ok(pack(contents.int64_contents.iter().copied())),
        Datatype::Uint8 => narrow::<u8, _>(datatype, &contents.uint_contents),
        Datatype::Uint16 => narrow::<u16, _>(datatype, &contents.uint_contents),
        Datatype::Uint32 => Ok(pack(contents.uint_contents.iter().copied())),
        Datatype::Uint64 => Ok(pack(contents.uint64_contents.iter().copied())),
        Datatype::Fp32 => Ok(pack(contents.fp32_contents.iter().copied())),
        Datatype::Fp64 => Ok(pack(contents.fp64_contents.iter().copied())),
        Datatype::Bytes => Ok(encode_elements(&contents.bytes_contents)),
        Datatype::Fp16 | Datatype::Bf16 => Ok(Bytes::new()),
    }
}

/// The fields of typed contents, with a datatype that each is for.
const FIELDS: [(&str, &str); 8] = [
    ("bool_contents", "BOOL"),
    ("int_contents", "INT32"),
    ("int64_contents", "INT64"),
    ("uint_contents", "UINT32"),
    ("uint64_contents", "UINT64"),
    ("fp32_contents", "FP32"),
    ("fp64_contents", "FP64"),
    ("bytes_contents", "BYTES"),
];

/// Returns whether no field has an element.
pub(crate) fn is_empty(contents: &InferTensorContents) -> bool {
    filled(contents).is_empty()
}

fn family(datatype: Datatype) -> Option<&'static str> {
    match datatype {
        Datatype::Bool => Some("bool_contents"),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => Some("int_contents"),
        Datatype::Int64 => Some("int64_contents"),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => Some("uint_contents"),
        Datatype::Uint64 => Some("uint64_contents"),
        Datatype::Fp32 => Some("fp32_contents"),
        Datatype::Fp64 => Some("fp64_contents"),
        Datatype::Bytes => Some("bytes_contents"),
        Datatype::Fp16 | Datatype::Bf16 => None,
    }
}

fn filled(contents: &InferTensorContents) -> Vec<&'static str> {
    let fields = [
        ("bool_contents", contents.bool_contents.is_empty()),
        ("int_contents", contents.int_contents.is_empty()),
        ("int64_contents", contents.int64_contents.is_empty()),
        ("uint_contents", contents.uint_contents.is_empty()),
        ("uint64_contents", contents.uint64_contents.is_empty()),
        ("fp32_contents", contents.fp32_contents.is_empty()),
        ("fp64_contents", contents.fp64_contents.is_empty()),
        ("bytes_contents", contents.bytes_contents.is_empty()),
    ];
    fields.into_iter().filter(|(_, is_empty)| !is_empty).map(|(name, _)| name).collect()
}

fn pack<T: Element>(values: impl ExactSizeIterator<Item = T>) -> Bytes {
    let mut data = Vec::with_capacity(values.len() * size_of::<T>());
    values.for_each(|value| value.append_to(&mut data));
    data.into()
}

fn narrow<T, W>(datatype: Datatype, values: &[W]) -> Result<Bytes, String>
where
    T: Element + TryFrom<W>,
    W: Copy + std::fmt::Display,
{
    let mut data = Vec::with_capacity(values.len() * size_of::<T>());
    for &value in values {
        let narrowed =
            T::try_from(value).map_err(|_| format!("{value} is out of range for {datatype}"))?;
        narrowed.append_to(&mut data);
    }
    Ok(data.into())
}
