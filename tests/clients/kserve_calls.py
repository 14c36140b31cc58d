"""Calls a server by KServe's Python SDK and prints what came back, as one line of JSON.

A process of its own: the SDK's messages and those of Triton's client have the same names.
"""

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput

SAMPLES = {
    "BOOL": [True, False], "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1], "INT8": [-128, 127], "INT16": [-2**15, 2**15 - 1],
    "INT32": [-2**31, 2**31 - 1], "INT64": [-2**63, 2**63 - 1], "FP32": [-0.5, 3.0],
    "FP64": [-0.5, 1e300], "BYTES": ["", "\u017c\u00f3\u0142w"],
}
ARRAYS = {"BOOL": np.bool_, "FP16": np.float16, "FP32": np.float32, "INT64": np.int64,
          "BYTES": np.object_}


def asked(model, *inputs, **options):
    return InferRequest(model, list(inputs), **options)


def listed(datatype):
    """Makes a request whose data is a list: typed contents over gRPC, JSON over REST."""
    data = SAMPLES[datatype]
    return asked(f"identity_{datatype.lower()}", InferInput("INPUT0", [len(data)], datatype, data))


def arrayed(datatype):
    """Makes a request whose data is an array: raw contents over gRPC, binary data over REST."""
    values = [b"a", "\u017c".encode()] if datatype == "BYTES" else [1, 0]
    data = np.array(values, ARRAYS[datatype])
    made = InferInput("INPUT0", list(data.shape), datatype)
    made.set_data_from_numpy(data, binary_data=True)
    outputs = [RequestedOutput("OUTPUT0", {"binary_data": True})]
    return asked(f"identity_{datatype.lower()}", made, request_outputs=outputs)


def added():
    row = list(range(16))
    pair = [InferInput(f"INPUT{i}", [1, 16], "INT32", row) for i in range(2)]
    return asked("simple", *pair, request_id="r-1", parameters={"note": "x"},
                 request_outputs=[RequestedOutput("OUTPUT0")])


def plain(value):
    """Makes JSON of what the SDK answered."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


async def answer(call):
    """Returns an inference's id, model and outputs by name."""
    found = await call
    outputs = {output.name: [output.datatype, list(output.shape), plain(output.as_numpy())]
               for output in found.outputs}
    return {"id": found.id, "model": found.model_name, "outputs": outputs}


async def over_grpc(address):
    async with InferenceGRPCClient(address) as client:
        yield "live", client.is_server_live()
        yield "ready", client.is_server_ready()
        yield "model ready", client.is_model_ready("simple")
        yield "unknown ready", client.is_model_ready("nope")
        for datatype in SAMPLES:
            yield f"list {datatype}", answer(client.infer(listed(datatype)))
        for datatype in ARRAYS:
            yield f"array {datatype}", answer(client.infer(arrayed(datatype)))
        yield "two inputs", answer(client.infer(added()))
        yield "unknown infer", answer(client.infer(asked("nope", InferInput("X", [1], "FP32", [1.0]))))


async def over_rest(address):
    client, base = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{address}"
    infer = lambda made: answer(client.infer(base, made, model_name=made.model_name))
    yield "live", client.is_server_live(base)
    yield "ready", client.is_server_ready(base)
    yield "model ready", client.is_model_ready(base, "simple")
    yield "unknown ready", client.is_model_ready(base, "nope")
    for datatype in SAMPLES:
        yield f"list {datatype}", infer(listed(datatype))
    for datatype in ARRAYS:
        yield f"array {datatype}", infer(arrayed(datatype))
    yield "two inputs", infer(added())
    yield "unknown infer", infer(asked("nope", InferInput("X", [1], "FP32", [1.0])))


async def by_stub(address):
    """Calls by the stub that is made of the Open Inference Protocol's own messages."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        yield "metadata", told(stub.ServerMetadata(pb.ServerMetadataRequest()), "name")
        model = pb.ModelMetadataRequest(name="simple")
        yield "model metadata", told(stub.ModelMetadata(model), "name", "platform")
        ready = lambda: told(stub.ModelReady(pb.ModelReadyRequest(name="simple")), "ready")
        for name, answer, field in [("Unload", pb.RepositoryModelUnloadResponse, "isUnloaded"),
                                    ("Load", pb.RepositoryModelLoadResponse, "isLoaded")]:
            path = f"/inference.GRPCInferenceService/RepositoryModel{name}"
            ask = channel.unary_unary(path, lambda raw: raw, answer.FromString)
            # Triton's request: the model's name is field 2.
            yield f"{name.lower()} in Triton's form", told(ask(b"\x12\x06simple"), "model_name", field)
        unload = pb.RepositoryModelUnloadRequest(model_name="simple")
        yield "unload", told(stub.RepositoryModelUnload(unload), "model_name", "isUnloaded")
        yield "ready once unloaded", ready()
        load = lambda name: stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))
        yield "load", told(load("simple"), "model_name", "isLoaded")
        yield "ready once loaded", ready()
        yield "load of nothing", told(load("nope"), "isLoaded")


async def told(call, *fields):
    found = await call
    return [getattr(found, field) for field in fields]


async def main(grpc_address, http_address):
    results = {}
    doors = {"grpc": over_grpc(grpc_address), "rest": over_rest(http_address),
             "stub": by_stub(grpc_address)}
    for door, calls in doors.items():
        async for name, call in calls:
            try:
                results[f"{door}: {name}"] = await call
            except grpc.RpcError as error:
                results[f"{door}: {name}"] = ["error", error.code().name, error.details()]
            except httpx.HTTPStatusError as error:
                results[f"{door}: {name}"] = ["error", error.response.status_code, str(error)]
    print(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
