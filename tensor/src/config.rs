//! What a model takes and gives, and whether a request fits it.
//!
//! The order of the checks and the stable parts of their texts are Triton's: clients match them.

use std::borrow::Cow;

use crate::{Datatype, Error, Malformed, Result, Tensor, shape};

/// The most names that a message lists.
const MAX_NAMES_SHOWN: usize = 64;

/// What Triton says of shapes that lack the batch dimension.
const BATCH_NOTE: &str = " NOTE: Setting a non-zero max_batch_size in the model config requires a \
    batch dimension to be prepended to each input shape. If you want to specify the full shape \
    including the batch dim in your input dims config, try setting max_batch_size to zero. See the \
    model configuration docs for more info on max_batch_size.";

/// A declared input or output.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The name.
    pub name: Cow<'static, str>,
    /// The type of the elements.
    pub datatype: Datatype,
    /// The dimensions without the batch; -1 stands for any size.
    pub dims: Vec<i64>,
    /// A request may leave this input out.
    pub optional: bool,
}

impl TensorSpec {
    /// Declares a tensor that is always there.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        datatype: Datatype,
        dims: impl Into<Vec<i64>>,
    ) -> Self {
        Self { name: name.into(), datatype, dims: dims.into(), optional: false }
    }

    /// Declares that a request may leave this input out.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

/// A model's declared inputs and outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The name that clients use.
    pub name: String,
    /// The framework, such as `stator`.
    pub platform: String,
    /// The backend that runs it.
    pub backend: String,
    /// Largest size of the first dimension; 0: tensors have no batch dimension.
    pub max_batch_size: u32,
    /// The inputs.
    pub inputs: Vec<TensorSpec>,
    /// The outputs.
    pub outputs: Vec<TensorSpec>,
    /// A request may have any number of responses.
    pub decoupled: bool,
}

impl ModelConfig {
    /// Declares a model of this server that gives one response a request.
    pub fn new(
        name: impl Into<String>,
        max_batch_size: u32,
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
    ) -> Self {
        Self {
            name: name.into(),
            platform: "stator".into(),
            backend: "stator".into(),
            max_batch_size,
            inputs,
            outputs,
            decoupled: false,
        }
    }

