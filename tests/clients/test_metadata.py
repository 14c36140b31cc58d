"""What the server says of itself and its models, to an unmodified Triton client."""

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb

from wire import refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()


def test_server_metadata_names_only_what_works(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "triton"
    assert metadata.version
    assert sorted(metadata.extensions) == sorted([
        "classification", "sequence", "model_repository", "model_repository(unload_dependents)",
        "schedule_policy", "model_configuration", "system_shared_memory", "cuda_shared_memory",
        "binary_tensor_data", "parameters", "statistics", "trace", "logging",
    ])


@pytest.mark.parametrize("name, version, ready", [
    ("identity", "", True), ("identity", "1", True), ("identity", "7", False), ("nope", "", False),
])
def test_model_ready(client, name, version, ready):
    assert client.is_model_ready(name, version) is ready


def test_model_metadata_of_a_batched_model_leads_with_the_batch(client):
    metadata = client.get_model_metadata("simple")
    assert metadata.versions == ["1"]
    shapes = {tensor.name: list(tensor.shape) for tensor in metadata.inputs}
    assert shapes == {"INPUT0": [-1, 16], "INPUT1": [-1, 16]}
    assert [tensor.datatype for tensor in metadata.outputs] == ["INT32", "INT32"]


def test_model_config_agrees_with_the_metadata(client):
    config = client.get_model_config("simple").config
    assert config.max_batch_size == 8
    assert list(config.input[0].dims) == [16]
    assert not config.model_transaction_policy.decoupled
    assert client.get_model_config("repeat_int32").config.model_transaction_policy.decoupled


def test_a_text_model_shows_its_whole_profile(client):
    metadata = client.get_model_metadata("smollm")
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    outputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs}
    assert inputs["text_input"] == ("BYTES", [-1])
    assert inputs["streaming"][0] == "BOOL"
    assert inputs["sampling_parameters"][0] == "BYTES"
    assert inputs["max_tokens"][0] == "INT32"
    assert inputs["messages"][0] == "BYTES"
    assert outputs["text_output"] == ("BYTES", [-1])
    assert outputs["finish_reason"] == ("BYTES", [-1])
    config = client.get_model_config("smollm").config
    assert {tensor.name for tensor in config.input} == set(inputs)
    assert config.model_transaction_policy.decoupled


def test_the_index_lists_every_model(client):
    index = client.get_model_repository_index()
    states = {model.name: (model.version, model.state) for model in index.models}
    assert states["identity"] == ("1", "READY")
    assert states["smollm"] == ("1", "READY")


def test_the_index_of_a_named_repository_is_unimplemented(stub):
    call = lambda: stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="r"))
    refused(call, grpc.StatusCode.UNIMPLEMENTED, "repository_name")


@pytest.mark.parametrize("ask", ["ModelMetadata", "ModelConfig"])
def test_an_unknown_model_or_version_is_not_found(stub, ask):
    make = {"ModelMetadata": pb.ModelMetadataRequest, "ModelConfig": pb.ModelConfigRequest}[ask]
    method = getattr(stub, ask)
    refused(lambda: method(make(name="nope")), NOT_FOUND,
            "Request for unknown model: 'nope' is not found")
    refused(lambda: method(make(name="simple", version="9")), NOT_FOUND, "version 9 is not found")
    refused(lambda: method(make(name="simple", version="x")), INVALID,
            "invalid model version specified")


def test_statistics_are_true(client, server):
    import numpy as np
    before = client.get_inference_statistics("batched").model_stats[0]
    tensor = triton.InferInput("INPUT0", [3, 16], "FP32")
    tensor.set_data_from_numpy(np.zeros([3, 16], np.float32))
    for _ in range(5):
        client.infer("batched", [tensor])
    wrong = triton.InferInput("INPUT0", [3, 15], "FP32")
    wrong.set_data_from_numpy(np.zeros([3, 15], np.float32))
    with pytest.raises(triton.InferenceServerException):
        client.infer("batched", [wrong])
    after = client.get_inference_statistics("batched").model_stats[0]
    assert after.inference_count - before.inference_count == 15, "batch elements"
    assert after.execution_count - before.execution_count == 5, "batches"
    assert after.inference_stats.success.count - before.inference_stats.success.count == 5
    assert after.inference_stats.fail.count == before.inference_stats.fail.count, "it was refused"
    assert after.last_inference > 1_700_000_000_000, "milliseconds since the epoch"
    spent = after.inference_stats
    parts = spent.queue.ns + spent.compute_input.ns + spent.compute_infer.ns + spent.compute_output.ns
    assert 0 < parts <= spent.success.ns


def test_statistics_of_all_models_and_of_an_unknown_one(stub):
    every = stub.ModelStatistics(pb.ModelStatisticsRequest())
    assert {"identity", "smollm"} <= {model.name for model in every.model_stats}
    call = lambda: stub.ModelStatistics(pb.ModelStatisticsRequest(name="nope"))
    refused(call, INVALID, "requested model 'nope' is not available")
