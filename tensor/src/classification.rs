//! Triton's classification extension: the highest values of an output, with their places.

use half::{bf16, f16};

use crate::{Datatype, Element, Error, Result, Tensor};

/// Returns the `count` highest values of each row as BYTES elements `value:index`, or
/// `value:index:label` where there is a label; the highest comes first, equal ones in their order.
///
/// Shapes: `[batch, count]` if the model has batches, else `[count]`, where `count` is at most the
/// number of elements of a row. Errors: a BYTES tensor, whose elements have no order.
///
/// ```
/// use tensor::{Tensor, classification::classify};
/// let scores = Tensor::from_values("P", vec![1, 3], [0.25f32, 1.5, 0.5]);
/// let best = classify(&scores, 2, true, &["cat".into(), "dog".into()]).unwrap();
/// assert_eq!(best.shape, [1, 2]);
/// let elements: Vec<_> = best.elements().unwrap().map(Result::unwrap).collect();
/// assert_eq!(elements, ["1.500000:1:dog", "0.500000:2"]);
/// ```
pub fn classify(
    tensor: &Tensor,
    count: usize,
    has_batch: bool,
    labels: &[String],
) -> Result<Tensor> {
    match tensor.datatype {
        Datatype::Bool => top(tensor, count, has_batch, labels, |v: bool| v.to_string()),
        Datatype::Uint8 => top(tensor, count, has_batch, labels, |v: u8| v.to_string()),
        Datatype::Uint16 => top(tensor, count, has_batch, labels, |v: u16| v.to_string()),
        Datatype::Uint32 => top(tensor, count, has_batch, labels, |v: u32| v.to_string()),
        Datatype::Uint64 => top(tensor, count, has_batch, labels, |v: u64| v.to_string()),
        Datatype::Int8 => top(tensor, count, has_batch, labels, |v: i8| v.to_string()),
        Datatype::Int16 => top(tensor, count, has_batch, labels, |v: i16| v.to_string()),
        Datatype::Int32 => top(tensor, count, has_batch, labels, |v: i32| v.to_string()),
        Datatype::Int64 => top(tensor, count, has_batch, labels, |v: i64| v.to_string()),
        Datatype::Fp16 => {
            top(tensor, count, has_batch, labels, |v: f16| format!("{:.6}", v.to_f32()))
        }
        Datatype::Bf16 => {
            top(tensor, count, has_batch, labels, |v: bf16| format!("{:.6}", v.to_f32()))
        }
        Datatype::Fp32 => top(tensor, count, has_batch, labels, |v: f32| format!("{v:.6}")),
        Datatype::Fp64 => top(tensor, count, has_batch, labels, |v: f64| format!("{v:.6}")),
        Datatype::Bytes => {
            Err(Error::new(format!("output '{}' is BYTES and can not be classified", tensor.name)))
        }
    }
}

fn top<T: Element + PartialOrd>(
    tensor: &Tensor,
    count: usize,
    has_batch: bool,
    labels: &[String],
    spell: impl Fn(T) -> String,
) -> Result<Tensor> {
    let values: Vec<T> = tensor.values().into_iter().flatten().collect();
    let rows = match tensor.shape.first() {
        Some(&rows) if has_batch => usize::try_from(rows).unwrap_or(0),
        _ => 1,
    };
    let width = values.len().checked_div(rows).unwrap_or(0);
    let count = count.min(width);
    let mut elements = Vec::with_capacity(rows * count);
    for row in values.chunks_exact(width.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // What has no order, such as NaN, stays where it is.
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal));
        elements.extend(order.into_iter().take(count).map(|index| match labels.get(index) {
            Some(label) => format!("{}:{index}:{label}", spell(row[index])),
            None => format!("{}:{index}", spell(row[index])),
        }));
    }
    let batch = has_batch.then_some(rows as i64);
    let shape = batch.into_iter().chain([count as i64]).collect();
    Ok(Tensor::from_elements(tensor.name.clone(), shape, elements))
}
