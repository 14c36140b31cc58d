"""`stator doctor`: what the machine has, what can be reached, what to do about the rest."""

import re
import resource
import socket
import subprocess

from conftest import BINARY, free_port, running
from patience import PATIENCE_SECONDS
from programs import Etcd, Nats, program


def doctor(*arguments, **options):
    """Returns the status, and what was found of each thing: how it is, in words, with advice."""
    done = subprocess.run([BINARY, "doctor", *arguments], capture_output=True, text=True,
                          timeout=PATIENCE_SECONDS, check=False, **options)
    found, last = {}, None
    for line in done.stdout.splitlines():
        if advice := re.fullmatch(r" +-> (.+)", line):
            found[last] = (*found[last], advice[1])
        else:
            level, last, words = re.fullmatch(r"(\w+) +(.+?)  +(\S.*)", line).groups()
            found[last] = (level, words)
    return done.returncode, found, done.stderr


def test_a_machine_is_examined(tmp_path):
    port = free_port()
    status, found, _ = doctor("--ports", str(port), "--discovery", f"file://{tmp_path}")
    assert status == 0
    assert found[f"port {port}"] == ("ok", "free")
    assert re.match(r"\d+ cores, kernels for ", found["processor"][1])
    assert re.match(r"[\d.]+ GiB, [\d.]+ GiB available", found["memory"][1])
    assert "GiB free" in found["models"][1] and "GiB free" in found["shared memory"][1]
    assert found["discovery"] == ("ok", f"file://{tmp_path} answers; registered workers: 0")
    assert found["NATS"] == ("ok", "not used (--nats)")


def test_what_is_scarce_comes_with_advice(tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        status, found, _ = doctor("--ports", str(port), preexec_fn=limit, env=environment)
    # A server runs on other ports, and with few files.
    assert status == 0
    assert found["open files"][:2] == ("warn", "256 at most") and "ulimit -n" in found["open files"][2]
    level, words, advice = found[f"port {port}"]
    assert (level, words) == ("warn", "taken by another process") and "--http-port" in advice
    level, words, advice = found["default model"]
    assert level == "warn" and str(tmp_path) in words and "./serve" in advice


def test_what_is_asked_for_and_away_is_a_failure(tmp_path):
    away = free_port()
    status, found, _ = doctor("--ports", str(free_port()), "--discovery", f"etcd://127.0.0.1:{away}",
                              "--nats", f"nats://127.0.0.1:{away}")
    assert status == 1
    for what in ("discovery", "NATS"):
        level, words, advice = found[what]
        assert level == "FAIL" and "does not answer" in words and "address" in advice, found
    status, found, _ = doctor("--ports", str(free_port()), "--discovery", f"file://{tmp_path}/nowhere")
    assert status == 0 and found["discovery"][:2] == ("warn", f"{tmp_path}/nowhere is not there")
    assert not (tmp_path / "nowhere").exists()
    status, found, error = doctor("--discovery", "redis://here")
    assert status == 1 and not found and error.startswith("stator: --discovery: expected "), error


def test_what_answers_is_told(tmp_path):
    for folder in ("etcd", "nats"):
        (tmp_path / folder).mkdir()
    with program(Etcd, tmp_path / "etcd") as etcd, program(Nats, tmp_path / "nats") as nats:
        discovery = f"etcd://127.0.0.1:{etcd.port}"
        with running("--discovery", discovery, "--no-default-model", "--builtin", "mock", role="worker"):
            status, found, _ = doctor("--ports", str(free_port()), "--discovery", discovery,
                                      "--nats", f"nats://127.0.0.1:{nats.port}")
    assert status == 0
    assert found["discovery"] == ("ok", f"{discovery} answers; registered workers: 1")
    assert found["NATS"] == ("ok", "messages arrive")
