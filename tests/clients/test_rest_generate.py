"""generate and generate_stream: any JSON object in, the outputs by name out, or as events."""

import contextlib
import http.client
import json
import time

import pytest

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from real_models import real_model
from test_metrics import requests_total, scrape
from test_rest_validation import refused
from wire import await_running, call

BUILTINS = ["mock=mock,pace_ms=20", "quick=mock", "identity", "repeat_int32", "square",
            "simple=add_sub", "batched=identity,dims=2x-1,max_batch_size=4",
            "bytes=identity,datatype=BYTES", "int64=identity,datatype=INT64",
            "fp16=identity,datatype=FP16"]
SHORT = {"text_input": "hi", "max_tokens": 2}


@pytest.fixture(scope="module")
def served():
    """A server of built-ins, text models that are slow and quick among them."""
    with running(*[flag for builtin in BUILTINS for flag in ("--builtin", builtin)]) as server:
        yield server
        assert server.is_running(), "the server died under the tests"


def generate(server, model, **body):
    reply = call(server, f"/v2/models/{model}/generate", body)
    assert reply.status == 200, reply.body
    assert reply.headers["Content-Type"] == "application/json"
    found = reply.json()
    assert found.pop("model_name") == model and found.pop("model_version") == "1"
    return found


@contextlib.contextmanager
def begun(server, model, **body):
    """Begins a stream; gives its answer, whose events are still to come, and leaves at the end."""
    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
    with contextlib.closing(connection):
        yield connection.getresponse()


def event(answer):
    """Reads the next event; none at the end."""
    line = answer.readline()
    if not line:
        return None
    assert line.startswith(b"data: ") and answer.readline() == b"\n", line
    return json.loads(line.removeprefix(b"data: "))


def tokens_of(events):
    """Counts the tokens of a text's events: each has all that were drawn since the one before."""
    return sum(one["num_output_tokens"] for one in events)


def events(server, model, **body):
    """Returns the events of a whole stream, without the model's name and version."""
    with begun(server, model, **body) as answer:
        assert answer.status == 200, answer.read()
        assert answer.headers["Content-Type"].split(";")[0] == "text/event-stream"
        found = list(iter(lambda: event(answer), None))
    for one in found:
        assert one.pop("model_name") == model and one.pop("model_version") == "1"
    return found


