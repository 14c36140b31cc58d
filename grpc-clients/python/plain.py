"""Shows Stator's gRPC service with grpcio alone: plain.py [host:port]

The stubs are generated from ../../proto. They cannot share a process with tritonclient, which
brings messages of the same names, so this step has a program of its own.
"""

import sys

import grpc
from inference_pb2 import ModelInferRequest
from inference_pb2_grpc import GRPCInferenceServiceStub


def show_error(stub):
    try:
        stub.ModelInfer(ModelInferRequest(model_name="no_such_model"), timeout=10)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        print(f"error: {error.code().name}: {error.details()}")
    else:
        raise RuntimeError("an unknown model answered")


with grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "localhost:8001") as channel:
    show_error(GRPCInferenceServiceStub(channel))
