"""Frontends call workers of the same machine and user by Unix sockets, and others by TCP."""

import os
import pathlib
import stat

from chaos import Sums
from patience import eventually
from test_cluster import client_of, frontend, is_ready, joined, worker

# Each connection of a frontend is told, and where it comes from.
TELLING = ["--log-level", "info,cluster::request::server=debug"]


def callers(server):
    return [line for line in list(server.log) if "a frontend connected" in line]


def sockets(folder):
    return [path for path in pathlib.Path(folder).iterdir() if path.name.endswith(".sock")]


def serves(front):
    with client_of(front) as client:
        eventually("it is ready", lambda: is_ready(client, "simple"))
    with Sums(front) as sums:
        eventually("it serves", lambda: sums.done > 20)
    sums.check()


def test_workers_on_this_machine_are_called_by_their_sockets(tmp_path):
    folder = tmp_path / "sockets"
    where = (f"file://{tmp_path}/fleet", "--socket-dir", str(folder))
    with frontend(*where) as front, worker(*where, *TELLING) as one:
        serves(front)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(sockets(folder)) == 1
        told = callers(one)
        assert told and all('"peer":"this machine"' in line for line in told), told
        # Whoever starts looks whether the others live, which is nothing to warn of.
        with worker(*where):
            eventually("both are called", lambda: joined(front) == 2)
        assert not [line for line in one.log if '"WARN"' in line]
        one.stop()
        assert len(sockets(folder)) == 2, "nobody could take them away"
        with worker(*where) as other:
            serves(front)
            assert len(sockets(folder)) == 1, "the new worker took the dead ones' away"
            other.terminate()
            other.wait()
            assert not sockets(folder)


def test_who_is_called_elsewhere_or_wants_tcp_is_called_by_tcp(tmp_path):
    folder = tmp_path / "sockets"
    fleet = f"file://{tmp_path}/fleet"
    sockets_there = ["--socket-dir", str(folder)]
    for number, (at_front, at_worker) in enumerate([
        (["--socket-dir", ""], sockets_there),
        (sockets_there, ["--socket-dir", ""]),
        (["--socket-dir", str(tmp_path / "another")], sockets_there),
    ]):
        with frontend(f"{fleet}{number}", *at_front) as front, \
                worker(f"{fleet}{number}", *at_worker, *TELLING) as one:
            serves(front)
            assert all('"peer":"127.0.0.1:' in line for line in callers(one)), callers(one)


def test_a_folder_that_others_may_open_is_not_used(tmp_path):
    folder = tmp_path / "sockets"
    folder.mkdir()
    os.chmod(folder, 0o755)
    where = (f"file://{tmp_path}/fleet", "--socket-dir", str(folder))
    with frontend(*where) as front, worker(*where) as one:
        serves(front)
        assert not sockets(folder)
        assert [line for line in one.log if "no socket in --socket-dir" in line and "0700" in line]