ANSWERS = {
    "a scalar": ("identity", {"INPUT0": 5}, {"OUTPUT0": 5.0}),
    "a list of one": ("identity", {"INPUT0": [5]}, {"OUTPUT0": 5.0}),
    "a list": ("identity", {"INPUT0": [1, 2.5]}, {"OUTPUT0": [1.0, 2.5]}),
    "an empty list": ("identity", {"INPUT0": []}, {"OUTPUT0": []}),
    "an id": ("identity", {"INPUT0": 5, "id": "r"}, {"OUTPUT0": 5.0, "id": "r"}),
    "other keys": ("identity", {"INPUT0": 5, "a": 1, "b": "x", "c": True, "d": 0.5}, {"OUTPUT0": 5.0}),
    "nested": ("identity", {"parameters": {"INPUT0": 5, "priority": 1}}, {"OUTPUT0": 5.0}),
    "a batch": ("batched", {"INPUT0": [1, 2, 3, 4]}, {"OUTPUT0": [1.0, 2.0, 3.0, 4.0]}),
    "texts": ("bytes", {"INPUT0": ["a", "\u017c"]}, {"OUTPUT0": ["a", "\u017c"]}),
    "a wide integer": ("int64", {"INPUT0": -2**63}, {"OUTPUT0": -2**63}),
    "two tensors": ("simple", {"INPUT0": [1] * 16, "INPUT1": [2] * 16},
                    {"OUTPUT0": [3] * 16, "OUTPUT1": [-1] * 16}),
    "one response": ("repeat_int32", {"IN": [7], "DELAY": [0], "WAIT": 0}, {"OUT": 7, "IDX": 0}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_keys_become_tensors_and_outputs_keys(served, case):
    model, body, expected = ANSWERS[case]
    assert generate(served, model, **body) == expected
    assert events(served, model, **body) == [expected]


def test_a_text_model_answers_in_one_piece_or_one_event_a_token(served):
    whole = generate(served, "quick", text_input="hello", max_tokens=5, id="x", return_finish_reason=True)
    assert whole["id"] == "x" and whole["finish_reason"] == "length"
    streamed = events(served, "quick", text_input="hello", max_tokens=5, id="x", stream=True, return_finish_reason=True)
    assert [one["id"] for one in streamed] == ["x"] * 5
    assert "".join(one["text_output"] for one in streamed) == whole["text_output"]
    *before, last = [one["finish_reason"] for one in streamed]
    assert set(before) == {"None"} and last == "length"
    # vLLM's rule for those who say `stream`.
    (unstreamed,) = events(served, "quick", text_input="hello", max_tokens=5, stream=False)
    assert unstreamed == {"text_output": "hello" + whole["text_output"]}


def test_the_keys_of_the_open_inference_protocol_work(served):
    settings = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "stop": ["zzz"], "details": True}
    found = generate(served, "quick", text_input="hi", parameters=settings)
    assert found["finish_reason"] == "length" and not found["text_output"].startswith("hi ")
    streamed = events(served, "quick", text_input="hi", parameters=settings, return_num_output_tokens=True)
    assert tokens_of(streamed) == 3 and streamed[-1]["finish_reason"] == "length"
    beside = {key: value for key, value in settings.items() if key != "stop"}
    assert generate(served, "quick", text_input="hi", **beside)["finish_reason"] == "length"


def test_a_batch_of_prompts_is_a_list_of_texts(served):
    alone = [generate(served, "quick", **{**SHORT, "text_input": text})["text_output"]
             for text in ("a", "b")]
    found = generate(served, "quick", **{**SHORT, "text_input": ["a", "b"]})
    assert found["text_output"] == alone and "finish_reason" not in found


def test_messages_may_be_the_array_or_its_text(served):
    messages = [{"role": "user", "content": "hi"}]
    found = [generate(served, "quick", messages=form, max_tokens=3)["text_output"]
             for form in (messages, json.dumps(messages))]
    assert found[0] == found[1] != ""


def test_a_real_model_streams_what_it_generates(server):
    asked = {"text_input": "The capital of France is", "parameters": {
        "max_tokens": 5, "temperature": 0.0, "exclude_input_in_output": True}}
    whole = generate(server, "smollm", **asked)
    assert "Paris" in whole["text_output"]
    pieces = [one["text_output"] for one in events(server, "smollm", **asked)]
    assert len(pieces) > 1 and "".join(pieces) == whole["text_output"]


def test_events_come_one_by_one(served):
    with begun(served, "mock", text_input="hi", max_tokens=200, return_num_output_tokens=True) as answer:
        timed = [(time.monotonic(), one) for one in iter(lambda: event(answer), None)]
    times, found = zip(*timed)
    # Other work on the machine makes this time longer, not shorter.
    assert tokens_of(found) == 200 and times[-1] - times[0] > 1, "199 waits of 20 ms"


def test_decoupled_models_give_an_event_a_response(served):
    sent = {"IN": [1, 2, 3], "DELAY": [1, 1, 1], "WAIT": 0}
    assert [one["OUT"] for one in events(served, "repeat_int32", **sent)] == [1, 2, 3]
    assert events(served, "square", IN=2) == [{"OUT": 2}] * 2
    assert events(served, "repeat_int32", IN=[], DELAY=[], WAIT=0) == []
    for values in ([], [1, 2]):
        body = {"IN": values, "DELAY": [0] * len(values), "WAIT": 0}
        refused(call(served, "/v2/models/repeat_int32/generate", body), 400,
                "generate expects model to produce exactly 1 response")


REFUSALS = {
    "unknown model": ("nope", {}, 404, "Request for unknown model: 'nope'"),
    "unknown version": ("identity/versions/9", {"INPUT0": 1}, 404, "version 9 is not found"),
    "no input": ("identity", {}, 400, "expected 1 inputs but got 0 inputs"),
    "no body": ("identity", b"", 400, "expected 1 inputs but got 0 inputs"),
    "no JSON": ("identity", b"{", 400, "failed to parse the request JSON buffer"),
    "no object": ("identity", [], 400, "Unable to parse"),
    "null": ("identity", {"INPUT0": None}, 400, "Unable to parse 'INPUT0'"),
    "an object": ("identity", {"INPUT0": {"a": 1}}, 400, "Unable to parse 'INPUT0'"),
    "a text for a number": ("identity", {"INPUT0": "x"}, 400, "Unable to parse 'INPUT0'"),
    "half floats": ("fp16", {"INPUT0": 1}, 400, "FP16"),
    "no fit": ("batched", {"INPUT0": [1, 2, 3]}, 400, "do not fit"),
    "no fit of a fixed shape": ("simple", {"INPUT0": [1], "INPUT1": [1]}, 400, "INPUT0"),
    "parameters": ("identity", {"INPUT0": 1, "parameters": [1]}, 400, "'parameters'"),
    "a null parameter": ("identity", {"INPUT0": 1, "x": None}, 400, "parameter 'x'"),
    "a list as parameter": ("identity", {"INPUT0": 1, "x": [1]}, 400, "parameter 'x'"),
    "a reserved parameter": ("identity", {"INPUT0": 1, "triton_x": 1}, 400, "are reserved"),
    "one of gRPC's": ("identity", {"INPUT0": 1, "triton_enable_empty_final_response": True}, 400, "are reserved"),
    "an id": ("identity", {"INPUT0": 1, "id": []}, 400, "'id'"),
    "no prompt": ("quick", {}, 400, "text_input"),
    "a setting": ("quick", {"text_input": "hi", "temperature": 99}, 400, "temperature"),
    "a setting's type": ("quick", {"text_input": "hi", "max_tokens": "x"}, 400, "max_tokens"),
    "deep": ("identity", b'{"x":' * 200_000, 400, "failed to parse the request JSON buffer"),
}


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
@pytest.mark.parametrize("case", REFUSALS)
def test_an_error_before_the_first_event_has_a_real_status(served, case, route):
    model, body, status, fragment = REFUSALS[case]
    refused(call(served, f"/v2/models/{model}/{route}", body, "POST"), status, fragment)


def test_a_stream_asked_of_generate_is_refused(served):
    body = {**SHORT, "stream": True}
    refused(call(served, "/v2/models/quick/generate", body), 400, "stream")


@pytest.mark.parametrize("read", [0, 2])
def test_a_client_that_leaves_its_stream_cancels_the_request(served, read):
    count = lambda code: requests_total(served, "mock", code, "HttpGenerateStream")
    before = count("CANCELLED"), count("OK")
    with begun(served, "mock", text_input="hi", max_tokens=1000) as answer:
        for _ in range(read):
            assert event(answer)["text_output"]
    eventually("it is cancelled", lambda: count("CANCELLED") == before[0] + 1)
    assert count("OK") == before[1]
    for gauge in ("stator_running_sequences", "stator_kv_blocks_used"):
        eventually(gauge, lambda: scrape(served, f'{gauge}{{model="mock"}}') == 0)


def test_a_client_that_leaves_before_the_answer_cancels_the_request(served):
    count = lambda: requests_total(served, "mock", "CANCELLED", "HttpGenerate")
    before = count()
    connection = http.client.HTTPConnection(served.http)
    connection.request("POST", "/v2/models/mock/generate",
                       json.dumps({"text_input": "hi", "max_tokens": 1000}))
    await_running(served, "mock", "HttpGenerate")
    connection.close()
    eventually("it is cancelled", lambda: count() == before + 1)


def test_a_full_queue_is_unavailable():
    limits = ["--max-running-sequences", "1", "--max-waiting-requests", "1"]
    body = json.dumps({"text_input": "hi", "max_tokens": 5000})
    with running(f"smollm={real_model()}", *limits) as server:
        with contextlib.ExitStack() as open_ones:
            for gauge in ("stator_running_sequences", "stator_queue_depth_requests"):
                connection = http.client.HTTPConnection(server.http, timeout=PATIENCE_SECONDS)
                open_ones.enter_context(contextlib.closing(connection))
                connection.request("POST", "/v2/models/smollm/generate_stream", body)
                eventually(gauge, lambda: scrape(server, f'{gauge}{{model="smollm"}}') == 1)
            for route in ("generate", "generate_stream"):
                reply = call(server, f"/v2/models/smollm/{route}", body, "POST")
                refused(reply, 503, "Exceeds maximum queue size")
        eventually("the place is free", lambda: scrape(server, 'stator_running_sequences{model="smollm"}') == 0)
        assert generate(server, "smollm", text_input="hi", max_tokens=1)["text_output"]


def test_a_stream_that_the_shutdown_cuts_does_not_look_whole():
    with running("--builtin", "mock=mock,pace_ms=20", "--shutdown-grace-ms", "100") as server:
        with begun(server, "mock", text_input="hi", max_tokens=1000) as answer:
            assert event(answer)["text_output"]
            server.terminate()
            *_, last = iter(lambda: event(answer), None)
            assert "shutting down" in last["error"], last
        assert server.wait() == 0


def test_a_stream_that_is_short_enough_outlives_the_shutdown():
    with running("--builtin", "mock=mock,pace_ms=20") as server:
        with begun(server, "mock", text_input="hi", max_tokens=10, return_num_output_tokens=True) as answer:
            first = event(answer)
            server.terminate()
            assert tokens_of([first, *iter(lambda: event(answer), None)]) == 10
        assert server.wait() == 0


@pytest.mark.parametrize("route", ["generate", "generate_stream"])
@pytest.mark.parametrize("body", ['{"text_input": "a", "max_tokens": 1, "max_tokens": 2}',
                                  '{"text_input": "a", "text_input": "b"}',
                                  '{"text_input": "a", "parameters": {"max_tokens": 1, "max_tokens": 2}}'])
def test_a_key_that_is_there_twice_is_refused(served, route, body):
    reply = call(served, f"/v2/models/quick/{route}", body.encode())
    assert reply.status == 400 and b"duplicate field" in reply.body, reply
