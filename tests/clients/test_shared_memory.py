"""System shared memory: tensors that lie in regions which clients register."""

import os
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import serialize_byte_tensor

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from test_stream import collect
from wire import Client, array_input, denied, elements, floats, request, set_parameter, tensor

NOT_FOUND = grpc.StatusCode.NOT_FOUND
PAGE = 4096
MODELS = ["--builtin", "identity", "--builtin", "simple=add_sub", "--builtin",
          "texts=identity,datatype=BYTES", "--builtin", "slow=identity,delay_ms=1000",
          "--builtin", "slower=identity,delay_ms=5000"]
SIZED = {"shared_memory_region": "a", "shared_memory_byte_size": 8}


def key_of(name):
    return f"stator_test_{os.getpid()}_{name}"


@pytest.fixture(scope="module")
def shared():
    """A client of a server that lets clients register regions."""
    with running("--allow-client-shm", *MODELS) as server, Client(server) as client:
        yield client
        assert server.is_running(), "the server died under the tests"


@pytest.fixture
def region(shared):
    """Makes POSIX objects and registers them; at the end nothing of them is left."""
    handles = {}

    def make(name, size, client=shared, offset=0):
        if name in handles:
            shm.destroy_shared_memory_region(handles[name])
        handles[name] = shm.create_shared_memory_region(name, key_of(name), size, create_only=True)
        client.register_system_shared_memory(name, key_of(name), size - offset, offset=offset)
        return handles[name]

    yield make
    shared.unregister_system_shared_memory()
    for handle in handles.values():
        shm.destroy_shared_memory_region(handle)


def lent(name, array, region, offset=0, size=None, datatype="FP32"):
    """Makes an input that lies in a region."""
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_shared_memory(region, array.nbytes if size is None else size, offset)
    return made


def output(region, size, name="OUTPUT0", offset=0):
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(region, size, offset)
    return made


def using(of, parameters, raw=floats(1, 2)):
    sent = request("identity", [tensor("INPUT0", "FP32", [2])], [] if of == "input" else [raw],
                   outputs=["OUTPUT0"])
    target = sent.inputs[0] if of == "input" else sent.outputs[0]
    for key, value in parameters.items():
        set_parameter(target.parameters[key], value)
    return sent


def mapped(server):
    with open(f"/proc/{server.pid}/maps") as maps:
        return sum(f"/dev/shm/stator_test_{os.getpid()}" in line for line in maps)


def test_inputs_and_outputs_lie_in_regions_at_offsets(shared, region):
    left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.full([1, 16], 7, np.int32)
    given, answered = region("in", 192), region("out", 160)
    shm.set_shared_memory_region(given, [left, right], offset=64)
    answer = shared.infer("simple", [lent("INPUT0", left, "in", 64, datatype="INT32"),
                                     lent("INPUT1", right, "in", 128, datatype="INT32")],
                          outputs=[output("out", 64), output("out", 80, "OUTPUT1", 80)])
    response = answer.get_response()
    assert list(response.raw_output_contents) == [b"", b""], "one empty entry an output"
    where = [{key: getattr(value, value.WhichOneof("parameter_choice"))
              for key, value in out.parameters.items()} for out in response.outputs]
    assert where[0] == {"shared_memory_region": "out", "shared_memory_byte_size": 64}
    assert where[1] == {"shared_memory_region": "out", "shared_memory_byte_size": 64,
                        "shared_memory_offset": 80}
    assert [list(out.shape) for out in response.outputs] == [[1, 16]] * 2
    read = lambda at: shm.get_contents_as_numpy(answered, np.int32, [1, 16], at)
    assert np.array_equal(read(0), left + right) and np.array_equal(read(80), left - right)


@pytest.mark.parametrize("first", ["INPUT0", "INPUT1"])
def test_raw_data_goes_to_the_inputs_that_are_not_in_a_region(shared, region, first):
    array = np.arange(16, dtype=np.int32).reshape(1, 16)
    shm.set_shared_memory_region(region("in", 64), [array])
    second = "INPUT1" if first == "INPUT0" else "INPUT0"
    inputs = [lent(first, array, "in", datatype="INT32"), array_input(second, 2 * array)]
    for order in (inputs, inputs[::-1]):
        assert np.array_equal(shared.infer("simple", order).as_numpy("OUTPUT0"), 3 * array)


def test_strings_lie_in_regions(shared, region):
    words = np.array([b"", b"one", "zw\u00f6lf".encode(), b"x" * 5000], dtype=object)
    packed = serialize_byte_tensor(words)
    given, answered = region("in", 6000), region("out", 8000)
    shm.set_shared_memory_region(given, [packed], offset=3)
    size = len(packed.item())
    sent = lent("INPUT0", words, "in", 3, size, "BYTES")
    answer = shared.infer("texts", [sent], outputs=[output("out", 7000, offset=1)])
    told = answer.get_output("OUTPUT0").parameters["shared_memory_byte_size"].int64_param
    assert told == size, "what was written, not what there was room for"
    assert shm.get_contents_as_numpy(answered, np.object_, [4], 1).tolist() == words.tolist()
    (raw,) = shared.infer("texts", [sent]).get_response().raw_output_contents
    assert elements(raw) == words.tolist()


