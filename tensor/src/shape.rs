//! Shapes: checked element counts, matching against declared dimensions, and their spelling.

use crate::{Error, Result};

/// The declared dimension that matches any size.
pub const ANY: i64 = -1;

/// Returns how many elements a shape has; no dimensions are one element.
///
/// Errors: a negative dimension, or a product over [`usize`].
///
/// ```
/// assert_eq!(tensor::shape::element_count(&[2, 3]), Ok(6));
/// assert_eq!(tensor::shape::element_count(&[0, i64::MAX]), Ok(0));
/// assert!(tensor::shape::element_count(&[i64::MAX, 4]).is_err());
/// ```
pub fn element_count(shape: &[i64]) -> Result<usize> {
    let negative = || Error::new(format!("shape {} has a negative dimension", spell(shape)));
    let overflow =
        || Error::new(format!("shape {} has more elements than can be counted", spell(shape)));
    if shape.iter().any(|&dim| dim < 0) {
        return Err(negative());
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    shape.iter().try_fold(1usize, |count, &dim| {
        usize::try_from(dim).ok().and_then(|dim| count.checked_mul(dim)).ok_or_else(overflow)
    })
}

/// Returns whether a shape fits declared dimensions, where [`ANY`] fits every size.
///
/// ```
/// assert!(tensor::shape::matches(&[-1, 16], &[3, 16]));
/// assert!(!tensor::shape::matches(&[16], &[1, 16]));
/// ```
pub fn matches(declared: &[i64], shape: &[i64]) -> bool {
    declared.len() == shape.len()
        && declared.iter().zip(shape).all(|(&want, &got)| want == ANY || want == got)
}

/// Writes a shape as `[2,3]`, as Triton's messages do.
///
/// ```
/// assert_eq!(tensor::shape::spell(&[-1, 16]), "[-1,16]");
/// ```
pub fn spell(shape: &[i64]) -> String {
    let dims: Vec<String> = shape.iter().map(i64::to_string).collect();
    format!("[{}]", dims.join(","))
}

/// Returns the shape of so many elements under declared dimensions: the innermost [`ANY`] takes
/// what is left, others become 1; none if there is no such shape.
///
/// ```
/// assert_eq!(tensor::shape::fit(&[-1, -1, 2], 6), Some(vec![1, 3, 2]));
/// assert_eq!(tensor::shape::fit(&[2], 2), Some(vec![2]));
/// assert_eq!(tensor::shape::fit(&[-1, 4], 6), None);
/// ```
pub fn fit(declared: &[i64], count: usize) -> Option<Vec<i64>> {
    let mut fixed = declared.iter().filter(|dim| **dim != ANY);
    let fixed = fixed.try_fold(1i64, |product, &dim| product.checked_mul(dim))?;
    let count = i64::try_from(count).ok()?;
    let mut shape: Vec<i64> =
        declared.iter().map(|&dim| if dim == ANY { 1 } else { dim }).collect();
    match declared.iter().rposition(|&dim| dim == ANY) {
        None => (count == fixed).then_some(shape),
        Some(at) => {
            shape[at] = count.checked_div(fixed)?;
            (shape[at] * fixed == count).then_some(shape)
        }
    }
}
