//! A model's configuration as ModelMetadata and ModelConfig tell it.

use proto::inference as wire;
use wire::model_metadata_response::TensorMetadata;

use crate::{Datatype, Error, ModelConfig, Result, TensorSpec};

/// Writes the metadata; shapes have the batch dimension in front if the model has one.
///
/// ```
/// use tensor::{Datatype, ModelConfig, TensorSpec};
/// let config = ModelConfig::new("m", 8, vec![TensorSpec::new("IN", Datatype::Fp32, [16])], vec![]);
/// let metadata = tensor::metadata::encode(&config, &["1"]);
/// assert_eq!(metadata.inputs[0].shape, [-1, 16]);
/// ```
pub fn encode(config: &ModelConfig, versions: &[&str]) -> wire::ModelMetadataResponse {
    let tensor = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.to_string(),
        datatype: spec.datatype.name().to_owned(),
        shape: config.full_dims(spec),
    };
    wire::ModelMetadataResponse {
        name: config.name.clone(),
        versions: versions.iter().map(|&version| version.to_owned()).collect(),
        platform: config.platform.clone(),
        inputs: config.inputs.iter().map(tensor).collect(),
        outputs: config.outputs.iter().map(tensor).collect(),
        properties: Default::default(),
    }
}

/// Writes the configuration with the defaults that Triton fills in and clients read.
pub fn config(config: &ModelConfig) -> wire::ModelConfig {
    complete(wire::ModelConfig {
        name: config.name.clone(),
        platform: config.platform.clone(),
        backend: config.backend.clone(),
        max_batch_size: i32::try_from(config.max_batch_size).unwrap_or(i32::MAX),
        input: config.inputs.iter().map(input).collect(),
        output: config.outputs.iter().map(output).collect(),
        model_transaction_policy: Some(wire::ModelTransactionPolicy {
            decoupled: config.decoupled,
        }),
        ..Default::default()
    })
}

/// Fills in what a written configuration leaves to its defaults: the version policy, the
/// instances and the transaction policy.
pub fn complete(mut config: wire::ModelConfig) -> wire::ModelConfig {
    use wire::model_version_policy::{Latest, PolicyChoice};
    config.version_policy.get_or_insert(wire::ModelVersionPolicy {
        policy_choice: Some(PolicyChoice::Latest(Latest { num_versions: 1 })),
    });
    if config.instance_group.is_empty() {
        config.instance_group.push(wire::ModelInstanceGroup {
            name: format!("{}_0", config.name),
            kind: wire::model_instance_group::Kind::Cpu.into(),
            count: 1,
            ..Default::default()
        });
    }
    config.model_transaction_policy.get_or_insert_default();
    config
}

/// Reads a written configuration.
///
/// Errors: a tensor without a name, datatype or dimensions, a dimension that is neither -1 nor
/// at least 1, a name that stands twice, a negative batch size.
pub fn read(declared: &wire::ModelConfig) -> Result<ModelConfig> {
    let max_batch_size = u32::try_from(declared.max_batch_size).map_err(|_| {
        Error::new(format!("`max_batch_size`: expected 0 or more, got {}", declared.max_batch_size))
    })?;
    let inputs = declared.input.iter().map(|tensor| {
        let spec = spec("input", &tensor.name, tensor.data_type, &tensor.dims)?;
        Ok(if tensor.optional { spec.optional() } else { spec })
    });
    let outputs = declared.output.iter().map(|t| spec("output", &t.name, t.data_type, &t.dims));
    let config = ModelConfig {
        name: declared.name.clone(),
        platform: declared.platform.clone(),
        backend: declared.backend.clone(),
        max_batch_size,
        inputs: inputs.collect::<Result<_>>()?,
        outputs: outputs.collect::<Result<_>>()?,
        decoupled: declared.model_transaction_policy.as_ref().is_some_and(|p| p.decoupled),
    };
    for (what, specs) in [("input", &config.inputs), ("output", &config.outputs)] {
        let mut names: Vec<&str> = specs.iter().map(|spec| &*spec.name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::new(format!("{what} `{}` is declared twice", pair[0])));
        }
    }
    Ok(config)
}

fn spec(what: &str, name: &str, data_type: i32, dims: &[i64]) -> Result<TensorSpec> {
    if name.is_empty() {
        return Err(Error::new(format!("an {what} has no name")));
    }
    let datatype = Datatype::ALL
        .into_iter()
        .find(|datatype| i32::from(self::data_type(*datatype)) == data_type)
        .ok_or_else(|| Error::new(format!("{what} `{name}` has no `data_type`")))?;
    if dims.is_empty() {
        return Err(Error::new(format!("{what} `{name}` has no `dims`")));
    }
    match dims.iter().find(|&&dim| dim < -1 || dim == 0) {
        None => Ok(TensorSpec::new(name.to_owned(), datatype, dims)),
        Some(dim) => Err(Error::new(format!(
            "{what} `{name}`: `dims`: expected -1 or at least 1, got {dim}"
        ))),
    }
}

fn input(spec: &TensorSpec) -> wire::ModelInput {
    wire::ModelInput {
        name: spec.name.to_string(),
        data_type: data_type(spec.datatype).into(),
        dims: spec.dims.clone(),
        optional: spec.optional,
        ..Default::default()
    }
}

fn output(spec: &TensorSpec) -> wire::ModelOutput {
    wire::ModelOutput {
        name: spec.name.to_string(),
        data_type: data_type(spec.datatype).into(),
        dims: spec.dims.clone(),
        ..Default::default()
    }
}

fn data_type(datatype: Datatype) -> wire::DataType {
    match datatype {
        Datatype::Bool => wire::DataType::TypeBool,
        Datatype::Uint8 => wire::DataType::TypeUint8,
        Datatype::Uint16 => wire::DataType::TypeUint16,
        Datatype::Uint32 => wire::DataType::TypeUint32,
        Datatype::Uint64 => wire::DataType::TypeUint64,
        Datatype::Int8 => wire::DataType::TypeInt8,
        Datatype::Int16 => wire::DataType::TypeInt16,
        Datatype::Int32 => wire::DataType::TypeInt32,
        Datatype::Int64 => wire::DataType::TypeInt64,
        Datatype::Fp16 => wire::DataType::TypeFp16,
        Datatype::Bf16 => wire::DataType::TypeBf16,
        Datatype::Fp32 => wire::DataType::TypeFp32,
        Datatype::Fp64 => wire::DataType::TypeFp64,
        Datatype::Bytes => wire::DataType::TypeString,
    }
}
