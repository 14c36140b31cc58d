"""The errors of Triton's that a client can reach: each keeps the words that clients and tests look for."""

import os

import grpc
import pytest
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import test_rest_validation as rest
from conftest import running
from wire import binary_body, call, floats, json_tensor, refused, request, set_parameter, strings, tensor, text_request

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INTERNAL = grpc.StatusCode.INTERNAL
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
LIMIT = 1 << 20
BUILTINS = ["identity", "batched=identity,dims=16,max_batch_size=8", "simple=add_sub", "sequence", "repeat_int32",
            "square", "mock", "words=identity,datatype=BYTES", "half=identity,datatype=FP16",
            "brain=identity,datatype=BF16", "two=identity,dims=-1x-1", "small=identity,datatype=INT8",
            "pairs=identity,dims=-1x2"]
FLOAT = tensor("INPUT0", "FP32", [2])
BYTES = floats(1, 2)
REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
UNKNOWN_ID = "[request id: <id_unknown>] "


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server whose clients may load models, register regions and set what is traced."""
    flags = [flag for builtin in BUILTINS for flag in ("--builtin", builtin)]
    trace = tmp_path_factory.mktemp("trace") / "trace.json"
    with running("--model-control-mode", "explicit", "--allow-client-shm", "--http-max-input-bytes", str(LIMIT),
                 "--trace-file", str(trace), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def stub(served):
    with grpc.insecure_channel(served.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def infer(model="identity", inputs=(FLOAT,), raw=(BYTES,), **options):
    return "ModelInfer", request(model, inputs, raw, **options)


def with_input(parameters, raw=(), **contents):
    made = tensor("INPUT0", "FP32", [2], **contents)
    for key, value in parameters.items():
        set_parameter(made.parameters[key], value)
    return infer(inputs=[made], raw=raw)


def with_output(model="identity", inputs=(FLOAT,), raw=(BYTES,), name="OUTPUT0", **parameters):
    made = request(model, inputs, raw, outputs=[name])
    for key, value in parameters.items():
        set_parameter(made.outputs[0].parameters[key], value)
    return "ModelInfer", made


def registers(name, key, size=8, offset=0):
    return "SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(
        name=name, key=key, offset=offset, byte_size=size)


def loads(name, **parameters):
    made = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        setattr(made.parameters[key], "bytes_param" if isinstance(value, bytes) else "int64_param"
                if isinstance(value, int) else "string_param", value)
    return "RepositoryModelLoad", made


def unloads(name, **parameters):
    made = pb.RepositoryModelUnloadRequest(model_name=name)
    for key, value in parameters.items():
        made.parameters[key].string_param = value
    return "RepositoryModelUnload", made


def traces(model="", **settings):
    made = pb.TraceSettingRequest(model_name=model)
    for key, values in settings.items():
        made.settings[key].value.extend(values)
    return "TraceSetting", made


def logs(**settings):
    made = pb.LogSettingsRequest()
    for key, value in settings.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(made.settings[key], kind, value)
    return "LogSettings", made


STEP = tensor("INPUT", "INT32", [1, 1])
SHAPE = "For BYTE datatype raw input"
REGISTER = "failed to register shared memory region 'b': invalid args"
RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage"
GRPC = {
    # A request's place: model, version, sequence.
    "model": (infer("nope"), NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "version": (infer(version="9"), NOT_FOUND, "Request for unknown model: 'identity' version 9 is not found"),
    "version text": (infer(version="x"), INVALID, "failed to get model version from specified version string 'x' (details: "),
    "version number": (infer(version="x"), INVALID, "version should be an integral value > 0"),
    "decoupled": (infer("repeat_int32", [tensor("IN", "INT32", [1])], [bytes(4)]), UNIMPLEMENTED,
                  "ModelInfer RPC doesn't support models with decoupled transaction policy"),
    "sequence id": (infer("sequence", [STEP], [bytes(4)]), INVALID,
                    "inference request to model 'sequence' must specify a non-zero or non-empty correlation ID"),
    "sequence start": (infer("sequence", [STEP], [bytes(4)], parameters={"sequence_id": 7}), INVALID,
                       "inference request for sequence 7 to model 'sequence' must specify the START flag on the first "
                       "request of the sequence"),
    "sequence batch": (infer("sequence", [tensor("INPUT", "INT32", [2, 1])], [bytes(8)],
                             parameters={"sequence_id": 7, "sequence_start": True}), INVALID, "batch-size"),
    # Its parameters.
    "sequence_id type": (infer(parameters={"sequence_id": True}), INVALID,
                         "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
    "sequence_start type": (infer(parameters={"sequence_start": 1}), INVALID,
                            "invalid value type for 'sequence_start' parameter, expected bool_param."),
    "sequence_end type": (infer(parameters={"sequence_end": 1}), INVALID,
                          "invalid value type for 'sequence_end' parameter, expected bool_param."),
    "priority type": (infer(parameters={"priority": "high"}), INVALID,
                      "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
    "priority": (infer(parameters={"priority": -1}), INVALID, "invalid value for 'priority', expected value >= 0."),
    "timeout type": (infer(parameters={"timeout": "long"}), INVALID,
                     "invalid value type for 'timeout' parameter, expected int64_param"),
    "reserved": (infer(parameters={"triton_x": True}), INVALID, RESERVED + ". Only the following keys starting with "
                 "'triton_' are allowed: triton_enable_empty_final_response"),
    "reserved type": (infer(parameters={"triton_enable_empty_final_response": 1}), INVALID,
                      "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param."),
    # Its inputs.
    "both contents": (infer(inputs=[tensor("INPUT0", "FP32", [2], fp32_contents=[1, 2])]), INVALID,
                      "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'identity'"),
    "contents type": (infer(inputs=[tensor("INPUT0", "FP32", [2], int_contents=[1, 2])], raw=()), INVALID,
                      "unexpected explicit tensor data for input tensor 'INPUT0' for model 'identity' of type 'INT32', "
                      "expected datatype 'FP32'"),
    "no data": (infer("simple", [tensor("INPUT0", "INT32", [1, 16]), tensor("INPUT1", "INT32", [1, 16])], [bytes(64)]), INVALID,
                "unable to find data for input tensor 'INPUT1' for model 'simple' in request."),
    "count": (infer("simple", [tensor("INPUT0", "INT32", [1, 16])], [bytes(64)]), INVALID,
              "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but missing required "
              "input(s) ['INPUT1']. Please provide all required input(s)."),
    "unknown input": (infer(inputs=[tensor("X", "FP32", [2])]), INVALID, "unexpected inference input 'X' for model 'identity'"),
    "duplicate input": (infer("simple", [tensor("INPUT0", "INT32", [1, 16])] * 2, [bytes(64)] * 2), INVALID,
                        "input 'INPUT0' already exists in request"),
    "no batch": (infer("batched", [tensor("INPUT0", "FP32", [])], [b""]), INVALID,
                 "input 'INPUT0' has no shape but model requires batch dimension for 'batched'"),
    "batches": (infer("simple", [tensor("INPUT0", "INT32", [1, 16]), tensor("INPUT1", "INT32", [2, 16])],
                      [bytes(64), bytes(128)]), INVALID, "batch size does not match other inputs for 'simple'"),
    "batch": (infer("batched", [tensor("INPUT0", "FP32", [9, 16])], [bytes(576)]), INVALID,
              "inference request batch-size must be <= 8 for 'batched'"),
    "datatype": (infer(inputs=[tensor("INPUT0", "INT32", [2])]), INVALID,
                 "inference input 'INPUT0' data-type is 'INT32', but model 'identity' expects 'FP32'"),
    "dimension": (infer(inputs=[tensor("INPUT0", "FP32", [-1])]), INVALID,
                  "All input dimensions should be specified for input 'INPUT0' for model 'identity', got [-1]"),
    "shape": (infer("batched", [tensor("INPUT0", "FP32", [1, 8])], [bytes(32)]), INVALID,
              "unexpected shape for input 'INPUT0' for model 'batched'. Expected [-1,16], got [1,8]. NOTE: Setting a "
              "non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape."),
    "bytes": (infer(raw=[bytes(4)]), INVALID,
              "input byte size mismatch for input 'INPUT0' for model 'identity'. Expected 8, got 4"),
    "length": (infer("words", [tensor("INPUT0", "BYTES", [1])], [b"\1"]), INVALID,
               "incomplete string length indicator for inference input 'INPUT0'"),
    "text": (infer("words", [tensor("INPUT0", "BYTES", [1])], [b"\5\0\0\0a"]), INVALID,
             "incomplete string data for inference input 'INPUT0'"),
    "texts": (infer("words", [tensor("INPUT0", "BYTES", [1])], [strings("a", "b")]), INVALID,
              "unexpected number of string elements 2 for inference input 'INPUT0'"),
    "id": (infer(inputs=[tensor("X", "FP32", [2])], id="a"), INVALID, "[request id: a] unexpected inference input 'X'"),
    "no id": (infer(inputs=[tensor("X", "FP32", [2])]), INVALID, UNKNOWN_ID + "unexpected inference input 'X'"),
    # Its outputs.
    "output": (with_output(name="X"), INVALID, "unexpected inference output 'X' for model 'identity'"),
    "classes": (with_output("words", [tensor("INPUT0", "BYTES", [1])], [strings("a")], classification=1), INVALID,
                "class result not available for output due to unsupported type 'BYTES'"),
    "classes in a region": (with_output(classification=1, **REGION), INVALID,
                            "output can't set both 'shared_memory_region' and 'classification'"),
    # Shared memory.
    "content in a region": (with_input(REGION, fp32_contents=[1, 2]), INVALID,
                            "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'identity'"),
    "region": (with_input(REGION), NOT_FOUND, "Unable to find shared memory region: 'r'"),
    "region at": (with_input({**REGION, "shared_memory_region": "here", "shared_memory_offset": 64}), INVALID,
                  "Invalid offset for shared memory region: 'here'"),
    "region end": (with_input({**REGION, "shared_memory_region": "here", "shared_memory_offset": 60}), INVALID,
                   "Invalid offset + byte size for shared memory region: 'here'"),
    "region overflow": (with_input({**REGION, "shared_memory_region": "here", "shared_memory_offset": 60,
                                    "shared_memory_byte_size": 2**64 - 1}), INVALID, "Integer overflow detected"),
    "region name": (registers("here", "KEY"), grpc.StatusCode.ALREADY_EXISTS,
                    "shared memory region 'here' already in manager"),
    "no object": (registers("b", "stator_none"), INTERNAL, "Unable to open shared memory region: 'stator_none'"),
    "object end": (registers("b", "KEY", 65), INVALID, REGISTER),
    "object at": (registers("b", "KEY", 8, 64), INVALID, REGISTER),
    "object overflow": (registers("b", "KEY", 2**64 - 1, 64), INVALID, REGISTER),
    "key": (registers("b", "//"), INVALID, "cannot register shared memory region 'b' - invalid shm key '//'"),
    "reserved key": (registers("b", "/triton_python_backend_shm_region_1"), INVALID,
                     "cannot register shared memory region 'b' with key '/triton_python_backend_shm_region_1' as the "
                     "key contains the reserved prefix 'triton_python_backend_shm_region_'"),
    "status": (("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="x")), NOT_FOUND,
               "Unable to find system shared memory region: 'x'"),
    "cuda status": (("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="x")), NOT_FOUND,
                    "Unable to find cuda shared memory region: 'x'"),
    "cuda": (("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="x", raw_handle=bytes(64), byte_size=8)),
             INVALID, "failed to register CUDA shared memory region: 'x'"),
    # Models.
    "load": (loads("nope"), INTERNAL, "failed to load 'nope', failed to poll from model repository"),
    "load name": (loads(""), INVALID, "Model name cannot be empty"),
    "load path": (loads("../m"), INVALID, "must not contain path traversal characters"),
    "load config": (loads("identity", config=1), INVALID,
                    "invalid value type for load parameter 'config', expected string_param."),
    "load file": (loads("identity", config="{}", **{"file:1/x": "x"}), INVALID,
                  "invalid value type for load parameter 'file:1/x', expected bytes_param."),
    "load parameter": (loads("identity", x="y"), INVALID, "unrecognized load parameter 'x'"),
    "files alone": (loads("identity", **{"file:1/x": b"x"}), INTERNAL, "failed to load 'identity', "),
    "unload type": (unloads("identity", unload_dependents="x"), INVALID,
                    "invalid value type for 'unload_dependents' parameter, expected bool_param."),
    "repository": (("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="x", model_name="m")), UNIMPLEMENTED,
                   "'repository_name' specification is not supported"),
    "index": (("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="x")), UNIMPLEMENTED,
              "'repository_name' specification is not supported"),
    "metadata": (("ModelMetadata", pb.ModelMetadataRequest(name="nope")), NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "config": (("ModelConfig", pb.ModelConfigRequest(name="nope")), NOT_FOUND, "Request for unknown model: 'nope' is not found"),
    "statistics": (("ModelStatistics", pb.ModelStatisticsRequest(name="nope")), INVALID, "requested model 'nope' is not available"),
    "version's statistics": (("ModelStatistics", pb.ModelStatisticsRequest(name="identity", version="9")), INVALID,
                             "requested model version is not available for model 'identity'"),
    # Traces and logs.
    "traced model": (traces("nope"), INVALID, "Request for unknown model : nope"),
    "trace file": (traces(trace_file=["x"]), UNIMPLEMENTED, "trace file location can not be updated through network protocol"),
    "trace level": (traces(trace_level=["OFF", "TIMESTAMPS"]), INVALID, "Expect only one trace level 'OFF' is specified"),
    "trace rate": (traces(trace_rate=["x"]), INVALID, "Unable to parse 'trace_rate', got: x"),
    "trace rate range": (traces(trace_rate=["9" * 30]), INVALID, "Unable to parse 'trace_rate', value is out of range [ "),
    "trace rates": (traces(trace_rate=["1", "2"]), INVALID, "expect only 1 value for 'trace_rate'"),
    "trace count": (traces(trace_count=["-2"]), INVALID, "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
    "trace count text": (traces(trace_count=["x"]), INVALID, "Unable to parse 'trace_count', got: x"),
    "log frequency": (traces(log_frequency=["x"]), INVALID, "Unable to parse 'log_frequency', got: x"),
    "log file": (logs(log_file="x"), UNIMPLEMENTED, "log file location can not be updated through network protocol"),
    "log info": (logs(log_info=1), INVALID, "expect boolean for 'log_info'"),
    "log verbose": (logs(log_verbose_level="x"), INVALID, "expect int32 for 'log_verbose_level'"),
    "log format type": (logs(log_format=1), INVALID, "expect string for 'log_format'"),
    "log format": (logs(log_format="x"), INVALID, "invalid argument for log_format, got: x"),
}


@pytest.fixture(scope="module")
def here(stub):
    """The key of an object of 64 bytes that is registered as the region `here`."""
    key = f"stator_texts_{os.getpid()}"
    handle = shm.create_shared_memory_region("here", key, 64)
    stub.SystemSharedMemoryRegister(registers("here", key, 64)[1])
    yield key
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="here"))
    shm.destroy_shared_memory_region(handle)


@pytest.mark.parametrize("case", GRPC)
def test_grpc_keeps_tritons_words(stub, here, case):
    (method, sent), code, fragment = GRPC[case]
    if getattr(sent, "key", "") == "KEY":
        sent.key = here
    refused(lambda: getattr(stub, method)(sent), code, fragment)


JSON = json_tensor("INPUT0", "FP32", [2], [1, 2])


def x(model, *inputs, **members):
    return f"/v2/models/{model}/infer", {"inputs": list(inputs), **members}


def asking(**parameters):
    return x("identity", JSON, outputs=[{"name": "OUTPUT0", "parameters": parameters}])


def generates(model, body, route="generate"):
    return f"/v2/models/{model}/{route}", body


def raw(model, body, length="0"):
    return f"/v2/models/{model}/infer", body, {"Inference-Header-Content-Length": length}


def binary(model, *inputs, data=b"", **headers):
    body, found = binary_body({"inputs": list(inputs)}, data)
    return f"/v2/models/{model}/infer", body, {**found, **headers}


def deep(body, levels=150):
    return body.replace("DEEP", "[" * levels + "1" + "]" * levels).encode()


DEEP = "JSON nesting depth exceeds maximum allowed limit (100)"
REST = {
    "raw inputs": (raw("simple", bytes(128)), 400, "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in "
                   "'simple' model configuration"),
    "raw shape": (raw("two", bytes(8)), 400, "The shape of the raw input 'INPUT0' can not be deduced because there are more "
                  "than one variable-sized dimension"),
    "raw text": (raw("words", b"hi"), 400, f"{SHAPE} 'INPUT0', the model must have input shape [1]"),
    "header": (raw("identity", b"{}", "x"), 400, "Unable to parse Inference-Header-Content-Length, got: x"),
    "header range": (raw("identity", b"{}", "9" * 30), 400, "Unable to parse Inference-Header-Content-Length, value is out of range [ "),
    "header size": (raw("identity", b"{}", "7"), 400, "inference header size should be in range (0, 2), got: 7"),
    "deep": (("/v2/models/identity/infer", deep('{"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": DEEP}]}')),
             400, DEEP),
    "deep generate": (generates("identity", deep('{"INPUT0": DEEP}')), 400, DEEP),
    "json": (("/v2/models/identity/infer", b"{"), 400, "failed to parse the request JSON buffer"),
    "size": (("/v2/models/identity/infer", b" " * (LIMIT + 1)), 400, "exceeds the maximum allowed input size of"),
    "shape": (x("identity", json_tensor("INPUT0", "FP32", [-1], [1])), 400,
              "invalid shape for input 'INPUT0': shape [-1] contains one or more invalid dimensions"),
    "elements": (x("small", json_tensor("INPUT0", "INT8", [2**32, 2**32], [1])), 400,
                 "invalid shape for input 'INPUT0': shape [4294967296,4294967296] causes total element count to exceed maximum "
                 "size of"),
    "bytes": (x("identity", json_tensor("INPUT0", "FP32", [2**62], [1])), 400, "byte size overflow for input 'INPUT0'"),
    "data": (x("identity", json_tensor("INPUT0", "FP32", [2], [1])), 400, "shape does not match true shape of 'data' field"),
    "half": (x("half", json_tensor("INPUT0", "FP16", [1], [1])), 400,
             "receiving FP16 data via JSON is not supported. Please use the binary data format for input INPUT0"),
    "brain": (x("brain", json_tensor("INPUT0", "BF16", [1], [1])), 400,
              "receiving BF16 data via JSON is not supported. Please use the binary data format for input INPUT0"),
    "half out": (binary("half", json_tensor("INPUT0", "FP16", [1], binary_data_size=2), data=bytes(2)), 400,
                 "sending FP16 data via JSON is not supported. Please use the binary data format for output"),
    "cut": (binary("identity", json_tensor("INPUT0", "FP32", [2], binary_data_size=16), data=bytes(8)), 400,
            "unexpected size for input 'INPUT0', expecting 8 additional bytes for model 'identity'"),
    "rest": (binary("identity", json_tensor("INPUT0", "FP32", [1], binary_data_size=4), data=bytes(8)), 400,
             "unexpected additional input data for model 'identity'"),
    "no header": (x("identity", json_tensor("INPUT0", "FP32", [1], binary_data_size=4)), 400,
                  "must specify valid 'Infer-Header-Content-Length' in request header and 'binary_data_size' when passing inputs "
                  "in binary data format"),
    "sources": (x("identity", json_tensor("INPUT0", "FP32", [2])), 400, "Input must set only one of the following fields: 'data', "
                "'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. But no field was set"),
    "parameter": (x("identity", JSON, parameters={"a": [1]}), 400,
                  "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
    "sequence_start": (x("identity", JSON, parameters={"sequence_start": 1}), 400, "Unable to parse 'sequence_start'"),
    "sequence_end": (x("identity", JSON, parameters={"sequence_end": "x"}), 400, "Unable to parse 'sequence_end'"),
    "sequence_id": (x("identity", JSON, parameters={"sequence_id": True}), 400, "Unable to parse 'sequence_id'"),
    "priority": (x("identity", JSON, parameters={"priority": "x"}), 400, "Unable to parse 'priority'"),
    "timeout": (x("identity", JSON, parameters={"timeout": "x"}), 400, "Unable to parse 'timeout'"),
    "binary_data_output": (x("identity", JSON, parameters={"binary_data_output": 1}), 400, "Unable to parse 'binary_data_output'"),
    "reserved": (x("identity", JSON, parameters={"triton_x": 1}), 400, RESERVED + " and should not be specified"),
    "decoupled": (x("repeat_int32", json_tensor("IN", "INT32", [1], [1])), 501,
                  "HTTP end point doesn't support models with decoupled transaction policy"),
    "classes": (asking(classification=1, **REGION), 400, "Output can't set both 'shared_memory_region' and 'classification'"),
    "binary region": (asking(binary_data=True, **REGION), 400, "Output can't set both 'shared_memory_region' and 'binary_data'"),
    "ready": (("/v2/repository/index", {"ready": 1}), 400, "Invalid value for 'ready': expected a boolean"),
    "load": (("/v2/repository/models/nope/load", {}), 500, "failed to load 'nope', failed to poll from model repository"),
    "load path": (("/v2/repository/models/..%2Fm/load", {}), 400, "must not contain path traversal characters"),
    "load name": (("/v2/repository/models/%20/load", {}), 400, "Model name cannot be empty"),
    "unload": (("/v2/repository/models/identity/unload", {"parameters": {"unload_dependents": "x"}}), 400,
               "Unable to parse 'unload_dependents'"),
    "no key": (rest.region("b", byte_size=8), 400, "Shared memory register request has no 'key' field"),
    "no size": (rest.region("b", key="/x"), 400, "Shared memory register request has no 'byte_size' field"),
    "no handle": (("/v2/cudasharedmemory/region/b/register", {"byte_size": 8}), 400,
                  "Shared memory register request has no 'raw_handle' field"),
    "handle": (("/v2/cudasharedmemory/region/b/register", {"byte_size": 8, "raw_handle": {"b64": "!"}}), 400,
               "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"),
    "statistics": (("/v2/models/nope/stats", None), 400, "requested model 'nope' is not available"),
    "traced model": (("/v2/models/nope/trace/setting", None), 400, "Request for unknown model : nope"),
    "trace rate": (("/v2/trace/setting", {"trace_rate": "x"}), 400, "Unable to parse 'trace_rate', got: x"),
    "trace file": (("/v2/trace/setting", {"trace_file": "x"}), 501, "trace file location can not be updated through network protocol"),
    "log file": (("/v2/logging", {"log_file": "x"}), 501, "log file location can not be updated through network protocol"),
    "log format": (("/v2/logging", {"log_format": "x"}), 400, "log_format, got: x"),
    "responses": (generates("repeat_int32", {"IN": [1, 2], "DELAY": [0, 0], "WAIT": 0}), 400,
                  "generate expects model to produce exactly 1 response, use generate stream for model that generates various "
                  "number of responses"),
    "parameters": (generates("identity", {"INPUT0": 1, "parameters": 1}), 400, "Expected JSON object for keyword: 'parameters'"),
    "parameter's type": (generates("identity", {"INPUT0": 1, "a": [1]}), 400,
                         "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'."),
    "form": (generates("pairs", {"INPUT0": [1, 2, 3]}), 400, "The schema can not convert input 'INPUT0' to tensor with proper shape"),
    "count": (generates("simple", {"INPUT0": [1] * 16}), 400, "expected 2 inputs but got 1 inputs for model 'simple'"),
    "generate model": (generates("nope", {}), 404, "Request for unknown model: 'nope' is not found"),
}


@pytest.mark.parametrize("case", REST)
def test_rest_keeps_tritons_words(served, case):
    (path, body, *headers), status, fragment = REST[case]
    rest.refused(call(served, path, body, "GET" if body is None else "POST", *headers), status, fragment)


def test_an_error_of_a_models_own_has_no_request_id(stub):
    told = refused(lambda: stub.ModelInfer(text_request("mock", "hello", id="a", temperature=9.0)), INVALID, "`temperature`")
    assert "request id" not in told, told
