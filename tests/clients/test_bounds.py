"""What a client may not pile up or leave behind: floods, half loads, silence."""

import concurrent.futures
import contextlib
import socket
import time

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from wire import Client, Stream, floats, refused, request, scrape, tensor, write_model

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


def test_a_connection_that_does_not_begin_is_closed(server):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    host, port = server.address.rsplit(":", 1)

    def wait(first):
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.sendall(first)
            started = time.monotonic()
            assert connection.recv(1) == b""
            return time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor() as pool:
        silent = list(pool.map(wait, (b"", preface[:1], preface[:-1])))
    # The limit is 10 s. The clock of this test starts a little after the server's.
    assert all(5 < seconds < PATIENCE_SECONDS for seconds in silent), silent
    # What cannot become a preface any more is closed at once, without a word, not after 10 s.
    assert wait(b"GET") < 5


def test_connections_that_say_nothing_give_way():
    began = time.monotonic()
    with running("--builtin", "identity", "--grpc-max-connections", "4") as server, contextlib.ExitStack() as stack:
        host, port = server.address.rsplit(":", 1)
        one = request("identity", [tensor("INPUT0", "FP32", [1])], [floats(1)])
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        # One with a call under way is asked as well, and ends when the call does.
        stream = Stream(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        stream.send(one)
        assert not stream.next().error_message
        for _ in range(3):
            stack.enter_context(socket.create_connection((host, int(port))))
        for _ in range(4):
            # Otherwise it shares the connection of the channel above.
            own = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(server.address, options=own) as newcomer:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(newcomer)
                assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_SECONDS).live
        stream.send(one)
        assert not stream.next().error_message
        stream.close()
        assert scrape(server, 'stator_connections_waited_total{listener="grpc"}') >= 1
        told = sum("all connections are taken" in line for line in server.log)
        assert 1 <= told <= 1 + (time.monotonic() - began) / 5, "it is told at most every five seconds"


def test_nan_is_classified_last(server, tmp_path):
    with triton.InferenceServerClient(server.address) as client:
        values = np.where(np.arange(1000) % 3 == 0, np.nan, np.arange(1000)).astype(np.float32)
        given = triton.InferInput("INPUT0", [1000], "FP32")
        given.set_data_from_numpy(values)
        wanted = triton.InferRequestedOutput("OUTPUT0", class_count=1000)
        best = client.infer("identity", [given], outputs=[wanted]).as_numpy("OUTPUT0")
        places = [int(text.split(b":")[1]) for text in best]
        assert places[:3] == [998, 997, 995] and np.isnan(values[places[666:]]).all()
