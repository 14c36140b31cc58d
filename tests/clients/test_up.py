"""`stator up`: a fleet of processes on one machine, from one command to one Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
import threading

import pytest

from chaos import completion, frames, posted
from conftest import BINARY, DOORS, LOCAL
from patience import PATIENCE_SECONDS, eventually

MODELS = ["--no-default-model", "--builtin", "paced=mock,pace_ms=5"]


class Up:
    """A running `stator up`."""

    def __init__(self, folder, *arguments, **environment):
        command = [str(BINARY), "up", *([] if "--log-dir" in arguments else ["--log-dir", str(folder / "logs")]), *LOCAL, *DOORS, *arguments]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.log, self.events, self.folder = [], [], folder
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                self.events.append(json.loads(line))

    def wait(self):
        """Waits until it has ended and all that it said is in the log; returns its status."""
        status = self.process.wait(PATIENCE_SECONDS)
        self.reader.join(PATIENCE_SECONDS)
        return status

    def told(self, message, **fields):
        return [event for event in list(self.events) if event.get("message") == message
                and fields.items() <= event.items()]

    def eventually(self, fact):
        """Waits until something is so, and returns it; a failure tells the log."""
        try:
            return eventually("the fleet does it", fact)
        except AssertionError as error:
            raise AssertionError("".join(self.log[-40:])) from error

    @property
    def http(self):
        return self.eventually(lambda: self.told("ready", replica="frontend"))[-1]["http"]

    def pid(self, replica):
        return self.eventually(lambda: self.told("process started", replica=replica))[-1]["pid"]

    def joined(self, count):
        self.eventually(lambda: len(self.told("worker joined", replica="frontend")) >= count)


@contextlib.contextmanager
def up(*arguments, **environment):
    fleet = Up(*arguments, **environment)
    try:
        yield fleet
    finally:
        fleet.process.kill()
        fleet.process.wait()


def is_alive(pid):
    """Returns whether a process runs; one that has ended and is not yet buried does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_fleet_starts_heals_and_ends_in_order(tmp_path):
    with up(tmp_path, *MODELS, "--workers", "3", "--router-mode", "round-robin") as fleet:
        fleet.joined(3)
        expected = completion(fleet.http, "x")
        for round in range(3):
            victim = f"worker-{round}"
            before = fleet.pid(victim)
            os.kill(before, signal.SIGKILL)
            assert completion(fleet.http, "x") == expected
            fleet.eventually(lambda: fleet.pid(victim) != before)
            fleet.joined(4 + round)
        assert completion(fleet.http, "x") == expected
        names = ["frontend", "worker-0", "worker-1", "worker-2"]
        pids = [fleet.pid(name) for name in names]
        fleet.process.send_signal(signal.SIGINT)
        # A text under way comes to its end.
        assert fleet.wait() == 0
        assert not any(map(is_alive, pids))
        ends = [event["replica"] for event in fleet.told("shut down")]
        assert ends[0] == "frontend" and sorted(ends) == names, ends
        for name in names:
            text = (tmp_path / "logs" / f"{name}.log").read_text()
            assert "shut down" in text and '"replica"' not in text


def test_a_text_under_way_comes_to_its_end_after_ctrl_c(tmp_path):
    with up(tmp_path, *MODELS) as fleet:
        fleet.joined(2)
        expected, _, tokens = completion(fleet.http, "long", tokens=400)
        body = {"model": "paced", "prompt": "long", "max_tokens": 400, "temperature": 0,
                "stream": True, "stream_options": {"include_usage": True}}
        with posted(fleet.http, body) as answer:
            text = frames(answer)
            parts = [next(text)]
            fleet.process.send_signal(signal.SIGINT)
            parts += text
        assert "".join(choice["text"] for part in parts for choice in part["choices"]) == expected
        assert parts[-1]["usage"]["completion_tokens"] == tokens
        assert fleet.wait() == 0


def test_processes_end_when_their_parent_is_killed(tmp_path):
    with up(tmp_path, *MODELS) as fleet:
        fleet.joined(2)
        pids = [fleet.pid(name) for name in ("frontend", "worker-0", "worker-1")]
        fleet.process.kill()
        fleet.eventually(lambda: not any(map(is_alive, pids)))


def test_a_refused_first_start_ends_the_fleet_at_once(tmp_path):
    """A retry would be refused as well, and nobody would read why."""
    with up(tmp_path, str(tmp_path / "nothing.gguf")) as fleet:
        assert fleet.wait() == 1
        assert fleet.log[-1].startswith("stator: cannot start: worker-"), fleet.log
        assert "nothing.gguf" in fleet.log[-1], fleet.log[-1]
        assert not fleet.told("process ended: it is started again")
        assert len(fleet.told("process started", replica="worker-0")) <= 1


def test_what_dies_is_given_up_and_a_second_ctrl_c_ends_at_once(tmp_path):
    with up(tmp_path, *MODELS, "--workers", "1") as fleet:
        for count in (1, 2):
            os.kill(fleet.pid("worker-0"), signal.SIGKILL)
            fleet.eventually(lambda: len(fleet.told("process started", replica="worker-0")) > count)
        waits = [event["again_in"] for event in fleet.told("process ended: it is started again")]
        assert waits[:2] == ["250ms", "500ms"]
        fleet.process.send_signal(signal.SIGTERM)
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.wait() == 0


def test_flags_and_variables_reach_their_role(tmp_path):
    flags = ["--grpc-restricted-protocol", "health:a=secret", "--workers", "1"]
    variables = {"STATOR_MAX_RUNNING_SEQUENCES": "7"}
    with up(tmp_path, *MODELS, *flags, **variables) as fleet:
        fleet.joined(1)
        command = lambda name: open(f"/proc/{fleet.pid(name)}/cmdline").read().split("\0")
        worker, front = command("worker-0"), command("frontend")
        assert "--builtin=paced=mock,pace_ms=5" in worker and "--builtin" not in "".join(front)
        threads = [flag for flag in worker if flag.startswith("--threads=")]
        assert threads == [f"--threads={len(os.sched_getaffinity(0))}"]
        assert not any("secret" in flag for flag in front), "others may read it"
        environment = open(f"/proc/{fleet.pid('frontend')}/environ").read()
        assert "STATOR_GRPC_RESTRICTED_PROTOCOL=health:a=secret" in environment
        assert "STATOR_MAX_RUNNING_SEQUENCES=7" in environment


@pytest.mark.parametrize("flags, fragment", [
    (["--workers", "0"], "--workers"),
    (["--router-mode", "none"], "--router-mode"),
    (["--log-dir", "/proc/none"], "the log folder `/proc/none`"),
])
def test_what_cannot_be_started_is_told(tmp_path, flags, fragment):
    with up(tmp_path, *flags) as fleet:
        assert fleet.wait() != 0
        assert fragment in "".join(fleet.log), fleet.log
