"""What a Python worker says on the wire, called as a frontend calls it."""

import contextlib
import json
import socket
import threading
import time

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from stator_worker import tokenizer as tokenizers
from stator_worker import wire

from conftest import ROOT
from patience import PATIENCE_SECONDS, eventually
from python_workers import FAULTY, python_worker, write_tokenizer
from real_models import real_encoder
from test_cluster import worker

STREAMS = {"Generate": "GenerateOutput", "GenerateText": "TextDelta", "Infer": "InferOutput",
           "Fetch": "Chunk", "Watch": "WorkerEvent"}
REPLIES = {"Describe": "Description", "Drain": "DrainReply", "Embed": "Embedding",
           "EmbedText": "TextEmbedding"}


class Caller:
    """Calls a worker's methods by their names."""

    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address)

    def call(self, method, message, **options):
        is_stream = method in STREAMS
        make = self.channel.unary_stream if is_stream else self.channel.unary_unary
        reply = getattr(wire.worker, STREAMS.get(method) or REPLIES[method])
        ask = make(path(method), request_serializer=lambda one: one.SerializeToString(),
                   response_deserializer=reply.FromString)
        return ask(message, **options)


def path(method):
    return f"/stator.worker.v1.Worker/{method}"


def numbers(model, *values):
    data = b"".join(value.to_bytes(4, "little") for value in values)
    message = wire.worker.InferRequest(model=model, contents=[data])
    message.inputs.add(name="IN", datatype="INT32", shape=[len(values)])
    return message


@contextlib.contextmanager
def caller_of(tmp_path):
    folder = write_tokenizer(tmp_path / "tokenizer")
    with python_worker(FAULTY, f"file://{tmp_path}/fleet", folder) as process:
        line = next(line for line in process.log if " ready: " in line)
        caller = Caller(line.partition("grpc://")[2].split()[0])
        with caller.channel:
            yield caller, process


def headers_of(address, method, message):
    """Returns the blocks of headers of an answer, and whether the stream ended with the first."""
    host, _, port = address.rpartition(":")
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    body = message.SerializeToString()
    blocks, ended_with_first = [], None
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as wire_end:
        connection.initiate_connection()
        connection.send_headers(1, [
            (":method", "POST"), (":scheme", "http"), (":path", path(method)),
            (":authority", address), ("te", "trailers"), ("content-type", "application/grpc")])
        connection.send_data(1, b"\0" + len(body).to_bytes(4, "big") + body, end_stream=True)
        wire_end.sendall(connection.data_to_send())
        while True:
            for event in connection.receive_data(wire_end.recv(65536)):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    blocks.append(dict(event.headers))
                    if ended_with_first is None:
                        ended_with_first = event.stream_ended is not None
                if isinstance(event, h2.events.StreamEnded):
                    return blocks, ended_with_first
            wire_end.sendall(connection.data_to_send())


def test_a_refusal_is_a_status_alone_and_acceptance_is_headers(tmp_path):
    with caller_of(tmp_path) as (caller, _):
        blocks, is_alone = headers_of(caller.address, "Infer", numbers("nobody", 1))
        assert is_alone and blocks[0]["grpc-status"] == "5"
        assert "stator-failure-bin" in blocks[0]
        blocks, is_alone = headers_of(caller.address, "Infer", numbers("fails", 0))
        assert not is_alone and blocks[-1]["grpc-status"] == "3" and "grpc-status" not in blocks[0]
        # Headers come before the answer does.
        call = caller.call("Infer", numbers("sleeps", 60_000))
        opened = threading.Event()
        wait = lambda: (call.initial_metadata(), opened.set())  # noqa: E731
        threading.Thread(target=wait, daemon=True).start()
        assert opened.wait(PATIENCE_SECONDS)
        call.cancel()


def test_noise_is_a_failure_and_harms_nobody(tmp_path):
    class Noise:
        def SerializeToString(self):
            return b"\xff" * 40

    with caller_of(tmp_path) as (caller, process):
        for method in ("Infer", "Generate", "Embed", "Watch", "Describe"):
            blocks, _ = headers_of(caller.address, method, Noise())
            assert blocks[-1]["grpc-status"] not in ("0", None), method
        blocks, _ = headers_of(caller.address, "Nothing", Noise())
        assert blocks[-1]["grpc-status"] == "12"
        assert process.is_running()
        assert len(list(caller.call("Infer", numbers("sleeps", 1)))) == 1


def test_a_cancel_closes_the_function_at_once(tmp_path):
    with caller_of(tmp_path) as (caller, process):
        body = json.dumps({"prompt": "x" * 100_000}).encode()
        times = []
        for count in range(1, 21):
            ask = wire.worker.GenerateTextRequest(model="spells", completion=body)
            call = caller.call("GenerateText", ask)
            next(call)
            call.cancel()
            began = time.monotonic()
            eventually("it is closed", lambda: process.says("spelling closed") >= count)
            times.append(time.monotonic() - began)
        print(f"from a cancel to the closed generator: {sorted(times)[10] * 1e3:.1f} ms, at most "
              f"{max(times) * 1e3:.1f} ms")
        described = lambda: caller.call("Describe", wire.worker.DescribeRequest()).models
        eventually("nothing runs", lambda: all(
            model.load.running_sequences == 0 for model in described()))


