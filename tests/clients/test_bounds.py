"""What a client may not pile up or leave behind: floods, half loads, silence."""

import contextlib
import socket
import threading
import time

import grpc
import numpy as np
import tritonclient.grpc as triton

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from wire import Client, refused, write_model

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INFER = "/inference.GRPCInferenceService/ModelInfer"


def test_a_flood_of_empty_tensors_is_refused_before_it_is_decoded(server, channel):
    send = channel.unary_unary(INFER, request_serializer=None, response_deserializer=None)
    for field in (b"\x2a\x00", b"\x32\x00", b"\x3a\x00"):
        refused(lambda: send(b"\x0a\x08identity" + field * 100_000), INVALID, "at most 65536")
        refused(lambda: send(b"\x0a\x08identity" + field * 4_000_000), INVALID, "at most 65536")


def test_a_load_whose_client_left_is_finished(tmp_path):
    write_model(tmp_path, "m", "backend: \"mock\"")
    flags = ["--no-default-model", "--model-control-mode", "explicit"]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        def is_ready():
            # Of a client that leaves so soon a server may hear nothing.
            with contextlib.suppress(triton.InferenceServerException):
                client.load_model("m", client_timeout=0.0005)
            return client.is_model_ready("m") and client.is_server_ready()

        for _ in range(5):
            eventually("it is loaded and ready", is_ready)
            client.unload_model("m")


def test_polling_leaves_models_of_the_command_line_alone(tmp_path):
    flags = ["--model-control-mode", "poll", "--repository-poll-secs", "1"]
    flags += ["--builtin", "given=identity", "--builtin", "other=identity"]
    with running("--model-repository", str(tmp_path), *flags) as server, Client(server) as client:
        write_model(tmp_path, "given", "backend: \"square\"")
        write_model(tmp_path, "new", "backend: \"square\"")
        eventually("it is found", lambda: client.is_model_ready("new"))
        config = client.get_model_config("given", as_json=True)["config"]
        assert config["backend"] == "identity"


def test_a_silent_connection_is_closed(server):
    ends = {}

    def wait(name, address):
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            started = time.monotonic()
            assert connection.recv(1) == b""
            ends[name] = time.monotonic() - started

    waiter = threading.Thread(target=wait, args=("grpc", server.address))
    waiter.start()
    waiter.join()
    assert 5 < ends["grpc"] < PATIENCE_SECONDS


def test_nan_is_classified_last(server, tmp_path):
    with triton.InferenceServerClient(server.address) as client:
        values = np.where(np.arange(1000) % 3 == 0, np.nan, np.arange(1000)).astype(np.float32)
        given = triton.InferInput("INPUT0", [1000], "FP32")
        given.set_data_from_numpy(values)
        wanted = triton.InferRequestedOutput("OUTPUT0", class_count=1000)
        best = client.infer("identity", [given], outputs=[wanted]).as_numpy("OUTPUT0")
        places = [int(text.split(b":")[1]) for text in best]
        assert places[:3] == [998, 997, 995] and np.isnan(values[places[666:]]).all()
