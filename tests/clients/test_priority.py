"""The priority of a request reaches the worker behind a frontend, which takes the urgent ones first."""

import concurrent.futures
import contextlib
import json
import pathlib

import httpx
import numpy as np
import pytest

from chaos import posted, total
from conftest import running, sdk_of
from patience import PATIENCE_SECONDS, eventually
from python_workers import python_worker
from test_cluster import client_of, frontend, is_ready
from wire import array_input

PRIORITIES = pathlib.Path(__file__).with_name("priority_worker.py")
# One text at a time, and each takes long enough that a frontend knows which one ended first, and
# says so.
ONE_PLACE = ["--no-default-model", "--builtin", "paced=mock,pace_ms=10",
             "--max-running-sequences", "1"]
TELLING = ["--log-level", "info,server::serving::inference=debug"]
TOKENS = 80


def by_grpc(front, priority):
    with client_of(front) as client:
        text = array_input("text_input", np.array(["x"], object))
        client.infer("paced", [text], request_id=str(priority), priority=priority,
                     parameters={"max_tokens": TOKENS})


def by_rest(front, priority):
    body = {"id": str(priority), "text_input": "x",
            "parameters": {"max_tokens": TOKENS, "priority": priority}}
    answer = httpx.post(f"http://{front.http}/v2/models/paced/generate", json=body)
    assert answer.status_code == 200, answer.text


def by_openai(front, priority):
    with sdk_of(front) as sdk:
        sdk.completions.create(model="paced", prompt="x", max_tokens=TOKENS,
                               extra_body={"priority": priority},
                               extra_headers={"x-request-id": str(priority)})


def ended(front):
    """Returns the priorities of the texts that came to their end, in that order."""
    over = [json.loads(line) for line in list(front.log) if '"request over"' in line]
    return [int(event["request_id"]) for event in over if event["code"] == "OK"]


@contextlib.contextmanager
def occupied(front, only):
    """A text that has the worker's only place until the end of the block."""
    body = {"model": "paced", "prompt": "long", "max_tokens": 6000, "stream": True}
    with posted(front.http, body):
        eventually("it has the place", lambda: total(only, "stator_running_sequences") == 1)
        yield


@pytest.mark.parametrize("ask", [by_grpc, by_rest, by_openai])
def test_urgent_requests_overtake_others_in_a_workers_queue(tmp_path, ask):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, *TELLING) as front, client_of(front) as client, \
            running("--discovery", discovery, *ONE_PLACE, role="worker") as only, \
            concurrent.futures.ThreadPoolExecutor(4) as pool:
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        with occupied(front, only):
            asked = []
            # The default is the least urgent, and then a lower number is more urgent.
            for waiting, priority in enumerate((0, 7, 2), start=1):
                asked.append(pool.submit(ask, front, priority))
                eventually(f"{waiting} wait",
                           lambda: total(only, "stator_queue_depth_requests") == waiting)
        for one in asked:
            one.result(PATIENCE_SECONDS)
        eventually("all are told", lambda: len(ended(front)) == 3)
        assert ended(front) == [2, 7, 0]


def test_a_python_worker_is_told_the_priority(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, python_worker(PRIORITIES, discovery), \
            client_of(front) as client, sdk_of(front) as sdk:
        for model in ("tensors", "texts"):
            eventually(model, lambda: is_ready(client, model))
        tensors = [array_input("IN", np.zeros(1, np.int32))]
        rest = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [0]}]}
        for priority in (0, 3, 2**53):
            told = client.infer("tensors", tensors, priority=priority).as_numpy("OUT")
            assert told.tolist() == [priority]
            body = {**rest, "parameters": {"priority": priority}}
            answer = httpx.post(f"http://{front.http}/v2/models/tensors/infer", json=body)
            assert answer.json()["outputs"][0]["data"] == [priority], answer.text
            text = sdk.completions.create(model="texts", prompt="x", max_tokens=9,
                                          extra_body={"priority": priority})
            assert text.choices[0].text == str(priority)
            made = array_input("text_input", np.array(["x"], object))
            quiet = {"exclude_input_in_output": True}
            text = client.infer("texts", [made], priority=priority, parameters=quiet)
            assert text.as_numpy("text_output")[0].decode() == str(priority)
        told = client.infer("tensors", tensors).as_numpy("OUT")
        assert told.tolist() == [0], "none is the default"
