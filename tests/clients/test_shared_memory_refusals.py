"""Shared memory: what is refused, by default and by rule, and what clients break afterwards."""

import os

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from conftest import running
from patience import PATIENCE_SECONDS
from test_shared_memory import (MODELS, PAGE, SIZED, key_of, lent, output, region, shared,
                                using)
from wire import Client, array_input, denied, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL
NOT_FOUND = grpc.StatusCode.NOT_FOUND
TAKEN = grpc.StatusCode.ALREADY_EXISTS
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name, key, size, offset, code, fragment", [
    ("a", "KEY", 64, 0, TAKEN, "shared memory region 'a' already in manager"),
    ("b", "stator_no_such_object", 64, 0, INTERNAL,
     "Unable to open shared memory region: 'stator_no_such_object'"),
    ("b", "KEY", 65, 0, INVALID, "failed to register shared memory region 'b'"),
    ("b", "KEY", 64, 1, INVALID, "failed to register shared memory region 'b'"),
    ("b", "KEY", 2**64 - 1, 64, INVALID, "'b'"),
    ("b", "KEY", 64, 2**64 - 1, INVALID, "'b'"),
    ("b", "KEY", 0, 0, INVALID, "'b'"),
    ("", "KEY", 64, 0, INVALID, "name"),
    ("b", "", 64, 0, INVALID, "key"),
    ("b", "/", 64, 0, INVALID, "key"),
    ("b", "//", 64, 0, INVALID, "key"),
    ("b", "/../etc/passwd", 64, 0, INVALID, "key"),
    ("b", "folder/object", 64, 0, INVALID, "key"),
    ("b", "triton_python_backend_shm_region_1", 64, 0, INVALID, "triton_python_backend_shm"),
    ("b", "/triton_python_backend_shm_region_1", 64, 0, INVALID, "triton_python_backend_shm"),
])
def test_a_registration_that_is_wrong(shared, region, name, key, size, offset, code, fragment):
    region("a", 64)
    call = lambda: shared.register_system_shared_memory(name, key.replace("KEY", key_of("a")), size,
                                                        offset=offset)
    denied(call, code, fragment)
    assert list(shared.get_system_shared_memory_status().regions) == ["a"]


USES = {
    "unknown": ({**SIZED, "shared_memory_region": "x"}, NOT_FOUND,
                "Unable to find shared memory region: 'x'"),
    "without size": ({"shared_memory_region": "a"}, INVALID, "shared_memory_byte_size"),
    "without region": ({"shared_memory_byte_size": 8}, INVALID, "shared_memory_region"),
    "past the end": ({**SIZED, "shared_memory_offset": 57}, INVALID, "region: 'a'"),
    "offset at the end": ({**SIZED, "shared_memory_offset": 64}, INVALID, "region: 'a'"),
    "overflow": ({**SIZED, "shared_memory_offset": 2**63 - 1}, INVALID, "region: 'a'"),
    "negative": ({**SIZED, "shared_memory_offset": -8}, INVALID, "shared_memory_offset"),
    "region as number": ({**SIZED, "shared_memory_region": 1}, INVALID, "shared_memory_region"),
    "size as text": ({**SIZED, "shared_memory_byte_size": "8"}, INVALID, "shared_memory_byte_size"),
    "offset as text": ({**SIZED, "shared_memory_offset": "0"}, INVALID, "shared_memory_offset"),
}


@pytest.mark.parametrize("of", ["input", "output"])
@pytest.mark.parametrize("case", USES)
def test_a_use_of_a_region_that_is_wrong(shared, region, of, case):
    region("a", 64)
    parameters, code, fragment = USES[case]
    refused(lambda: shared.stub.ModelInfer(using(of, parameters)), code, fragment)
    assert shared.stub.ModelInfer(using(of, SIZED)).outputs


@pytest.mark.parametrize("size", [0, 4, 12, 64])
def test_an_input_has_to_have_the_bytes_of_its_shape(shared, region, size):
    region("a", 64)
    sent = using("input", {**SIZED, "shared_memory_byte_size": size})
    refused(lambda: shared.stub.ModelInfer(sent), INVALID,
            "input byte size mismatch for input 'INPUT0'", f"Expected 8, got {size}")


def test_an_output_that_does_not_fit_is_internal_and_nothing_is_written(shared, region):
    handle = region("out", 64)
    array = np.ones(16, np.float32)
    for size, offset in [(60, 0), (0, 0), (60, 4)]:
        denied(lambda: shared.infer("identity", [array_input("INPUT0", array)],
                                    outputs=[output("out", size, offset=offset)]), INTERNAL)
    assert bytes(handle._mpsm_handle.buf[:64]) == bytes(64)


def test_an_input_has_contents_or_lies_in_a_region(shared, region):
    region("a", 64)
    sent = using("input", SIZED)
    sent.inputs[0].contents.fp32_contents.extend([1, 2])
    refused(lambda: shared.stub.ModelInfer(sent), INVALID, "INPUT0")


def test_broken_strings_in_a_region_are_refused(shared, region):
    handle = region("a", 64)
    words = np.array([b"one", b"two"], dtype=object)
    packed = serialize_byte_tensor(words).item()
    for raw, fragment in [(packed[:-1], "incomplete string data"),
                          (packed[:9], "incomplete string length indicator"),
                          (b"\xff\xff\xff\xff" + packed, "incomplete string data"),
                          (packed[:7], "expected 2 string elements")]:
        handle._mpsm_handle.buf[:len(raw)] = raw
        sent = lent("INPUT0", words, "a", size=len(raw), datatype="BYTES")
        denied(lambda: shared.infer("texts", [sent]), INVALID, fragment)


