"""ModelStreamInfer: many requests on one stream, two lanes, in-band errors, final markers."""

import contextlib
import itertools
import queue
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from conftest import running
from patience import PATIENCE_SECONDS, eventually
from wire import (Stream, floats, ints, is_final, outputs_of, refused, request, scrape, tensor,
                  text_request)

EMPTY_FINAL = {"triton_enable_empty_final_response": True}


def identity(model="identity", id="", value=1.0):
    return request(model, [tensor("INPUT0", "FP32", [1])], [floats(value)], id=id)


def repeat(*values, delay_ms=0, id="", **parameters):
    inputs = [tensor("IN", "INT32", [len(values)]), tensor("DELAY", "UINT32", [len(values)]),
              tensor("WAIT", "UINT32", [1])]
    raw = [ints(*values), ints(*[delay_ms] * len(values)), ints(0)]
    return request("repeat_int32", inputs, raw, id=id, parameters=parameters)


def collect(stub, *requests, **options):
    stream = Stream(stub, **options)
    stream.send(*requests)
    stream.close()
    return list(stream)


def test_a_fast_request_does_not_wait_for_a_slow_decoupled_one(stub):
    slow = repeat(*range(10), delay_ms=200, id="slow")
    messages = collect(stub, slow, repeat(7, id="fast", **EMPTY_FINAL))
    ids = [message.infer_response.id for message in messages]
    # It has a second for what takes a millisecond.
    assert ids.index("fast") < 5, ids
    assert ids.count("slow") == 10


def test_models_that_are_not_decoupled_answer_in_request_order(stub):
    requests = [identity("slow", "a"), identity("identity", "b"), identity("identity", "c")]
    messages = collect(stub, *requests, timeout=PATIENCE_SECONDS)
    assert [message.infer_response.id for message in messages] == ["a", "b", "c"]
    assert all(is_final(message) for message in messages)


def test_slow_requests_of_one_stream_run_at_the_same_time(stub):
    def seconds(count):
        started = time.monotonic()
        assert len(collect(stub, *(identity("slow", str(i)) for i in range(count)))) == count
        return time.monotonic() - started

    # 0.7 s at once, 11.2 s one after the other; both are measured beside the same load.
    assert seconds(16) < 16 * seconds(1) / 2, "sixteen delays overlap"


def test_a_decoupled_model_ends_with_a_marker_only_when_asked(stub):
    plain = collect(stub, repeat(4, 5, id="r"))
    assert [outputs_of(m.infer_response)["OUT"].tolist() for m in plain] == [[4], [5]]
    assert [outputs_of(m.infer_response)["IDX"].tolist() for m in plain] == [[0], [1]]
    assert [is_final(message) for message in plain] == [False, False]
    marked = collect(stub, repeat(4, 5, id="r", **EMPTY_FINAL))
    assert [is_final(message) for message in marked] == [False, False, True]
    assert not marked[2].infer_response.outputs and marked[2].infer_response.id == "r"


def test_no_elements_give_only_the_marker(stub):
    assert collect(stub, repeat()) == []
    (marker,) = collect(stub, repeat(**EMPTY_FINAL))
    assert is_final(marker)


def test_one_bad_among_ten_leaves_the_other_nine(stub):
    requests = [identity(id=str(i), value=i) for i in range(10)]
    requests[4].raw_input_contents[0] = b"xy"
    messages = collect(stub, *requests)
    assert [message.infer_response.id for message in messages] == [str(i) for i in range(10)]
    failed = [m.infer_response.id for m in messages if m.error_message]
    assert failed == ["4"]


def test_an_unknown_model_does_not_end_the_stream(stub):
    messages = collect(stub, identity("nope", "x"), identity(id="y"))
    errors = {message.infer_response.id: message.error_message for message in messages}
    assert "unknown model: 'nope'" in errors["x"] and errors["y"] == ""


def test_true_errors_end_the_stream_at_the_first_execution_error(stub):
    metadata = [("triton_grpc_error", "true")]
    checked = collect(stub, identity("nope", "x"), identity(id="y"), metadata=metadata)
    assert len(checked) == 2, "errors found before the model runs stay in-band"
    bad = text_request("mock_fast", "hi", id="z", temperature=99.0)
    refused(lambda: collect(stub, bad, metadata=metadata), grpc.StatusCode.INVALID_ARGUMENT,
            "temperature")


def test_many_decoupled_requests_interleave(stub):
    requests = [text_request("mock", f"prompt {i}", id=str(i), max_tokens=5,
                             extra=[tensor("streaming", "BOOL", [1])], raw=[b"\x01"])
                for i in range(20)]
    messages = collect(stub, *requests)
    order = [message.infer_response.id for message in messages]
    assert {i: order.count(i) for i in set(order)} == {str(i): 5 for i in range(20)}
    changes = sum(one != next for one, next in itertools.pairwise(order))
    assert changes > 19, "the requests ran one after the other"
    finals = [m.infer_response.id for m in messages if is_final(m)]
    assert sorted(finals, key=int) == [str(i) for i in range(20)]