def test_a_region_may_begin_inside_its_object(shared, region):
    array = np.arange(4, dtype=np.float32)
    for offset in (16, PAGE, PAGE + 40):
        handle = region("in", 2 * PAGE, offset=offset)
        shm.set_shared_memory_region(handle, [array], offset=offset + 8)
        answer = shared.infer("identity", [lent("INPUT0", array, "in", 8)])
        assert answer.as_numpy("OUTPUT0").tolist() == array.tolist()
        shared.unregister_system_shared_memory("in")


def test_a_region_is_registered_anew_as_it_grows(shared, region):
    for size in (8, 1000, 100_000, 10_000_000, 40):
        array = np.random.default_rng(size).random(size // 4, dtype=np.float32)
        shm.set_shared_memory_region(region("in", size), [array])
        answered = region("out", size)
        for _ in range(3):
            shared.infer("identity", [lent("INPUT0", array, "in")], outputs=[output("out", size)])
            written = shm.get_contents_as_numpy(answered, np.float32, array.shape)
            assert np.array_equal(written, array)
            answered._mpsm_handle.buf[:size] = bytes(size)
        shared.unregister_system_shared_memory("in")
        shared.unregister_system_shared_memory("out")
    eventually("nothing is mapped", lambda: mapped(shared.server) == 0)


def test_an_input_region_that_is_unregistered_serves_the_running_request(shared, region):
    array = np.arange(64, dtype=np.float32)
    shm.set_shared_memory_region(region("in", 256), [array])
    answers = shared.begin("slow", [lent("INPUT0", array, "in")])
    shared.unregister_system_shared_memory("in")
    denied(lambda: shared.infer("identity", [lent("INPUT0", array, "in")]), NOT_FOUND)
    result, error = answers.get(timeout=PATIENCE_SECONDS)
    assert error is None and np.array_equal(result.as_numpy("OUTPUT0"), array)
    eventually("nothing is mapped", lambda: mapped(shared.server) == 0)


@pytest.mark.parametrize("then", ["gone", "another"])
def test_an_output_region_that_is_unregistered_serves_the_running_request(shared, region, then):
    array = np.arange(64, dtype=np.float32)
    answered = region("out", 256)
    answers = shared.begin("slow", [array_input("INPUT0", array)], outputs=[output("out", 256)])
    shared.unregister_system_shared_memory("out")
    if then == "another":
        other = region("other", 256)
        shared.unregister_system_shared_memory("other")
        shared.register_system_shared_memory("out", key_of("other"), 256)
    result, error = answers.get(timeout=PATIENCE_SECONDS)
    assert error is None, error
    assert np.array_equal(shm.get_contents_as_numpy(answered, np.float32, [64]), array)
    if then == "another":
        assert bytes(other._mpsm_handle.buf[:256]) == bytes(256), "the other object is not ours"


def test_the_status_tells_of_one_region_or_all(shared, region):
    region("a", 64)
    region("b", 8192, offset=4096)
    every = shared.get_system_shared_memory_status().regions
    assert {name: (r.name, r.key, r.offset, r.byte_size) for name, r in every.items()} == {
        "a": ("a", key_of("a"), 0, 64), "b": ("b", key_of("b"), 4096, 4096)}
    assert list(shared.get_system_shared_memory_status("b").regions) == ["b"]
    denied(lambda: shared.get_system_shared_memory_status("c"), NOT_FOUND,
           "Unable to find system shared memory region: 'c'")
    shared.unregister_system_shared_memory("c")
    shared.unregister_system_shared_memory("a")
    assert list(shared.get_system_shared_memory_status().regions) == ["b"]
    shared.unregister_system_shared_memory()
    assert not shared.get_system_shared_memory_status().regions


def test_requests_of_a_stream_use_regions_and_a_wrong_use_is_answered_in_band(shared, region):
    given, answered = region("a", 64), region("b", 64)
    given._mpsm_handle.buf[:8] = floats(1, 2)
    sent = [using("input", SIZED), using("output", {**SIZED, "shared_memory_region": "b"}),
            using("input", {**SIZED, "shared_memory_region": "x"}), using("input", SIZED)]
    messages = collect(shared.stub, *sent)
    assert "Unable to find shared memory region: 'x'" in messages[2].error_message
    raws = [list(messages[i].infer_response.raw_output_contents) for i in (0, 1, 3)]
    assert raws == [[floats(1, 2)], [b""], [floats(1, 2)]]
    assert bytes(answered._mpsm_handle.buf[:8]) == floats(1, 2)


def test_the_region_of_an_answer_may_be_that_of_the_request(shared, region):
    array = np.arange(16, dtype=np.float32)
    handle = region("in", 80)
    shm.set_shared_memory_region(handle, [array])
    shared.infer("identity", [lent("INPUT0", array, "in")], outputs=[output("in", 64, offset=16)])
    assert np.array_equal(shm.get_contents_as_numpy(handle, np.float32, [16], 16), array)


def test_many_clients_use_one_region_at_once(shared, region):
    handle = region("in", 64 * PAGE)
    rows = np.arange(64 * PAGE // 4, dtype=np.float32).reshape(64, -1)
    shm.set_shared_memory_region(handle, [rows])

    def call(row):
        sent = lent("INPUT0", rows[row], "in", offset=row * PAGE)
        return np.array_equal(shared.infer("identity", [sent]).as_numpy("OUTPUT0"), rows[row])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, list(range(64)) * 4))
