//! What a client wants done with each output: plain, its highest values, or into shared memory.

use std::sync::Arc;

use engine::{Error, RequestedOutput, Result};
use tensor::classification::classify;
use tensor::{Datatype, ModelConfig, Parameter, Tensor};

use crate::models::Model;
use crate::shared_memory::{Place, Regions};

/// The parameter of an output that asks for its highest values.
const CLASSIFICATION: &str = "classification";

/// The outputs of one request that are not just answered.
#[derive(Clone, Default)]
pub(crate) struct Outputs {
    wanted: Vec<(String, Want)>,
    regions: Option<Arc<Regions>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    /// This many of the highest values of each row.
    Classes(usize),
    /// Its data in a region.
    Region(Place),
}

impl Outputs {
    /// Reads what the requested outputs' parameters ask for.
    ///
    /// Errors: parameters of a wrong type or value, an output that cannot be treated so.
    pub(super) fn read(
        config: &ModelConfig,
        requested: &[RequestedOutput],
        regions: &Arc<Regions>,
    ) -> Result<Self> {
        let mut outputs = Self::default();
        for output in requested.iter().filter(|output| !output.parameters.is_empty()) {
            let name = &output.name;
            let place = Place::read("output", name, &output.parameters)?;
            let classes = classes(name, output.parameters.get(CLASSIFICATION))?;
            let want = match (place, classes) {
                (None, None) => continue,
                (Some(place), None) => {
                    outputs.regions = Some(regions.clone());
                    Want::Region(place)
                }
                (None, Some(count)) => {
                    let is_text = |spec: &&tensor::TensorSpec| spec.datatype == Datatype::Bytes;
                    let spec = config.outputs.iter().find(|spec| spec.name == *name);
                    if spec.as_ref().is_some_and(is_text) {
                        return Err(Error::invalid(format!(
                            "output '{name}' is BYTES and can not be classified"
                        )));
                    }
                    Want::Classes(count)
                }
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!(
                        "output '{name}': a classification can not be in shared memory"
                    )));
                }
            };
            outputs.wanted.push((name.clone(), want));
        }
        Ok(outputs)
    }

    /// Does with a response's tensors what the client wants.
    ///
    /// Errors: a region that is gone or too small.
    pub(crate) fn deliver(&self, model: &Model, tensors: &mut [Tensor]) -> Result<()> {
        for (name, want) in &self.wanted {
            let Some(tensor) = tensors.iter_mut().find(|tensor| tensor.name == name.as_str())
            else {
                continue;
            };
            match (want, &self.regions) {
                (Want::Classes(count), _) => {
                    let labels = model.labels.get(name).map_or(&[][..], Vec::as_slice);
                    let has_batch = model.config.max_batch_size > 0;
                    *tensor = classify(tensor, *count, has_batch, labels)?;
                }
                (Want::Region(place), Some(regions)) => {
                    let data = std::mem::take(&mut tensor.data);
                    regions.store(name, place, &data)?;
                    tensor.parameters = place.parameters(data.len());
                }
                (Want::Region(_), None) => {}
            }
        }
        Ok(())
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
