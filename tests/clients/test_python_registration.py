"""A Python worker's registration in etcd, when others do something to it."""

import base64
import contextlib
import json

import httpx
import numpy as np
import pytest

from conftest import free_port
from patience import eventually
from python_workers import EXAMPLES, python_worker
from test_cluster import client_of, frontend, is_ready, joined
from test_python_workers import etcd_at, tensor

PREFIX = "/stator/v1/instances/"


def coded(text):
    return base64.b64encode(text.encode()).decode()


class Keys:
    """The keys of workers in an etcd, over its HTTP gateway."""

    def __init__(self, url):
        self.url = url.replace("etcd://", "http://")

    def call(self, method, **body):
        answer = httpx.post(f"{self.url}/v3/kv/{method}", json=body)
        return answer.raise_for_status().json()

    def read(self):
        """Returns key, value and lease of each worker."""
        # The end of a range of all keys with a prefix is that prefix with its last byte one up.
        end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
        found = self.call("range", key=coded(PREFIX), range_end=coded(end)).get("kvs", [])
        decoded = lambda text: base64.b64decode(text).decode()
        return [(decoded(one["key"]), decoded(one["value"]), one.get("lease", "0"))
                for one in found]

    def delete(self, key):
        assert self.call("deleterange", key=coded(key))["deleted"] == "1"

    def write_over(self, key):
        """Puts the record of somebody else, who has no lease."""
        [(_, value, _)] = self.read()
        record = {**json.loads(value), "address": "grpc://127.0.0.1:9", "cards": []}
        self.call("put", key=coded(key), value=coded(json.dumps(record)))


@pytest.mark.parametrize("harm", [Keys.delete, Keys.write_over])
def test_a_worker_puts_back_its_key_while_its_lease_lives(tmp_path, harm):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(etcd_at(tmp_path, [free_port(), free_port()]))
        worker = stack.enter_context(python_worker(EXAMPLES / "tensors.py", url))
        front = stack.enter_context(frontend(url))
        client = stack.enter_context(client_of(front))
        eventually("it is ready", lambda: is_ready(client, "double"))
        keys = Keys(url)
        [registered] = keys.read()
        assert registered[2] != "0", "it hangs on a lease"
        for times in (1, 2):
            harm(keys, registered[0])
            eventually("it is told", lambda: worker.says("somebody removed the key") == times)
            # The same lease: it did not end, and no other one was taken.
            eventually("it is there again", lambda: keys.read() == [registered])
            eventually("it is called again", lambda: is_ready(client, "double"))
            answer = client.infer("double", [tensor("IN", np.ones(4, np.float32), "FP32")])
            assert (answer.as_numpy("OUT") == 2).all()
        assert not worker.says("cannot register")
        worker.terminate()
        assert worker.wait() == 0
        assert keys.read() == [], "it waits for the end of its lease"


def test_a_worker_that_nobody_harms_says_nothing_of_its_key(tmp_path):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(etcd_at(tmp_path, [free_port(), free_port()]))
        worker = stack.enter_context(python_worker(EXAMPLES / "tensors.py", url))
        front = stack.enter_context(frontend(url))
        eventually("it joined", lambda: joined(front) == 1)
        keys = Keys(url)
        [(key, value, lease)] = keys.read()
        lives = lambda: httpx.post(f"{keys.url}/v3/lease/timetolive", json={"ID": lease}).json()
        # It has been kept alive twice, so it has looked for its key as often.
        for _ in range(2):
            eventually("some time of the lease is over", lambda: int(lives()["TTL"]) < 8)
            eventually("the lease is renewed", lambda: int(lives()["TTL"]) >= 8)
        assert keys.read() == [(key, value, lease)]
        assert not worker.says("registering again") and joined(front, "worker left") == 0
