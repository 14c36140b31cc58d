//! Weights that know what was read of them: a number that stands for their content.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{StoredTensor, WeightType, Weights};
use crate::Error;

/// Weights whose tensors are added up as they are read, in whatever order.
#[derive(Debug)]
pub struct Summed {
    weights: Box<dyn Weights>,
    sum: AtomicU64,
    has_bf16: AtomicBool,
}

impl Summed {
    /// Makes weights of which nothing has been read.
    pub fn new(weights: Box<dyn Weights>) -> Self {
        Self { weights, sum: AtomicU64::new(0), has_bf16: AtomicBool::new(false) }
    }

    /// Returns the number of all tensors that were read: the same for the same tensors, and another
    /// one, but for accidents, if a bit of one differs.
    pub fn sum(&self) -> u64 {
        self.sum.load(Relaxed)
    }

    /// Returns whether one of those that were read is of bf16.
    pub fn has_bf16(&self) -> bool {
        self.has_bf16.load(Relaxed)
    }
}

impl Weights for Summed {
    fn tensor(&self, name: &str) -> Result<StoredTensor, Error> {
        let tensor = self.weights.tensor(name)?;
        let about = format!("{name} {:?} {:?}", tensor.weight_type, tensor.dims);
        let hash = xxh3_64_with_seed(&tensor.data, xxh3_64(about.as_bytes()));
        self.sum.fetch_add(hash, Relaxed);
        self.has_bf16.fetch_or(tensor.weight_type == WeightType::Bf16, Relaxed);
        Ok(tensor)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.weights.has_tensor(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.weights.names()
    }
}
