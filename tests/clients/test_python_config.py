"""A Triton ModelConfig that stands for a Python model's inputs and outputs."""

import contextlib
import pathlib

import httpx
import numpy as np
import pytest
import stator_worker
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from patience import eventually
from python_workers import python_worker
from test_cluster import client_of, frontend, is_ready
from wire import array_input

CONFIGURED = pathlib.Path(__file__).with_name("configured_worker.py")
# What `inputs` and `outputs` cannot say: an input that may be left out, batching, a platform,
# parameters, instances.
CONFIG = """
name: "another"
platform: "a_platform"
backend: "a_backend"
max_batch_size: 4
version_policy { latest { num_versions: 1 } }
input { name: "VALUES" data_type: TYPE_INT32 dims: [ -1 ] }
input { name: "FACTOR" data_type: TYPE_INT32 dims: [ 1 ] optional: true }
output { name: "PRODUCTS" data_type: TYPE_INT32 dims: [ -1 ] }
output { name: "COUNTS" data_type: TYPE_INT64 dims: [ 1 ] }
instance_group { name: "some" kind: KIND_CPU count: 2 }
dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 100 }
parameters { key: "flavour" value { string_value: "vanilla" } }
model_transaction_policy { decoupled: false }
"""


def expected(name):
    """Returns the configuration as it was written, but for the name that it is registered by."""
    config = text_format.Parse(CONFIG, model_config_pb2.ModelConfig())
    config.name = name
    return config


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    """A frontend of a worker whose model has a configuration of its own."""
    folder = tmp_path_factory.mktemp("configured")
    config = folder / "config.pbtxt"
    config.write_text(CONFIG)
    discovery = f"file://{folder}/fleet"
    with contextlib.ExitStack() as stack:
        stack.enter_context(python_worker(CONFIGURED, discovery, config))
        front = stack.enter_context(frontend(discovery))
        with client_of(front) as client:
            for model in ("scaled", "grown"):
                eventually(model, lambda: is_ready(client, model))
        yield front


@pytest.mark.parametrize("name", ["scaled", "grown"])
def test_a_frontend_tells_the_configuration_as_it_was_written(front, name):
    with client_of(front) as client:
        assert client.get_model_config(name).config == expected(name)
        told = client.get_model_metadata(name)
    assert (told.name, told.platform) == (name, "a_platform")
    tensors = [[(one.name, one.datatype, list(one.shape)) for one in side]
               for side in (told.inputs, told.outputs)]
    assert tensors == [[("VALUES", "INT32", [-1, -1]), ("FACTOR", "INT32", [-1, 1])],
                       [("PRODUCTS", "INT32", [-1, -1]), ("COUNTS", "INT64", [-1, 1])]]
    config = httpx.get(f"http://{front.http}/v2/models/{name}/config").json()
    assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert config["parameters"]["flavour"] == {"string_value": "vanilla"}


def test_requests_are_checked_and_answered_by_the_configuration(front):
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    made = array_input("VALUES", values)
    with client_of(front) as client:
        answer = client.infer("scaled", [made])
        assert (answer.as_numpy("PRODUCTS") == values * 3).all(), "one input may be left out"
        assert answer.as_numpy("COUNTS").tolist() == [[3], [3]]
        factors = array_input("FACTOR", np.array([[2], [10]], np.int32))
        answer = client.infer("scaled", [made, factors])
        assert (answer.as_numpy("PRODUCTS") == values * [[2], [10]]).all()
        for inputs, words in (
                ([array_input("VALUES", np.zeros((5, 1), np.int32))], "batch-size must be <= 4"),
                ([array_input("VALUES", np.zeros((1, 1), np.float32))], "data-type"),
                ([factors], "VALUES")):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("scaled", inputs)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT", refused.value
            assert words in refused.value.message()


@pytest.mark.parametrize("beside, words", [
    ({"inputs": {"VALUES": ("INT32", [-1])}}, "got `inputs` beside it"),
    ({"outputs": {"OUT": ("INT32", [-1])}}, "got `outputs` beside it"),
    ({"max_batch_size": 8}, "got `max_batch_size` beside it"),
    ({"sequences": True}, "got `sequences` beside it"),
    ({"inputs": {"VALUES": ("INT32", [-1])}, "outputs": {"OUT": ("INT32", [-1])}},
     "got `inputs` and `outputs` beside it"),
])
def test_what_would_be_ignored_beside_a_configuration_is_refused(beside, words):
    adding = stator_worker.Worker().tensor("scaled", config=CONFIG, **beside)
    with pytest.raises(ValueError, match="model `scaled`: expected `config` alone") as refused:
        adding(lambda VALUES, FACTOR=3: VALUES)
    assert words in str(refused.value)


@pytest.mark.parametrize("policy", ["default_queue_policy { max_queue_size: 1 }",
                                    "priority_levels: 1 priority_queue_policy { key: 1 value { max_queue_size: 1 } }"])
def test_a_queue_that_would_not_be_kept_is_refused(policy):
    config = CONFIG.replace("dynamic_batching { ", "dynamic_batching { " + policy + " ")
    adding = stator_worker.Worker().tensor("scaled", config=config)
    with pytest.raises(ValueError, match="model `scaled`: `max_queue_size` .*`max_waiting`"):
        adding(lambda VALUES, FACTOR=3: VALUES)
