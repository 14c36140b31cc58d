"""Workers around other servers: existing engines in a fleet."""

import contextlib
import http.server
import importlib.util
import json
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time

import numpy as np
import openai
import pytest
import tritonclient.grpc as triton
import xxhash
from anthropic import Anthropic

from chaos import total
from conftest import BINARY, LOCAL, ROOT, SCRIPTS, free_port, running, sdk_of
from kv_events import BlockRemoved, BlockStored, Publisher, Watcher
from patience import PATIENCE_SECONDS, eventually
from test_cluster import client_of, frontend, is_ready, worker
from tritonclient.utils import InferenceServerException

MODELS = ["--no-default-model", *(part for spec in [*SCRIPTS, "simple=add_sub"] for part in ("--builtin", spec))]
USER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


@pytest.fixture(scope="module")
def engine():
    """The server whose models join the fleet."""
    with running(*MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def front(engine, tmp_path_factory):
    discovery = f"file://{tmp_path_factory.mktemp('upstream')}"
    with worker(discovery, "--upstream", f"http://{engine.http}/v1", models=[]) as member:
        with frontend(discovery) as front, client_of(front) as client:
            for model in ("words", "org/name", "short"):
                eventually(model, lambda: is_ready(client, model))
            yield front
            assert member.is_running() and front.is_running()


def both(engine, front, ask):
    """Asks the server itself and through the fleet, and returns both answers."""
    answers = []
    for server in (engine, front):
        with sdk_of(server) as sdk:
            answers.append(ask(sdk))
    return answers


def plain(answer):
    """Returns what is the same in each answer to the same request."""
    answer = answer.model_dump()
    # Whoever comes second finds the prompt in the cache.
    answer["usage"].pop("prompt_tokens_details")
    for key in ("id", "created", "system_fingerprint"):
        answer.pop(key, None)
    for choice in answer["choices"]:
        for call in (choice.get("message") or {}).get("tool_calls") or []:
            call.pop("id")
    return answer


def joined(chunks):
    """Returns the parts of a streamed chat, joined, and its usage."""
    told = {"content": {}, "reasoning": "", "calls": {}, "finish": [], "usage": None}
    for chunk in chunks:
        told["usage"] = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) if chunk.usage else told["usage"]
        for choice in chunk.choices:
            told["content"][choice.index] = told["content"].get(choice.index, "") + (choice.delta.content or "")
            told["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                name, arguments = told["calls"].get(call.index, ("", ""))
                told["calls"][call.index] = (name + (call.function.name or ""), arguments + call.function.arguments)
            told["finish"] += [choice.finish_reason] if choice.finish_reason else []
    return told


CHATS = [
    ("hello", {}),
    ("party", {}),
    ("words", {"max_tokens": 20, "n": 2}),
    ("words", {"max_tokens": 20, "stop": [" that"]}),
    ("thinker", {}),
    ("caller", {"tools": TOOLS}),
    ("callers", {"tools": TOOLS}),
    ("callers", {"tools": TOOLS, "parallel_tool_calls": False}),
    ("named", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
    ("json", {"response_format": {"type": "json_object"}}),
    ("words", {"max_tokens": 6, "logprobs": True, "top_logprobs": 3}),
]


@pytest.mark.parametrize("model, options", CHATS)
def test_a_chat_is_answered_as_by_the_server_itself(engine, front, model, options):
    def ask(sdk):
        return plain(sdk.chat.completions.create(model=model, messages=USER, temperature=0, **options))

    direct, through = both(engine, front, ask)
    assert through == direct


@pytest.mark.parametrize("model, options", CHATS)
def test_a_streamed_chat_is_the_same_and_so_is_its_usage(engine, front, model, options):
    def ask(sdk):
        return joined(sdk.chat.completions.create(
            model=model, messages=USER, temperature=0, stream=True, stream_options={"include_usage": True}, **options))

    direct, through = both(engine, front, ask)
    assert through == direct


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"n": 2}, {"logprobs": 2}, {"max_tokens": 3}])
@pytest.mark.parametrize("prompt", ["One", ["One", "Two"]])
def test_completions_are_the_same(engine, front, prompt, options):
    def ask(sdk):
        return plain(sdk.completions.create(model="words", prompt=prompt, temperature=0, **options))

    if options.get("logprobs") and options.get("echo"):
        pytest.skip("scores of prompts are not known")
    direct, through = both(engine, front, ask)
    assert through == direct