def test_a_failure_tells_all_of_itself(tmp_path):
    with caller_of(tmp_path) as (caller, _):
        with pytest.raises(grpc.RpcError) as failed:
            list(caller.call("Infer", numbers("fails", 2)))
        trailers = dict(failed.value.trailing_metadata())
        failure = wire.worker.Failure.FromString(trailers["stator-failure-bin"])
        assert failure.kind == wire.worker.number("Failure.Kind", "KIND_OVERLOADED")
        assert (failure.message, failure.code) == ("because of Overloaded", "some_code")
        assert failure.retry_after_ns == 7_000_000_000
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method, fields, status", [
    ("Generate", {"model": "sleeps"}, "UNIMPLEMENTED"),
    ("Generate", {"model": "alphabet"}, "INVALID_ARGUMENT"),
    ("Generate", {"model": "alphabet", "tokens": [1] * 256, "stop": {"max_tokens": 1}},
     "INVALID_ARGUMENT"),
    ("Generate", {"model": "alphabet", "tokens": [1], "adapter": 7}, "NOT_FOUND"),
    ("Infer", {"model": "sleeps", "inputs": [{"name": "IN", "datatype": "INT32", "shape": [1]}]},
     "INVALID_ARGUMENT"),
    ("Infer", {"model": "sleeps", "contents": [b"123"],
               "inputs": [{"name": "IN", "datatype": "INT32", "shape": [1]}]}, "INVALID_ARGUMENT"),
    ("Infer", {"model": "sleeps", "contents": [b"1234"],
               "inputs": [{"name": "IN", "datatype": "INT7", "shape": [1]}]}, "INVALID_ARGUMENT"),
    ("Infer", {"model": "sleeps", "contents": [b"\xff\0\0\0"],
               "inputs": [{"name": "IN", "datatype": "BYTES", "shape": [1]}]}, "INVALID_ARGUMENT"),
    ("Infer", {"model": "sleeps", "contents": [b"1234"],
               "inputs": [{"name": "IN", "datatype": "INT32", "shape": [-1]}]}, "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells"}, "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells", "completion": b"[1"}, "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells", "completion": b"[]"}, "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells", "completion": b'{"prompt": "a", "stop": 1}'},
     "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells", "completion": b'{"prompt": "a", "max_tokens": "b"}'},
     "INVALID_ARGUMENT"),
    ("GenerateText", {"model": "spells", "completion": b'{"prompt": "a", "response_format": 1}'},
     "UNIMPLEMENTED"),
    ("Fetch", {"hash": "../secret"}, "NOT_FOUND"),
    ("Watch", {"model": "nobody"}, "NOT_FOUND"),
])
def test_what_cannot_be_answered_is_refused(tmp_path, method, fields, status):
    request = "FetchRequest" if method == "Fetch" else f"{method}Request"
    with caller_of(tmp_path) as (caller, process):
        with pytest.raises(grpc.RpcError) as failed:
            list(caller.call(method, getattr(wire.worker, request)(**fields), timeout=PATIENCE_SECONDS))
        assert failed.value.code().name == status, failed.value
        assert process.is_running()


def spelled(caller, **body):
    """Returns the texts of all choices, their finish reasons and the stop texts."""
    message = wire.worker.GenerateTextRequest(model="spells", completion=json.dumps(body).encode())
    choices = {}
    for delta in caller.call("GenerateText", message, timeout=PATIENCE_SECONDS):
        choice = choices.setdefault(delta.index, ["", 0, ""])
        assert not choice[1], "nothing follows the end"
        choice[0] += delta.content
        choice[1], choice[2] = delta.finish, delta.stop
    return [tuple(choices[index]) for index in range(len(choices))]


