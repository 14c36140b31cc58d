//! What a client wants done with each output: plain, its highest values, or into shared memory.

use std::sync::Arc;

use bytes::Bytes;
use engine::{Error, RequestedOutput, Result};
use tensor::classification::classify;
use tensor::{Datatype, ModelConfig, Parameter, Tensor};

use super::heavy;
use crate::models::registry::Model;
use crate::support::shared_memory::{Place, Region, Regions};

/// The parameter of an output that asks for its highest values.
const CLASSIFICATION: &str = "classification";

/// The outputs of one request that are not just answered.
#[derive(Clone, Default)]
pub(crate) struct Outputs {
    wanted: Vec<(String, Want)>,
    /// The regions that inputs lie in.
    lent: Vec<Arc<Region>>,
}

#[derive(Clone)]
enum Want {
    /// This many of the highest values of each row.
    Classes(usize),
    /// Its data in a region, which is held until then.
    Region(Place, Arc<Region>),
}

impl Outputs {
    /// Reads what the requested outputs' parameters ask for.
    ///
    /// Errors: parameters of a wrong type or value, an output that cannot be treated so.
    pub(super) fn read(
        config: &ModelConfig,
        requested: &[RequestedOutput],
        regions: &Regions,
        lent: Vec<Arc<Region>>,
    ) -> Result<Self> {
        let mut outputs = Self { wanted: Vec::new(), lent };
        for output in requested.iter().filter(|output| !output.parameters.is_empty()) {
            let name = &output.name;
            let place = Place::read("output", name, &output.parameters)?;
            let classes = classes(name, output.parameters.get(CLASSIFICATION))?;
            let want = match (place, classes) {
                (None, None) => continue,
                (Some(place), None) => {
                    let region = regions.find(&place)?;
                    Want::Region(place, region)
                }
                (None, Some(count)) => {
                    let is_text = |spec: &&tensor::TensorSpec| spec.datatype == Datatype::Bytes;
                    let spec = config.outputs.iter().find(|spec| spec.name == *name);
                    if spec.as_ref().is_some_and(is_text) {
                        return Err(Error::invalid(format!(
                            "class result not available for output due to unsupported type \
                             'BYTES': output '{name}'"
                        )));
                    }
                    Want::Classes(count)
                }
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!(
                        "output can't set both 'shared_memory_region' and 'classification': \
                         '{name}'"
                    )));
                }
            };
            outputs.wanted.push((name.clone(), want));
        }
        Ok(outputs)
    }

    /// Does with a response's tensors what the client wants.
    ///
    /// Errors: a region that is too small, or cut meanwhile.
    pub(crate) fn deliver(&self, model: &Model, tensors: &mut [Tensor]) -> Result<()> {
        for (name, want) in &self.wanted {
            let Some(tensor) = tensors.iter_mut().find(|tensor| tensor.name == name.as_str())
            else {
                continue;
            };
            match want {
                Want::Classes(count) => {
                    let labels = model.labels.get(name).map_or(&[][..], Vec::as_slice);
                    let has_batch = model.config.max_batch_size > 0;
                    let size = tensor.data.len();
                    *tensor = heavy(size, || classify(tensor, *count, has_batch, labels))?;
                }
                Want::Region(place, region) => {
                    let data = std::mem::take(&mut tensor.data);
                    region.store(name, place, &data)?;
                    tensor.parameters = place.parameters(data.len());
                }
            }
        }
        if self.lent.is_empty() {
            return Ok(());
        }
        // An output may still be an input's memory, which its owner may cut while it is sent.
        let is_lent = |segment: &Bytes| self.lent.iter().any(|region| region.holds(segment));
        for tensor in tensors {
            if tensor.data.segments().any(is_lent) {
                tensor.data = Bytes::copy_from_slice(&tensor.data.to_bytes()).into();
            }
        }
        self.lent.iter().try_for_each(|region| region.check())
    }
}

fn classes(name: &str, value: Option<&Parameter>) -> Result<Option<usize>> {
    match value {
        None => Ok(None),
        Some(Parameter::Int64(count)) if *count > 0 => Ok(Some(*count as usize)),
        Some(Parameter::Uint64(count)) if *count > 0 => Ok(Some(*count as usize)),
        Some(_) => Err(Error::invalid(format!(
            "invalid value type for 'classification' parameter of output '{name}', \
             expected int64_param, at least 1"
        ))),
    }
}