    /// Checks a request: names, counts, datatypes, shapes and byte sizes.
    ///
    /// ```
    /// use tensor::{Datatype, ModelConfig, Tensor, TensorSpec};
    ///
    /// let input = TensorSpec::new("IN", Datatype::Int32, [2]);
    /// let config = ModelConfig::new("m", 0, vec![input], vec![]);
    /// assert!(config.validate(&[Tensor::from_values("IN", vec![2], [1i32, 2])], []).is_ok());
    /// let refused = config.validate(&[Tensor::from_values("IN", vec![3], [1i32, 2, 3])], []);
    /// assert!(refused.unwrap_err().to_string().contains("Expected [2], got [3]"));
    /// ```
    pub fn validate<'a>(
        &self,
        inputs: &[Tensor],
        outputs: impl IntoIterator<Item = &'a str>,
    ) -> Result<()> {
        self.check_outputs(outputs)?;
        let names: Vec<&str> = inputs.iter().map(|input| &*input.name).collect();
        let specs = self.check_input_names(&names)?;
        let batch = self.check_batch(inputs)?;
        for (input, spec) in inputs.iter().zip(&specs) {
            self.check_shape(input, spec)?;
        }
        for (input, spec) in inputs.iter().zip(&specs) {
            self.check_size(input, spec, batch)?;
        }
        Ok(())
    }

    fn check_outputs<'a>(&self, outputs: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut seen: Vec<&str> = Vec::new();
        for name in outputs {
            if !self.outputs.iter().any(|spec| spec.name == name) {
                let model = &self.name;
                let text = format!("unexpected inference output '{name}' for model '{model}'");
                return Err(Error::new(text));
            }
            if seen.contains(&name) {
                return Err(Error::new(format!("output '{name}' already exists in request")));
            }
            seen.push(name);
        }
        Ok(())
    }

    /// Returns the declaration of each name. A wrong count is told before a wrong name.
    pub(crate) fn check_input_names(&self, names: &[&str]) -> Result<Vec<&TensorSpec>> {
        let required = self.inputs.iter().filter(|spec| !spec.optional);
        let missing: Vec<&str> =
            required.clone().map(|spec| &*spec.name).filter(|name| !names.contains(name)).collect();
        let required = required.count();
        if names.len() < required || names.len() > self.inputs.len() {
            return Err(self.wrong_count(names, required, &missing));
        }
        let find = |name: &&str| {
            self.inputs.iter().find(|spec| spec.name == *name).ok_or_else(|| {
                let model = &self.name;
                Error::new(format!("unexpected inference input '{name}' for model '{model}'"))
            })
        };
        let specs = names.iter().map(find).collect::<Result<Vec<_>>>()?;
        match missing.is_empty() {
            true => Ok(specs),
            false => Err(self.wrong_count(names, required, &missing)),
        }
    }

    fn wrong_count(&self, got: &[&str], required: usize, missing: &[&str]) -> Error {
        let quoted = |names: &[&str]| {
            let shown = names.iter().take(MAX_NAMES_SHOWN).map(|name| format!("'{name}'"));
            let more = (names.len() > MAX_NAMES_SHOWN).then(|| "…".to_owned());
            format!("[{}]", shown.chain(more).collect::<Vec<_>>().join(","))
        };
        let expected = match self.inputs.len() {
            all if all == required => format!("expected {all} inputs"),
            all => format!("expected number of inputs between {required} and {all}"),
        };
        Error::new(format!(
            "{expected} but got {count} inputs for model '{model}'. Got input(s) {got}, but missing \
             required input(s) {missing}. Please provide all required input(s).",
            count = got.len(),
            model = self.name,
            got = quoted(got),
            missing = quoted(missing),
        ))
    }

    /// Returns the size of the batch, which all inputs share; none for a model without batches.
    fn check_batch(&self, inputs: &[Tensor]) -> Result<Option<i64>> {
        if self.max_batch_size == 0 {
            return Ok(None);
        }
        let model = &self.name;
        let mut batch = None;
        for input in inputs {
            let name = &input.name;
            let Some(&first) = input.shape.first() else {
                return Err(Error::new(format!(
                    "input '{name}' has no shape but model requires batch dimension for '{model}'"
                )));
            };
            if first < 0 {
                return Err(self.unspecified(input));
            }
            if *batch.get_or_insert(first) != first {
                return Err(Error::new(format!(
                    "input '{name}' batch size does not match other inputs for '{model}'"
                )));
            }
        }
        match batch {
            Some(batch) if batch > i64::from(self.max_batch_size) => Err(Error::new(format!(
                "inference request batch-size must be <= {} for '{model}'",
                self.max_batch_size
            ))),
            batch => Ok(batch),
        }
    }

    fn check_shape(&self, input: &Tensor, spec: &TensorSpec) -> Result<()> {
        if input.datatype != spec.datatype {
            return Err(self.wrong_datatype(&input.name, input.datatype.name()));
        }
        if input.shape.iter().any(|&dim| dim < 0) {
            return Err(self.unspecified(input));
        }
        let is_batched = self.max_batch_size > 0;
        let dims = if is_batched { &input.shape[1..] } else { &input.shape[..] };
        if shape::matches(&spec.dims, dims) {
            return Ok(());
        }
        let declared = self.full_dims(spec);
        let note = if is_batched { BATCH_NOTE } else { "" };
        Err(Error::new(format!(
            "unexpected shape for input '{}' for model '{}'. Expected {}, got {}.{note}",
            input.name,
            self.name,
            shape::spell(&declared),
            shape::spell(&input.shape),
        )))
    }

    /// Returns a tensor's dimensions as clients see them, the batch dimension included.
    pub fn full_dims(&self, spec: &TensorSpec) -> Vec<i64> {
        let batch = (self.max_batch_size > 0).then_some(shape::ANY);
        batch.into_iter().chain(spec.dims.iter().copied()).collect()
    }

    fn check_size(&self, input: &Tensor, spec: &TensorSpec, batch: Option<i64>) -> Result<()> {
        // As in Triton an empty batch is measured as one element, and so is refused.
        let is_empty_batch = batch == Some(0);
        let dims = if is_empty_batch { &input.shape[1..] } else { &input.shape[..] };
        let count = shape::element_count(dims)
            .map_err(|error| Error::new(format!("input '{}': {error}", input.name)))?;
        match spec.datatype.size_bytes() {
            None => self.check_elements(input, count),
            Some(size) => {
                let expected = count.checked_mul(size);
                if expected == Some(input.data.len()) {
                    return Ok(());
                }
                let expected = expected.map_or("more than can be sent".into(), |n| n.to_string());
                Err(Error::new(format!(
                    "input byte size mismatch for input '{}' for model '{}'. \
                     Expected {expected}, got {}",
                    input.name,
                    self.name,
                    input.data.len()
                )))
            }
        }
    }

    fn check_elements(&self, input: &Tensor, expected: usize) -> Result<()> {
        let (name, model) = (&input.name, &self.name);
        let mut count = 0;
        for element in input.elements().into_iter().flatten() {
            if let Err(malformed) = element {
                return Err(malformed_element(malformed, name, model));
            }
            count += 1;
            if count > expected {
                return Err(Error::new(format!(
                    "unexpected number of string elements {count} for inference input '{name}' \
                     for model '{model}', expecting {expected}"
                )));
            }
        }
        if count < expected {
            return Err(Error::new(format!(
                "expected {expected} string elements for inference input '{name}' \
                 for model '{model}', got {count}"
            )));
        }
        Ok(())
    }

    /// Makes the refusal of an input's datatype, which is shown as `got`.
    pub(crate) fn wrong_datatype(&self, input: &str, got: &str) -> Error {
        let spec = self.inputs.iter().find(|spec| spec.name == input);
        let expected = spec.map_or("<invalid>", |spec| spec.datatype.name());
        Error::new(format!(
            "inference input '{input}' data-type is '{got}', but model '{}' expects '{expected}'",
            self.name
        ))
    }

    fn unspecified(&self, input: &Tensor) -> Error {
        Error::new(format!(
            "All input dimensions should be specified for input '{}' for model '{}', got {}",
            input.name,
            self.name,
            shape::spell(&input.shape)
        ))
    }
}

fn malformed_element(malformed: Malformed, name: &str, model: &str) -> Error {
    Error::new(match malformed {
        Malformed::CutLength { left } => format!(
            "incomplete string length indicator for inference input '{name}' for model '{model}', \
             expecting 4 bytes but only {left} bytes available"
        ),
        Malformed::CutData { expected, left } => format!(
            "incomplete string data for inference input '{name}' for model '{model}', \
             expecting string of length {expected} but only {left} bytes available"
        ),
    })
}

#[cfg(test)]
mod tests;