def test_a_prompt_of_tokens_passes(engine, front):
    def ask(sdk):
        return plain(sdk.completions.create(model="words", prompt=[65, 66, 67], temperature=0))

    direct, through = both(engine, front, ask)
    assert through == direct


def test_embeddings_and_ranks_are_the_same(engine, front):
    def ask(sdk):
        answer = sdk.embeddings.create(model="words", input=["the one", "of and"], encoding_format="float")
        return [item.embedding for item in answer.data], answer.usage.prompt_tokens

    direct, through = both(engine, front, ask)
    assert direct[1] == through[1]
    assert np.allclose(direct[0], through[0], atol=1e-6)


def test_tokens_come_one_by_one(front):
    with sdk_of(front) as sdk:
        times = []
        chunks = sdk.chat.completions.create(
            model="slow", messages=USER, max_tokens=200, stream=True)
        for chunk in chunks:
            times += [time.monotonic()] if chunk.choices and chunk.choices[0].delta.content else []
    assert len(times) >= 15
    # Other work on the machine makes this time longer, not shorter.
    assert times[-1] - times[0] > 1, "20 ms a token, and not all at the end"


def ask_kserve(client, model, **inputs):
    tensors = []
    for name, value in inputs.items():
        kind, array = {
            str: ("BYTES", lambda: np.array([value.encode()], object)),
            bool: ("BOOL", lambda: np.array([value])),
            int: ("INT32", lambda: np.array([value], np.int32)),
            float: ("FP32", lambda: np.array([value], np.float32)),
        }[type(value)]
        tensor = triton.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(array())
        tensors.append(tensor)
    return client.infer(model, tensors)


def test_kserve_has_texts_in_and_out(engine, front):
    def answer(server, **inputs):
        with client_of(server) as client:
            result = ask_kserve(client, "words", temperature=0.0, max_tokens=9, **inputs)
            return {output.name: result.as_numpy(output.name).tolist() for output in result.get_response().outputs}

    for inputs in ({"text_input": "One"}, {"text_input": "One", "exclude_input_in_output": True},
                   {"messages": json.dumps(USER), "return_num_output_tokens": True, "return_num_input_tokens": True}):
        assert answer(front, **inputs) == answer(engine, **inputs)
    with client_of(front) as client:
        assert client.get_model_config("words").config.model_transaction_policy.decoupled
        with pytest.raises(InferenceServerException, match="logprobs"):
            ask_kserve(client, "words", text_input="One", return_logprobs=True)


def test_kserve_streams(front):
    parts, done = [], threading.Event()

    def take(result, error):
        assert error is None, error
        parts.append(result.as_numpy("num_output_tokens")[0])
        assert result.as_numpy("finish_reason") is None
        if result.get_response().parameters["triton_final_response"].bool_param:
            done.set()

    with client_of(front) as client:
        client.start_stream(take)
        inputs = []
        for name, kind, array in (("text_input", "BYTES", np.array([b"One"], object)), ("stream", "BOOL", np.array([True])),
                                  ("max_tokens", "INT32", np.array([9], np.int32))):
            tensor = triton.InferInput(name, [1], kind)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        client.async_stream_infer("words", inputs, parameters={"return_num_output_tokens": True})
        assert done.wait(PATIENCE_SECONDS)
        client.stop_stream()
    assert sum(parts) == 9 and len(parts) > 1


def test_other_apis_reach_it_as_well(engine, front):
    for server in (engine, front):
        sdk = Anthropic(base_url=f"http://{server.http}", api_key="none", max_retries=0)
        message = sdk.messages.create(model="hello", max_tokens=50, messages=USER)
        assert message.content[0].text == "Hello, world."
        assert message.usage.output_tokens == 14
        with sdk_of(server) as sdk:
            assert sdk.responses.create(model="hello", input="Hi").output_text == "Hello, world."


def test_errors_are_the_servers(front):
    with sdk_of(front) as sdk:
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model="short", messages=[{"role": "user", "content": "x" * 200}])
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="tokens"):
            sdk.chat.completions.create(model="words", messages=USER, extra_body={"return_token_ids": True})
        with pytest.raises(openai.NotFoundError):
            sdk.chat.completions.create(model="none", messages=USER)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            sdk.chat.completions.create(model="words", messages=USER, temperature=9)


def busy(server):
    """Returns how many sequences a server computes."""
    return total(server, "stator_running_sequences")


