"""The end of the server: what outlives the grace is told so, and what does not matter holds up nothing."""

import concurrent.futures
import contextlib
import json
import socket

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from conftest import running
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from test_hostile_memory import Connection, prefix
from wire import Stream, await_running, floats, request, scrape, tensor, text_request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
# The first bytes of a header block whose last frame never comes.
HALF_HEADERS = bytes((0, 0, 2, 1, 0, 0, 0, 0, 1, 0x83, 0x86))
POST = b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: a\r\n"
SENTENCE = "GRPC server is shutting down and has stopped accepting new requests."


@contextlib.contextmanager
def raw(address, *pieces):
    """A connection that sends some bytes, and reads nothing."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        for piece in pieces:
            connection.sendall(piece)
        yield connection


@contextlib.contextmanager
def stalled_call(server):
    with Connection(server.address) as connection:
        connection.call("ModelInfer", prefix(100) + b"abc")
        connection.flush()
        await_call(server)
        yield


@contextlib.contextmanager
def deaf_caller(server):
    """A client that has made a call, and then never answers the server's pings."""
    with Connection(server.address) as connection:
        stream = connection.call("ServerLive", prefix(0), is_whole=True)
        connection.flush()
        assert connection.status(stream) == 0
        yield


def await_call(server):
    """Waits until what was sent before this has been read, by a call that comes after it."""
    with grpc.insecure_channel(server.address) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_SECONDS)


HOLDERS = {
    "half a head over HTTP/1": lambda server: raw(server.http, b"GET /v2 HTTP/1.1\r\nhost:"),
    "half a head after a request": lambda server: raw(
        server.http, b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\nGET /v2 HTTP/1.1\r\nhost:"),
    "half a head over HTTP/2": lambda server: raw(server.http, PREFACE, SETTINGS, HALF_HEADERS),
    "half a head over gRPC": lambda server: raw(server.address, PREFACE, SETTINGS, HALF_HEADERS),
    "a preface for HTTP": lambda server: raw(server.http, PREFACE),
    "a preface for gRPC": lambda server: raw(server.address, PREFACE),
    "half a preface": lambda server: raw(server.address, PREFACE[:5]),
    "pings that are not answered": deaf_caller,
    "a body that stalls": lambda server: raw(server.http, POST + b"content-length: 100\r\n\r\n{"),
    "a message that stalls": stalled_call,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_nothing_that_stalls_holds_the_shutdown_up(holder):
    with running("--builtin", "identity", "--shutdown-grace-ms", str(NEVER_MS)) as server, HOLDERS[holder](server):
        await_call(server)
        server.terminate()
        assert server.wait() == 0


def last_event(server, path, body):
    """Streams an answer to its end; returns the last event's name and value."""
    with httpx.stream("POST", f"http://{server.http}{path}", json=body) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    data = [line for line in lines if line.startswith("data: ")]
    names = [line for line in lines if line.startswith("event: ")]
    data = [line for line in data if line != "data: [DONE]"]
    return names[-1:], json.loads(data[-1].removeprefix("data: "))


def posted(server, path, body):
    answer = httpx.post(f"http://{server.http}{path}", json=body)
    return answer.status_code, answer.headers.get("content-type"), answer.json()


def test_what_outlives_the_grace_is_told_so():
    models = ["--builtin", "mock=mock,pace_ms=20,context_length=100000", "--builtin", "slow=identity,delay_ms=600000"]
    message = [{"role": "user", "content": "hello"}]
    chat = {"model": "mock", "messages": message, "max_tokens": 90000}
    generate = {"text_input": "hello", "max_tokens": 90000, "stream": True}
    infer = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1], "data": [1]}]}
    with running("--no-default-model", *models, "--shutdown-grace-ms", "500") as server, \
            concurrent.futures.ThreadPoolExecutor(8) as pool, \
            grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        unary = stub.ModelInfer.future(request("slow", [tensor("INPUT0", "FP32", [1])], [floats(1)]))
        stream = Stream(stub)
        stream.send(text_request("mock", "hello", extra=[tensor("streaming", "BOOL", [1])], raw=[b"\1"],
                                 max_tokens=90000))
        stream.next()
        told = [pool.submit(posted, server, "/v2/models/slow/infer", infer),
                pool.submit(posted, server, "/v1/chat/completions", chat),
                pool.submit(posted, server, "/v1/messages", chat)]
        events = [pool.submit(last_event, server, path, body) for path, body in (
            ("/v1/chat/completions", {**chat, "stream": True}),
            ("/v1/messages", {**chat, "stream": True}),
            ("/v2/models/mock/generate_stream", generate))]
        for rpc, model in (("ModelInfer", "slow"), ("HttpInfer", "slow"), ("HttpGenerateStream", "mock"),
                           ("AnthropicMessage", "mock"), ("OpenAiChat", "mock")):
            await_running(server, model, rpc)
        in_flight = 'stator_requests_in_flight{{rpc="{}",model="mock"}}'.format
        for rpc in ("OpenAiChat", "AnthropicMessage"):
            eventually("both run", lambda: scrape(server, in_flight(rpc)) == 2)
        server.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            stream.until_final()
        stream.close()
        for error in (caught.value, unary.exception(PATIENCE_SECONDS)):
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, SENTENCE)
        infer, chat, anthropic = (answer.result() for answer in told)
        assert infer == (503, "application/json", {"error": SENTENCE})
        assert chat[:2] == anthropic[:2] == (503, "application/json")
        assert chat[2]["error"]["type"] == "service_unavailable" and chat[2]["error"]["message"] == SENTENCE
        assert anthropic[2] == {"type": "error", "error": {"type": "overloaded_error", "message": SENTENCE}}
        (_, chat), (names, anthropic), (_, generated) = (event.result() for event in events)
        assert chat["error"]["message"] == SENTENCE
        assert names == ["event: error"] and anthropic["error"]["message"] == SENTENCE
        assert generated == {"error": SENTENCE}
        assert server.wait() == 0
