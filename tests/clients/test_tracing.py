"""Traces of requests: into files as Triton writes them, and as spans to a collector."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from chaos import total
from conftest import running, sdk_of
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from python_workers import FAULTY, python_worker, write_tokenizer
from test_cluster import client_of, frontend, is_ready, worker
from test_settings import MODELS, change, traced
from test_stream import collect, repeat
from wire import Client, array_input, text_request

ONE = np.ones(1, np.float32)
STAMPS = ["REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END",
          "COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END"]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EXPORT = "opentelemetry.proto.collector.trace.v1.TraceService"


def infer(client, model="identity", count=1, **options):
    for _ in range(count):
        client.infer(model, [array_input("INPUT0", ONE)], **options)


def entries(file):
    """Reads the array of a trace file; nothing while it is being made."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def traces(file, count):
    """Reads the traces of a file by id, once there are so many."""
    def read():
        found = {}
        for entry in entries(file):
            found.setdefault(entry["id"], {}).update(entry)
        return found if len(found) == count else None

    return eventually("the traces are there", read)


def stamps_of(trace):
    return {stamp["name"]: stamp["ns"] for stamp in trace["timestamps"]}


def test_a_trace_tells_when_each_step_of_a_request_was(traced):
    change(traced, trace_level=["TIMESTAMPS"], trace_rate="1")
    before = time.time_ns()
    infer(traced, request_id="r-1")
    collect(traced.stub, repeat(1, 2, delay_ms=20, id="r-2"))
    found = sorted(traces(traced.file, 2).values(), key=lambda trace: trace["request_id"])
    assert [(t["model_name"], t["model_version"], t["request_id"]) for t in found] == [
        ("identity", 1, "r-1"), ("repeat_int32", 1, "r-2")]
    for trace in found:
        in_order = [stamps_of(trace)[name] for name in STAMPS]
        assert in_order == sorted(in_order)
        assert before <= in_order[0] and in_order[-1] <= time.time_ns()
    stamps = stamps_of(found[1])
    assert stamps["COMPUTE_END"] - stamps["COMPUTE_START"] >= 40_000_000


def tensors_of(file):
    return [(entry["activity"], entry["tensor"]["name"], entry["tensor"]["dtype"],
             entry["tensor"]["shape"], entry["tensor"]["data"])
            for entry in entries(file) if "activity" in entry]


def test_the_level_tensors_shows_inputs_and_outputs(traced):
    change(traced, trace_level=["TENSORS"], trace_rate="1")
    traced.infer("identity", [array_input("INPUT0", np.array([1.5, 2], np.float32))])
    eventually("its tensors are there", lambda: len(tensors_of(traced.file)) == 2)
    assert tensors_of(traced.file) == [
        ("TENSOR_QUEUE_INPUT", "INPUT0", "FP32", "2", "1.5,2"),
        ("TENSOR_BACKEND_OUTPUT", "OUTPUT0", "FP32", "2", "1.5,2")]
    assert not any("timestamps" in entry for entry in entries(traced.file))
    traced.infer("texts", [array_input("INPUT0", np.array([b'a"b', b"\xff"], dtype=object))])
    eventually("its tensors are there", lambda: len(tensors_of(traced.file)) == 4)


def test_rate_and_count_choose_what_is_traced(traced):
    change(traced, trace_level=["TIMESTAMPS"], trace_rate="4", trace_count="2")
    infer(traced, count=4 * 5)
    change(traced, "other", trace_rate="1", trace_count="3")
    infer(traced, "other", count=10)
    found = traces(traced.file, 5)
    names = sorted(trace["model_name"] for trace in found.values())
    assert names == ["identity"] * 2 + ["other"] * 3


