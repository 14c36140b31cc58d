"""grpcurl works with no proto file, on both versions of reflection."""

import base64
import json
import shutil
import subprocess

from patience import PATIENCE_SECONDS


def grpcurl(server, *arguments, data=None):
    assert shutil.which("grpcurl"), "grpcurl is not on the PATH: run the tests by ./test"
    command = ["grpcurl", "-plaintext"]
    if data is not None:
        command += ["-d", json.dumps(data)]
    command += [server.address, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_list_and_describe(server):
    assert "inference.GRPCInferenceService" in grpcurl(server, "list")
    methods = grpcurl(server, "list", "inference.GRPCInferenceService").split()
    assert len(methods) == 20
    assert "rpc ModelStreamInfer" in grpcurl(server, "describe", "inference.GRPCInferenceService")


def test_a_generation(server):
    text = base64.b64encode(b"The capital of France is").decode()
    inputs = [{"name": "text_input", "datatype": "BYTES", "shape": [1],
               "contents": {"bytes_contents": [text]}}]
    data = {"model_name": "smollm", "inputs": inputs,
            "parameters": {"max_tokens": {"int64_param": 8},
                           "temperature": {"double_param": 0}}}
    answer = json.loads(grpcurl(server, "inference.GRPCInferenceService/ModelInfer", data=data))
    output = base64.b64decode(answer["rawOutputContents"][0])[4:].decode()
    assert output.startswith(" Paris")


def test_health(server):
    answer = grpcurl(server, "grpc.health.v1.Health/Check", data={"service": "smollm"})
    assert json.loads(answer) == {"status": "SERVING"}