def test_what_is_cancelled_stops_at_the_server(engine, front):
    with sdk_of(front) as sdk:
        stream = sdk.chat.completions.create(model="slow", messages=USER, max_tokens=500, stream=True)
        for _, _chunk in zip(range(3), stream):
            pass
        eventually("it runs", lambda: busy(engine) == 1)
        stream.close()
        eventually("it stops", lambda: busy(engine) == 0)


class Hostile(http.server.BaseHTTPRequestHandler):
    """A server that does what servers do on bad days, by the name of the model."""

    protocol_version = "HTTP/1.1"
    bodies, closed = [], threading.Event()

    def log_message(self, *_):
        pass

    def do_GET(self):
        names = ["bytewise", "whole", "dies", "lost", "busy", "broken", "event", "endless", "no_done"]
        self.send_whole({"data": [{"id": name} for name in names]})

    def send_whole(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def piece(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append((self.path, self.headers, body))
        match body["model"]:
            case "whole":
                message = {"role": "assistant", "content": "in one piece"}
                return self.send_whole({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                                        "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
            case "busy":
                error = {"message": "come again", "type": "rate_limit_error"}
                return self.send_whole({"error": error}, 429, Retry_After="7")
            case "broken":
                return self.send_whole({"detail": "a bug"}, 500)
            case "dies":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.stream(body["model"])

    def stream(self, model):
        def event(**fields):
            return ("data: " + json.dumps(fields, ensure_ascii=False) + "\r\n\r\n").encode()

        def told(text):
            return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])

        end = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        match model:
            case "bytewise":
                usage = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 6})
                data = b": hi\n\n" + told("Grüße ") + told("🎉") + end + usage + b"data: [DONE]\n\n"
                for place in range(len(data)):
                    self.piece(data[place:place + 1])
            case "no_done":
                self.piece(told("x") + end)
            case "lost":
                self.piece(told("half a"))
                time.sleep(0.1)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            case "event":
                self.piece(told("x") + event(error={"message": "out of luck", "code": 400}))
            case "endless":
                self.closed.clear()
                while not select.select([self.connection], [], [], 0.02)[0]:
                    self.piece(told("and "))
                self.ended = time.monotonic()
                self.closed.set()
                self.close_connection = True
                return
        self.piece(b"")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "key").write_text("sk-secret\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = ["--upstream", f"http://127.0.0.1:{server.server_port}/v1", "--upstream-key-file", str(folder / "key")]
    discovery = f"file://{folder}"
    with worker(discovery, *arguments, models=[]) as member, frontend(discovery) as front, client_of(front) as client:
        eventually("it joined", lambda: is_ready(client, "whole"))
        yield front, server
        assert member.is_running() and front.is_running()
    server.shutdown()


def say(front, model, **options):
    return sdk_of(front).chat.completions.create(model=model, messages=USER, **options)


def test_a_stream_may_be_cut_anywhere(hostile):
    for _ in range(3):
        answer = say(hostile[0], "bytewise")
        assert answer.choices[0].message.content == "Grüße 🎉"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 6)


def test_servers_that_stream_otherwise_are_understood(hostile):
    answer = say(hostile[0], "whole")
    assert answer.choices[0].message.content == "in one piece"
    assert answer.usage.completion_tokens == 4
    assert say(hostile[0], "no_done").choices[0].message.content == "x"


def test_bad_answers_are_errors_of_the_right_kind(hostile):
    front = hostile[0]
    with pytest.raises(openai.APIStatusError) as refused:
        say(front, "busy")
    assert refused.value.status_code == 503 and "come again" in str(refused.value)
    assert refused.value.response.headers["retry-after"] == "7"
    with pytest.raises(openai.APIStatusError) as refused:
        say(front, "broken")
    assert refused.value.status_code == 500
    with pytest.raises(openai.BadRequestError, match="out of luck"):
        say(front, "event")
    for model in ("dies", "lost"):
        with pytest.raises(openai.APIStatusError) as refused:
            say(front, model)
        assert refused.value.status_code == 503, model
    parts = []
    with pytest.raises(openai.APIError):
        parts += [chunk for chunk in say(front, "lost", stream=True)]
    assert is_ready_still(front), "a server's bad day is not the worker's end"


def is_ready_still(front):
    with client_of(front) as client:
        return client.is_model_ready("whole")


def test_a_cancel_closes_the_servers_connection_at_once(hostile):
    took, whole = [], []
    for _ in range(5):
        started = time.monotonic()
        say(hostile[0], "whole")
        whole.append(time.monotonic() - started)
        stream = say(hostile[0], "endless", stream=True)
        for _, _chunk in zip(range(3), stream):
            pass
        started = time.monotonic()
        stream.close()
        assert Hostile.closed.wait(PATIENCE_SECONDS)
        took.append(time.monotonic() - started)
    # The machine may be busy with other things now and then, or slow with all.
    assert statistics.median(took) < max(0.2, 5 * statistics.median(whole)), (took, whole)


