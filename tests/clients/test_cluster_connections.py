"""The connections of a fleet: how many there are, and what a worker that hangs does to clients."""

import concurrent.futures
import contextlib
import os
import signal
import time

import pytest
from conftest import halt
from patience import PATIENCE_SECONDS, eventually
from test_cluster import add, client_of, frontend, is_ready, worker
from tritonclient.utils import InferenceServerException

MODELS = ["--no-default-model", "--builtin", "simple=add_sub"]
REQUESTS, CLIENTS = 10_000, 8
ESTABLISHED = "01"
CONNECTED = "03"


def rows(table):
    with open(f"/proc/net/{table}") as lines:
        return [line.split() for line in list(lines)[1:]]


def tcp_connections(address):
    """How many TCP connections to a port of this machine are open."""
    port = int(address.rsplit(":", 1)[1])
    return sum(int(row[1].split(":")[1], 16) == port and row[3] == ESTABLISHED for row in rows("tcp"))


def socket_connections(folder):
    """How many connections to the Unix sockets of a folder are open."""
    return sum(row[5] == CONNECTED and row[-1].startswith(f"{folder}/") for row in rows("unix"))


@contextlib.contextmanager
def fleet(tmp_path, sockets=""):
    discovery, where = f"file://{tmp_path}/fleet", ("--socket-dir", str(sockets))
    waits = ("--worker-wait-ms", "500")
    with worker(discovery, *where, models=MODELS) as hub, \
            frontend(discovery, *where, *waits) as front:
        with client_of(front) as client:
            eventually("the worker is there", lambda: is_ready(client, "simple"))
            add(client)
        yield front, hub


@pytest.mark.parametrize("way", ["tcp", "socket"])
def test_ten_thousand_requests_use_the_connections_that_are_there(tmp_path, way):
    sockets = tmp_path / "sockets" if way == "socket" else ""
    with fleet(tmp_path, sockets) as (front, hub):
        def connections():
            found = tcp_connections(hub.address), socket_connections(tmp_path / "sockets")
            assert found[way == "tcp"] == 0, found
            return sum(found)

        before = connections()

        def many(start):
            with client_of(front) as client:
                for value in range(start, REQUESTS, CLIENTS):
                    add(client, value)

        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(many, range(CLIENTS)))
        took = time.monotonic() - started
        after = connections()
        print(f"{way}: {REQUESTS} requests in {took:.1f} s; connections: {before} before, {after} after")
        assert 1 <= before == after <= 2


@pytest.mark.parametrize("way", ["tcp", "socket"])
def test_a_worker_that_hangs_costs_a_request_its_deadline_and_no_more(tmp_path, way):
    sockets = tmp_path / "sockets" if way == "socket" else ""
    with fleet(tmp_path, sockets) as (front, hub), client_of(front) as client:
        halt(hub.process)
        try:
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as error:
                add(client, timeout=1)
            took = time.monotonic() - started
            assert "DEADLINE_EXCEEDED" in str(error.value.status()), error.value
            assert 0.9 < took, took
            assert client.is_server_live()
            # The system still takes connections for it; pings tell that nobody is there.
            eventually("it is given up", lambda: not is_ready(client, "simple"))
            started = time.monotonic()
            with pytest.raises(InferenceServerException) as error:
                add(client)
            took = time.monotonic() - started
            print(f"given up: {error.value} after {took:.3f} s")
            # The client itself would wait twice as long.
            assert "UNAVAILABLE" in str(error.value.status()), error.value
            assert took < PATIENCE_SECONDS / 2, took
        finally:
            os.kill(hub.pid, signal.SIGCONT)
        eventually("it is called again", lambda: is_ready(client, "simple"))
        add(client)