def test_texts_end_at_stops_and_limits_and_hide_no_beginning(tmp_path):
    stop, length = (wire.worker.number("FinishReason", f"FINISH_REASON_{name}")
                    for name in ("STOP", "LENGTH"))
    with caller_of(tmp_path) as (caller, _):
        cases = [
            ({"prompt": "abcdef"}, "abcdef", stop, ""),
            ({"prompt": "abcdef", "stop": ["de", "xyz"]}, "abc", stop, "de"),
            ({"prompt": "abcdef", "stop": "f"}, "abcde", stop, "f"),
            ({"prompt": "aaab", "stop": "aab"}, "a", stop, "aab"),
            ({"prompt": "abc", "stop": "cd"}, "abc", stop, ""),
            ({"prompt": "abcdef", "max_tokens": 4}, "abcd", length, ""),
            ({"prompt": "abcdef", "max_tokens": 4, "stop": "dx"}, "abcd", length, ""),
            ({"prompt": "Grüße 🎉", "n": 1, "temperature": 0.5}, "Grüße 🎉", stop, ""),
            ({"prompt": ""}, "", stop, ""),
        ]
        for body, *expected in cases:
            assert spelled(caller, **body) == [tuple(expected)], body
        assert spelled(caller, prompt="abc", n=3) == [("abc", stop, "")] * 3
        for body, code in (({"prompt": "a", "guided_regex": "x"}, "UNIMPLEMENTED"),
                           ({"prompt": "a", "logprobs": 0}, "UNIMPLEMENTED"),
                           ({"prompt": [1, 2]}, "INVALID_ARGUMENT"),
                           ({"messages": []}, "INVALID_ARGUMENT"),
                           ({"prompt": "a", "n": 1000}, "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as refused:
                spelled(caller, **body)
            assert refused.value.code().name == code, body


def test_thoughts_calls_usage_and_vectors_of_texts(tmp_path):
    with caller_of(tmp_path) as (caller, _):
        body = {"messages": [{"role": "user", "content": "So"}], "tools": [{"type": "function"}]}
        ask = wire.worker.GenerateTextRequest(model="caller", chat=json.dumps(body).encode())
        deltas = list(caller.call("GenerateText", ask))
        assert "".join(delta.reasoning for delta in deltas) == "Hm."
        assert "".join(delta.content for delta in deltas) == "So!"
        calls = [call for delta in deltas for call in delta.tool_calls]
        assert [call.index for call in calls] == [0, 0] and calls[0].name == "look"
        assert "".join(call.arguments for call in calls) == '{"at":"it"}'
        assert [delta.usage.prompt_tokens for delta in deltas if delta.HasField("usage")] == [7]
        ask = wire.worker.EmbedTextRequest(model="lengths", text="Grüße")
        assert caller.call("EmbedText", ask).values == [5, 7]


def test_load_is_told_and_draining_refuses_finishes_and_says_so(tmp_path):
    with caller_of(tmp_path) as (caller, process):
        ask = wire.worker.WatchRequest(model="sleeps", load_interval_ms=20)
        news = caller.call("Watch", ask)
        assert next(news).load.running_sequences == 0
        open_call = caller.call("Infer", numbers("sleeps", 5000))
        assert any(one.load.running_sequences == 1 for one in news)
        described = caller.call("Describe", wire.worker.DescribeRequest())
        loads = {model.name: model.load.running_sequences for model in described.models}
        assert loads["sleeps"] == 1 and not described.is_draining
        assert caller.call("Drain", wire.worker.DrainRequest()).open_calls == 1
        with pytest.raises(grpc.RpcError) as refused:
            list(caller.call("Infer", numbers("sleeps", 1)))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert [one for one in news][-1].HasField("draining")
        assert caller.call("Describe", wire.worker.DescribeRequest()).is_draining
        eventually("it unregisters", lambda: not list((tmp_path / "fleet").rglob("*.json")))
        # The first signal is only one more wish for what happens already.
        process.terminate()
        assert len(list(open_call)) == 1
        assert process.wait() == 0
        assert not list((tmp_path / "fleet").iterdir())


def test_a_registration_that_is_lost_is_taken_again(tmp_path):
    with caller_of(tmp_path):
        registered = lambda: list((tmp_path / "fleet").rglob("*.json"))  # noqa: E731
        [file] = registered()
        file.unlink()
        eventually("it is there again", registered)


def artifact_of(tmp_path, folder):
    """Returns what `stator worker` tells of a model's tokenizer, and the model's card."""
    with worker(f"file://{tmp_path}", models=[f"model={folder}"]) as process:
        caller = Caller(process.address)
        with caller.channel:
            described = caller.call("Describe", wire.worker.DescribeRequest())
            card = json.loads(described.models[0].card)
            artifact = next(one for one in card["artifacts"] if one["name"] == "vocabulary")
            ask = wire.worker.FetchRequest(hash=artifact["sha256"])
            content = b"".join(chunk.data for chunk in caller.call("Fetch", ask))
    return json.loads(content), card


@pytest.mark.parametrize("name", ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"])
def test_a_tokenizer_is_read_as_the_binary_reads_it(tmp_path, name):
    folder = ROOT / "worker/tests/golden/tiny" / name
    content, card = artifact_of(tmp_path, folder)
    ours = tokenizers.read(folder)
    assert json.loads(ours.content) == content
    assert list(ours.eos_tokens) == card.get("eos_tokens", [])
    assert ours.context_length == card["context_length"]


def test_the_tokenizer_of_an_encoder_is_its_file(tmp_path):
    folder = real_encoder()
    content, _ = artifact_of(tmp_path, folder)
    assert json.loads(tokenizers.read_encoder(folder).content) == content