def test_a_model_alone_is_traced_and_nothing_after_off(traced):
    change(traced, "other", trace_level=["TIMESTAMPS"], trace_rate="1")
    infer(traced, "identity", count=3)
    infer(traced, "other", count=2)
    change(traced, "other", trace_level=["OFF"])
    infer(traced, "other", count=2)
    # Traces are written in the order of their requests.
    change(traced, "identity", trace_level=["TIMESTAMPS"], trace_rate="1")
    infer(traced, "identity")
    found = [trace["model_name"] for trace in traces(traced.file, 3).values()]
    assert found == ["other", "other", "identity"]


def test_a_file_is_closed_after_so_many_traces_and_another_begun(traced):
    change(traced, trace_level=["TIMESTAMPS"], trace_rate="1", log_frequency="2")
    infer(traced, count=5)
    files = [traced.file.with_name(f"trace.json.{index}") for index in range(3)]
    assert [len(traces(file, count)) for file, count in zip(files, (2, 2, 1))] == [2, 2, 1]


def test_traces_of_many_requests_at_once_are_one_whole_array(traced):
    change(traced, trace_level=["TIMESTAMPS", "TENSORS"], trace_rate="1")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: infer(traced, count=25), range(8)))
    assert len(traces(traced.file, 200)) == 200


def test_the_trace_of_a_request_that_waited_is_in_order(tmp_path):
    file = tmp_path / "trace.json"
    flags = ["--trace-level", "TIMESTAMPS", "--trace-rate", "1", "--trace-file", str(file),
             "--max-running-sequences", "1", "--builtin", "mock,pace_ms=20"]
    with running(*flags) as server, Client(server) as client:
        first = client.stub.ModelInfer.future(text_request("mock", "hi", max_tokens=100))
        eventually("it runs", lambda: total(server, "stator_running_sequences") == 1)
        client.stub.ModelInfer(text_request("mock", "hi", max_tokens=5))
        first.result()
        found = [stamps_of(trace) for trace in traces(file, 2).values()]
    waited = max(found, key=lambda stamps: stamps["COMPUTE_START"] - stamps["QUEUE_START"])
    # The first one has 2 s from its start for the second one to come.
    assert waited["COMPUTE_START"] - waited["QUEUE_START"] > 20_000_000
    assert [waited[name] for name in STAMPS] == sorted(waited[name] for name in STAMPS)


def test_a_failed_request_is_traced_to_its_end(traced):
    change(traced, trace_level=["TIMESTAMPS"], trace_rate="1")
    with pytest.raises(grpc.RpcError):
        # The server has 2 s to hear of it, which takes a millisecond.
        collect(traced.stub, repeat(1, 2, delay_ms=NEVER_MS), timeout=2)
    (trace,) = traces(traced.file, 1).values()
    stamps = stamps_of(trace)
    assert 0 < stamps["REQUEST_END"] - stamps["REQUEST_START"] < PATIENCE_SECONDS * 1e9


@pytest.fixture
def collector():
    """A collector that only keeps the bytes of what it gets."""
    with ThreadPoolExecutor(2) as pool:
        server, received = grpc.server(pool), []
        keep = lambda raw, context: received.append(raw) or b""
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(keep)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(EXPORT, handlers)])
        server.received = received
        server.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield server
        server.stop(None).wait()


def exported(collector, word):
    """Returns what a collector has got, once a word is in it."""
    def read():
        raw = b"".join(collector.received)
        return raw if word in raw else None

    return eventually("it is exported", read)


def exporting(url, *flags, delay_ms=50):
    return running("--trace-otlp-endpoint", url, "--trace-mode", "opentelemetry", "--trace-level",
                   "TIMESTAMPS", "--trace-rate", "1", *flags, *MODELS,
                   environment={"OTEL_BSP_SCHEDULE_DELAY": str(delay_ms)})


def test_spans_tell_the_model_and_continue_the_callers_trace(collector):
    with exporting(collector.url) as server, Client(server) as client:
        infer(client, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}, request_id="r-77")
        raw = exported(collector, b"identity")
    assert b"r-77" in raw and b"stator" in raw
    assert bytes.fromhex(TRACE) in raw and bytes.fromhex(SPAN) in raw


