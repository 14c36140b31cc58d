//! Triton's classification extension: the highest values of an output, with their places.

use std::cmp::Ordering;

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
            Err(Error::new("class result not available for output due to unsupported type 'BYTES'"))
        }
    }
}

/// Orders values with the highest first; what has no order, NaN, comes last.
fn rank<T: PartialOrd>(a: T, b: T) -> Ordering {
    let is_ordered = |value: &T| value.partial_cmp(value).is_some();
    let (has_a, has_b) = (is_ordered(&a), is_ordered(&b));
    b.partial_cmp(&a).unwrap_or_else(|| has_b.cmp(&has_a))
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
        let by_rank = |&a: &usize, &b: &usize| rank(row[a], row[b]).then(a.cmp(&b));
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count - 1, by_rank);
            order.truncate(count);
        }
        order.sort_unstable_by(by_rank);
        elements.extend(order.into_iter().take(count).map(|index| match labels.get(index) {
            Some(label) => format!("{}:{index}:{label}", spell(row[index])),
            None => format!("{}:{index}", spell(row[index])),
        }));
    }
    let batch = has_batch.then_some(rows as i64);
    let shape = batch.into_iter().chain([count as i64]).collect();
    Ok(Tensor::from_elements(tensor.name.clone(), shape, elements))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_comes_last_however_many_there_are() {
        let value = |index: usize| match index % 3 {
            0 => f32::NAN,
            _ => (index * 7919 % 1000) as f32,
        };
        let values: Vec<f32> = (0..1000).map(value).collect();
        let tensor = Tensor::from_values("P", vec![1000], values.clone());
        let mut expected: Vec<f32> = values.into_iter().filter(|value| !value.is_nan()).collect();
        expected.sort_by(|a, b| b.total_cmp(a));
        for count in [1, 10, 999, 1000] {
            let best = classify(&tensor, count, false, &[]).unwrap();
            let elements = best.elements().into_iter().flatten().flatten();
            let spelled = elements.map(|element| String::from_utf8_lossy(&element).into_owned());
            let found: Vec<String> = spelled.collect();
            assert_eq!(found.len(), count);
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found.starts_with(&format!("{expected:.6}:")), "{found} {expected}");
            }
            assert!(found[expected.len().min(count)..].iter().all(|f| f.starts_with("NaN:")));
        }
    }
}