def test_a_request_is_sent_as_it_was_asked(hostile):
    Hostile.bodies.clear()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]
    with sdk_of(hostile[0]) as sdk:
        sdk.chat.completions.create(model="whole", messages=messages, top_p=0.5, extra_body={"top_k": 3}, user="u")
    path, headers, body = Hostile.bodies[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    assert body == {"model": "whole", "stream": True, "stream_options": {"include_usage": True},
                    "messages": messages, "top_p": 0.5, "top_k": 3, "user": "u"}


EXTRAS = {
    "structured_outputs": {"regex": "a+"}, "allowed_token_ids": [1, 2], "bad_words": ["x"], "cache_salt": "s",
    "vllm_xargs": {"x": 1}, "documents": [{"text": "x"}], "chat_template": "{{ x }}", "add_special_tokens": True,
    "mm_processor_kwargs": {"x": 1}, "priority": 2, "unheard_of": {"deep": [1]},
}


def test_nothing_that_was_set_is_lost(hostile):
    with sdk_of(hostile[0]) as sdk:
        Hostile.bodies.clear()
        sdk.chat.completions.create(model="whole", messages=USER, extra_body=EXTRAS,
                                    extra_headers={"x-request-id": "my-name"})
        sdk.completions.create(model="whole", prompt="One", max_tokens=3, extra_body=EXTRAS)
        sdk.chat.completions.create(model="whole", messages=USER, extra_body={"guided_choice": ["a", "b"]})
        sdk.responses.create(model="whole", input="Hi", extra_body={"bad_words": ["x"], "client_metadata": {"a": "b"}})
    (_, headers, chat), (_, _, completion), (_, _, guided), (_, _, response) = Hostile.bodies
    assert headers["x-request-id"] == "my-name"
    assert EXTRAS.items() <= chat.items() and EXTRAS.items() <= completion.items()
    assert guided["structured_outputs"] == {"choice": ["a", "b"]} and "guided_choice" not in guided
    assert response["bad_words"] == ["x"] and "client_metadata" not in response


@contextlib.contextmanager
def running_process(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_models_come_and_go_with_their_server(tmp_path):
    discovery = f"file://{tmp_path}"
    port = free_port()
    arguments = ["--upstream", f"http://127.0.0.1:{port}/v1"]
    serve = [str(BINARY), "serve", *LOCAL, "--grpc-port", "0", "--http-host", "127.0.0.1", "--http-port", str(port),
             "--no-default-model", "--builtin", "words=mock"]
    with worker(discovery, *arguments, models=[]), frontend(discovery) as front, client_of(front) as client:
        for _ in range(2):
            assert not is_ready(client, "words")
            with running_process(serve):
                eventually("it is there", lambda: is_ready(client, "words"))
                assert say(front, "words", max_tokens=3).usage.completion_tokens == 3
            eventually("it is gone", lambda: not is_ready(client, "words"))


def test_a_second_server_takes_what_the_first_one_cannot(tmp_path):
    discovery, serve = f"file://{tmp_path}", ["--no-default-model", "--builtin", "words=mock"]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(*serve)) for _ in range(2)]
        for server in servers:
            stack.enter_context(worker(discovery, "--upstream", f"http://{server.http}/v1", models=[]))
        front = stack.enter_context(frontend(discovery))
        client = stack.enter_context(client_of(front))
        eventually("it is there", lambda: is_ready(client, "words"))
        eventually("both are", lambda: sum("worker joined" in line for line in front.log) == 2)
        servers[0].stop()
        for _ in range(20):
            assert say(front, "words", max_tokens=3).usage.completion_tokens == 3
        eventually("it has no models", lambda: any("worker changed its registration" in line for line in front.log))
        # The worker of the first one is there; its connection, which nobody needs, ends in a moment.
        time.sleep(1)
        assert not [line for line in front.log if "worker is not called" in line]