def test_requests_of_a_stream_continue_the_streams_trace(collector):
    with exporting(collector.url) as server, Client(server) as client:
        collect(client.stub, repeat(1), metadata=[("traceparent", f"00-{TRACE}-{SPAN}-01")])
        raw = exported(collector, b"repeat_int32")
    assert bytes.fromhex(TRACE) in raw and bytes.fromhex(SPAN) in raw


@pytest.mark.parametrize("parent", [
    "", "00-x", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
])
def test_a_parent_that_is_none_begins_a_trace(collector, parent):
    with exporting(collector.url) as server, Client(server) as client:
        infer(client, headers={"traceparent": parent})
        raw = exported(collector, b"identity")
    assert bytes.fromhex(SPAN) not in raw


def test_spans_that_are_held_back_are_sent_at_the_end(collector):
    with exporting(collector.url, delay_ms=60_000) as server, Client(server) as client:
        infer(client)
        server.terminate()
        server.wait()
    assert b"identity" in b"".join(collector.received)


def test_tensors_are_attributes_and_a_client_turns_spans_on(collector, tmp_path):
    flags = ["--trace-otlp-endpoint", collector.url, "--trace-file", str(tmp_path / "t"), *MODELS]
    with running(*flags, environment={"OTEL_BSP_SCHEDULE_DELAY": "50"}) as server:
        with Client(server) as client:
            change(client, trace_mode="opentelemetry", trace_level=["TENSORS"], trace_rate="1")
            client.infer("identity", [array_input("INPUT0", np.array([1.25], np.float32))])
            raw = exported(collector, b"identity")
    assert b"INPUT0" in raw and b"OUTPUT0" in raw and b"1.25" in raw
    assert not (tmp_path / "t").exists()


def test_a_collector_that_is_away_harms_no_request():
    def seconds(client):
        started = time.monotonic()
        infer(client, count=50)
        return time.monotonic() - started

    with exporting("http://127.0.0.1:9") as server, Client(server) as client:
        exported = seconds(client)
        change(client, trace_level=["OFF"])
        # A wait for the collector would take each request seconds, which is minutes for fifty; they
        # take a tenth of a second.
        assert exported < 10 + 10 * seconds(client)
        server.terminate()
        assert server.wait() == 0


def test_workers_are_told_the_callers_span(tmp_path):
    discovery, parent = f"file://{tmp_path}/fleet", f"00-{TRACE}-{SPAN}-01"
    with frontend(discovery) as front, client_of(front) as client, \
            python_worker(FAULTY, discovery, write_tokenizer(tmp_path / "tokenizer")):
        eventually("it is served", lambda: is_ready(client, "spans"))
        number = triton.InferInput("IN", [1], "INT32")
        number.set_data_from_numpy(np.zeros(1, np.int32))
        told = client.infer("spans", [number], headers={"traceparent": parent})
        assert told.as_numpy("OUT")[0] == parent.encode()
        assert client.infer("spans", [number]).as_numpy("OUT")[0] == b""
        body = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [0]}]}
        posted = httpx.post(f"http://{front.http}/v2/models/spans/infer", json=body,
                            headers={"traceparent": parent})
        assert posted.json()["outputs"][0]["data"] == [parent]


def test_another_server_behind_a_worker_is_told_the_callers_span(tmp_path):
    discovery, parent = f"file://{tmp_path}/fleet", f"00-{TRACE}-{SPAN}-01"
    engine = ["--no-default-model", "--builtin", "words=mock", "--log-level", "info,server=debug"]
    with running(*engine) as server, frontend(discovery) as front, client_of(front) as client, \
            worker(discovery, "--upstream", f"http://{server.http}/v1", models=[]), \
            sdk_of(front) as sdk:
        eventually("it is served", lambda: is_ready(client, "words"))
        sdk.chat.completions.create(model="words", max_tokens=1, extra_headers={"traceparent": parent},
                                    messages=[{"role": "user", "content": "x"}])
        eventually("it is told", lambda: any(parent in line for line in server.log))
