//! A model's configuration as ModelMetadata and ModelConfig tell it.

use proto::inference as wire;
use wire::model_metadata_response::TensorMetadata;

use crate::{Datatype, ModelConfig, TensorSpec};

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
    use wire::model_version_policy::{Latest, PolicyChoice};
    let latest = PolicyChoice::Latest(Latest { num_versions: 1 });
    wire::ModelConfig {
        name: config.name.clone(),
        platform: config.platform.clone(),
        backend: config.backend.clone(),
        version_policy: Some(wire::ModelVersionPolicy { policy_choice: Some(latest) }),
        max_batch_size: i32::try_from(config.max_batch_size).unwrap_or(i32::MAX),
        input: config.inputs.iter().map(input).collect(),
        output: config.outputs.iter().map(output).collect(),
        instance_group: vec![wire::ModelInstanceGroup {
            name: format!("{}_0", config.name),
            kind: wire::model_instance_group::Kind::Cpu.into(),
            count: 1,
            ..Default::default()
        }],
        model_transaction_policy: Some(wire::ModelTransactionPolicy {
            decoupled: config.decoupled,
        }),
        ..Default::default()
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
