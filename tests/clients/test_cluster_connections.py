"""The connections of a fleet: how many there are, and what a worker that hangs does to clients."""

import concurrent.futures
import contextlib
import os
import signal
import time

import pytest
from conftest import halt
from test_cluster import add, client_of, eventually, frontend, is_ready, worker
from tritonclient.utils import InferenceServerException

MODELS = ["--no-default-model", "--builtin", "simple=add_sub"]
REQUESTS, CLIENTS = 10_000, 8
ESTABLISHED = "01"


def connections(address):
    """How many TCP connections to a port of this machine are open."""
    port = int(address.rsplit(":", 1)[1])
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in list(table)[1:]]
    return sum(int(row[1].split(":")[1], 16) == port and row[3] == ESTABLISHED for row in rows)


@contextlib.contextmanager
def fleet(tmp_path):
    discovery = f"file://{tmp_path}/fleet"
    waits = ("--worker-wait-ms", "500")
    with worker(discovery, models=MODELS) as hub, frontend(discovery, *waits) as front:
        with client_of(front) as client:
            eventually("the worker is there", lambda: is_ready(client, "simple"))
            add(client)
        yield front, hub


def test_ten_thousand_requests_use_the_connections_that_are_there(tmp_path):
    with fleet(tmp_path) as (front, hub):
        before = connections(hub.address)

        def many(start):
            with client_of(front) as client:
                for value in range(start, REQUESTS, CLIENTS):
                    add(client, value)

        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(many, range(CLIENTS)))
        took = time.monotonic() - started
        after = connections(hub.address)
        print(f"{REQUESTS} requests in {took:.1f} s; connections: {before} before, {after} after")
        assert 1 <= before == after <= 2


def test_a_worker_that_hangs_costs_a_request_its_deadline_and_no_more(tmp_path):
    with fleet(tmp_path) as (front, hub), client_of(front) as client:
        halt(hub.process)
        try:
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as error:
                add(client, timeout=1)
            took = time.monotonic() - started
            assert "DEADLINE_EXCEEDED" in str(error.value.status()), error.value
            assert 0.9 < took < 2, took
            assert client.is_server_live()
            # The system still takes connections for it; pings tell that nobody is there.
            eventually("it is given up", lambda: not is_ready(client, "simple"))
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as error:
                add(client, timeout=5)
            took = time.monotonic() - started
            print(f"given up: {error.value} after {took:.3f} s")
            assert "UNAVAILABLE" in str(error.value.status()) and took < 3, (error.value, took)
        finally:
            os.kill(hub.pid, signal.SIGCONT)
        eventually("it is called again", lambda: is_ready(client, "simple"))
        add(client)