def test_regions_are_off_by_default_and_their_status_works():
    with running(*MODELS) as server, Client(server) as client:
        for call in (lambda: client.register_system_shared_memory("a", "key", 64),
                     lambda: client.unregister_system_shared_memory("a"),
                     lambda: client.unregister_system_shared_memory(),
                     lambda: client.register_cuda_shared_memory("a", HANDLE, 0, 64),
                     lambda: client.unregister_cuda_shared_memory("a"),
                     lambda: client.unregister_cuda_shared_memory()):
            denied(call, UNIMPLEMENTED)
        assert not client.get_system_shared_memory_status().regions
        assert not client.get_cuda_shared_memory_status().regions
        refused(lambda: client.stub.ModelInfer(using("input", SIZED)), NOT_FOUND,
                "Unable to find shared memory region: 'a'")


@pytest.mark.parametrize("prefixes", [["stator_test_"], ["/stator_test_", "other"]])
def test_keys_begin_with_an_allowed_prefix(prefixes):
    flags = [flag for prefix in prefixes for flag in ("--client-shm-key-prefix", prefix)]
    handle = shm.create_shared_memory_region("a", key_of("a"), 64, create_only=True)
    try:
        with running("--allow-client-shm", *flags) as server, Client(server) as client:
            client.register_system_shared_memory("a", key_of("a"), 64)
            client.register_system_shared_memory("b", "/" + key_of("a"), 64)
            for key in ("psm_secret", "x" + key_of("a")):
                denied(lambda: client.register_system_shared_memory("c", key, 64), INVALID, key)
    finally:
        shm.destroy_shared_memory_region(handle)


@pytest.fixture
def cuttable():
    """A server of its own with a region that the test may cut short, and another one."""
    handles = [shm.create_shared_memory_region(name, key_of(name), 4 * PAGE, create_only=True)
               for name in ("cut", "whole")]
    with running("--allow-client-shm", *MODELS) as server, Client(server) as client:
        for name in ("cut", "whole"):
            client.register_system_shared_memory(name, key_of(name), 4 * PAGE)
        client.cut = lambda: os.truncate(f"/dev/shm/{key_of('cut')}", 100)
        yield client
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


LARGE, SMALL = np.ones(PAGE, np.float32), np.ones(4, np.float32)
CUTS = {
    "large input": ([lent("INPUT0", LARGE, "cut")], None),
    "small input": ([lent("INPUT0", SMALL, "cut", 3 * PAGE)], None),
    "input for another region": ([lent("INPUT0", LARGE, "cut")], [output("whole", 4 * PAGE)]),
    "classified input": ([lent("INPUT0", LARGE, "cut")],
                         [triton.InferRequestedOutput("OUTPUT0", class_count=1)]),
    "output": ([array_input("INPUT0", LARGE)], [output("cut", 4 * PAGE)]),
}


@pytest.mark.parametrize("case", CUTS)
def test_an_object_cut_before_a_request_is_an_error(cuttable, case):
    inputs, outputs = CUTS[case]
    cuttable.cut()
    denied(lambda: cuttable.infer("identity", inputs, outputs=outputs), INVALID)
    assert cuttable.infer("identity", [array_input("INPUT0", LARGE)])


@pytest.mark.parametrize("case", CUTS)
def test_an_object_cut_while_a_request_runs_is_no_crash(cuttable, case):
    inputs, outputs = CUTS[case]
    others = cuttable.begin("slow", [array_input("INPUT0", SMALL)])
    # An answer that was written before the cut is none of an error.
    answers = cuttable.begin("slower" if case == "output" else "slow", inputs, outputs=outputs)
    cuttable.cut()
    error, other = answers.get(timeout=PATIENCE_SECONDS)[1], others.get(timeout=PATIENCE_SECONDS)[1]
    assert cuttable.server.is_running() and cuttable.is_server_live()
    assert other is None, "another request of the same connection is lost"
    assert error is None or error.status() != str(grpc.StatusCode.UNAVAILABLE)
    assert error is not None or case != "output"


HANDLE = b"QUJD" * 16


def test_cuda_regions_without_a_gpu_are_refused_and_there_are_none(shared):
    for size in (64, 63, 0):
        sent = pb.CudaSharedMemoryRegisterRequest(name="c", raw_handle=bytes(size), byte_size=64)
        refused(lambda: shared.stub.CudaSharedMemoryRegister(sent), INVALID,
                "failed to register CUDA shared memory region: 'c'")
    denied(lambda: shared.register_cuda_shared_memory("c", HANDLE, 0, 64), INVALID)
    assert not shared.get_cuda_shared_memory_status().regions
    denied(lambda: shared.get_cuda_shared_memory_status("c"), NOT_FOUND,
           "Unable to find cuda shared memory region: 'c'")
    shared.unregister_cuda_shared_memory("c")
    shared.unregister_cuda_shared_memory()


def test_each_kind_of_region_unregisters_only_its_own(shared, region):
    region("a", 64)
    shared.unregister_cuda_shared_memory()
    shared.unregister_cuda_shared_memory("a")
    assert list(shared.get_system_shared_memory_status().regions) == ["a"]
    denied(lambda: shared.get_cuda_shared_memory_status("a"), NOT_FOUND)