def test_more_requests_than_the_bound_are_all_answered(stub):
    messages = collect(stub, *(identity(id=str(i)) for i in range(1000)))
    assert [message.infer_response.id for message in messages] == [str(i) for i in range(1000)]


def test_half_close_lets_running_requests_finish(stub):
    assert len(collect(stub, repeat(*range(5), delay_ms=50))) == 5


def test_the_triton_client_streams(client):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    sent = triton.InferInput("text_input", [1], "BYTES")
    sent.set_data_from_numpy(np.array(["hello"], dtype=object))
    streaming = triton.InferInput("streaming", [1], "BOOL")
    streaming.set_data_from_numpy(np.array([True]))
    client.async_stream_infer("mock", [sent, streaming], request_id="t",
                              parameters={"max_tokens": 4, "return_num_output_tokens": True}, enable_empty_final_response=True)
    pieces, tokens = [], 0
    while True:
        result, error = answers.get(timeout=PATIENCE_SECONDS)
        assert error is None
        response = result.get_response()
        if result.as_numpy("text_output") is not None:
            pieces.append(result.as_numpy("text_output")[0])
            tokens += result.as_numpy("num_output_tokens")[0]
        if response.parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    assert tokens == 4 and all(pieces)


def test_the_triton_client_gets_in_band_errors(client):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    sent = triton.InferInput("INPUT0", [1], "FP32")
    sent.set_data_from_numpy(np.ones(1, np.float32))
    client.async_stream_infer("nope", [sent], request_id="1")
    client.async_stream_infer("identity", [sent], request_id="2")
    first, second = answers.get(timeout=PATIENCE_SECONDS), answers.get(timeout=PATIENCE_SECONDS)
    client.stop_stream()
    assert "unknown model" in str(first[1])
    assert second[1] is None and second[0].get_response().id == "2"


LONG = 8000


@contextlib.contextmanager
def cut_short(server):
    """Checks that a text of LONG tokens ends long before its last one."""
    drawn = lambda: scrape(server, 'stator_engine_decode_tokens_total{model="mock"}')
    before = drawn()
    yield
    for gauge in ("stator_running_sequences", "stator_kv_blocks_used"):
        eventually(gauge, lambda: scrape(server, f'{gauge}{{model="mock"}}') == 0)
    assert drawn() - before < LONG / 2, "it came near its end"


def test_cancel_frees_the_engine_at_once(stub, server):
    with cut_short(server):
        stream = Stream(stub)
        stream.send(text_request("mock", "long", max_tokens=LONG,
                                 extra=[tensor("stream", "BOOL", [1])], raw=[b"\x01"]))
        stream.next()
        eventually("it runs", lambda: scrape(server, 'stator_running_sequences{model="mock"}') == 1)
        stream.cancel()


@pytest.mark.parametrize("how", ["unary", "stream"])
def test_a_deadline_is_deadline_exceeded_and_stops_the_work(stub, server, how):
    sent = text_request("mock", "long", max_tokens=LONG)
    if how == "unary":
        call = lambda: stub.ModelInfer(sent, timeout=0.2)
    else:
        call = lambda: collect(stub, sent, timeout=0.2)
    # The status is the same where a slow machine lets the deadline pass before the work begins.
    with cut_short(server):
        refused(call, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_an_endless_chatter_does_not_starve_other_requests(stub):
    chatter = text_request("mock_fast", "hello", id="chatter", max_tokens=8000,
                           return_num_output_tokens=True,
                           extra=[tensor("streaming", "BOOL", [1])], raw=[b"\x01"])
    # One of them is written before the client has sent the next request.
    answers = [m.infer_response for m in collect(stub, *[chatter] * 6, identity(id="plain"))]
    [place] = [place for place, answer in enumerate(answers) if answer.id == "plain"]
    assert place < len(answers) // 2
    # A message has all tokens that were drawn since the last one.
    counts = [outputs_of(answer)["num_output_tokens"][0] for answer in answers if answer.id == "chatter"]
    assert sum(counts) == 48_000


def test_more_decoupled_requests_than_the_bound_are_all_answered(stub):
    requests = [repeat(i, id=str(i)) for i in range(400)]
    assert len(collect(stub, *requests)) == 400


def test_a_bound_of_one_request_still_ends_the_stream():
    with running("--no-default-model", "--builtin", "mock", "--builtin", "repeat_int32",
                 "--grpc-max-stream-requests", "1") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            text = text_request("mock", "hello", max_tokens=3)
            messages = collect(stub, text, repeat(1, 2), text, timeout=PATIENCE_SECONDS)
    assert len(messages) == 4