def test_a_server_that_hangs_is_left_within_seconds(tmp_path):
    """Its requests are answered by another one."""
    discovery, serve = f"file://{tmp_path}", ["--no-default-model", "--builtin", "words=mock,pace_ms=5"]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(*serve)) for _ in range(2)]
        for server in servers:
            stack.enter_context(worker(discovery, "--upstream", f"http://{server.http}/v1", models=[]))
        front = stack.enter_context(frontend(discovery))
        client = stack.enter_context(client_of(front))
        eventually("it is there", lambda: is_ready(client, "words"))
        eventually("both are", lambda: sum("worker joined" in line for line in front.log) == 2)
        pid = servers[0].process.pid
        os.kill(pid, signal.SIGSTOP)
        stack.callback(os.kill, pid, signal.SIGCONT)
        began = time.monotonic()
        for _ in range(4):
            assert say(front, "words", max_tokens=3).usage.completion_tokens == 3
        # One probe may be late on a busy machine; before, half a minute was the least.
        assert time.monotonic() - began < 15


def test_a_model_whose_workers_left_is_expected_for_some_time(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--worker-wait-ms", "0", "--model-grace-ms", "3000") as front:
        def status():
            with pytest.raises(openai.APIStatusError) as refused:
                say(front, "words", max_tokens=3)
            return refused.value

        assert status().status_code == 404
        with worker(discovery, models=["--no-default-model", "--builtin", "words=mock"]), client_of(front) as client:
            eventually("it is there", lambda: is_ready(client, "words"))
        eventually("it has left", lambda: "has just left" in str(status()))
        refused = status()
        assert refused.status_code == 503 and refused.response.headers["retry-after"] == "1"
        eventually("nobody expects it", lambda: status().status_code == 404)


@pytest.fixture(scope="module")
def worker_pb(tmp_path_factory):
    """The messages of the worker protocol."""
    from grpc_tools import protoc
    folder = tmp_path_factory.mktemp("proto")
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"--python_out={folder}", "worker.proto"]) == 0
    spec = importlib.util.spec_from_file_location("worker_pb2", folder / "worker_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("has_replay", [True, False])
def test_kv_events_of_another_engine_get_our_names(engine, tmp_path, worker_pb, has_replay):
    publisher = Publisher()
    arguments = ["--upstream", f"http://{engine.http}/v1", "--upstream-kv-events", f"tcp://127.0.0.1:{publisher.port}"]
    if has_replay:
        arguments += ["--upstream-kv-replay", f"tcp://127.0.0.1:{publisher.replay_port}"]
    with sdk_of(engine) as sdk:
        model = sdk.models.list().data[0].id
    with worker(f"file://{tmp_path}", *arguments, models=[]) as member:
        publisher.wait_for_subscriber()
        watcher = Watcher(member.address, model, worker_pb)
        publisher.publish(BlockStored([b"one" * 8, 2], None, list(range(8)), 4, None, "GPU"))
        eventually("stored", lambda: len(watcher.events) == 1)
        stored = watcher.events[0].kv.stored
        assert (stored.block_tokens, len(stored.sequences), stored.HasField("parent")) == (4, 2, False)
        # XXH3 of the tokens, as every router computes it.
        first = xxhash.xxh3_64_intdigest(struct.pack("<4I", 0, 1, 2, 3))
        second = xxhash.xxh3_64_intdigest(struct.pack("<4I", 4, 5, 6, 7))
        chained = xxhash.xxh3_64_intdigest(struct.pack("<2Q", first, second))
        assert list(stored.blocks) == [first, second] and list(stored.sequences) == [first, chained]
        publisher.publish(BlockStored([3], 2, [1, 1, 1, 1], 4, None, "GPU"), is_lost=True)
        publisher.publish(BlockRemoved([3], "GPU"))
        kinds = ["stored", "stored", "removed"] if has_replay else ["stored", "cleared"]
        eventually(kinds, lambda: [event.kv.WhichOneof("event") for event in watcher.events] == kinds)
        if has_replay:
            assert watcher.events[1].kv.stored.parent == chained
            assert list(watcher.events[2].kv.removed.blocks) == list(watcher.events[1].kv.stored.sequences)
        assert [event.sequence for event in watcher.events] == list(range(1, len(kinds) + 1))
        assert any("KV events were missed" in line for line in member.log) == (not has_replay)


def test_kv_events_that_stay_away_are_told_once(engine, tmp_path):
    arguments = ["--upstream", f"http://{engine.http}/v1", "--upstream-kv-events", "tcp://127.0.0.1:1"]
    with worker(f"file://{tmp_path}", *arguments, models=[]) as member:
        told = lambda: sum("KV events cannot be received" in line for line in list(member.log))
        eventually("it is told", lambda: told() == 1)
        # It tries again after 0.1, 0.2, 0.4 and 0.8 s.
        time.sleep(2)
        assert told() == 1
