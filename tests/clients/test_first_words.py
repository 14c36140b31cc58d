"""What a fleet says to whoever starts it: when its doors are open, and which models are served."""

import contextlib
import datetime
import json
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

from conftest import BINARY, DOORS, LOCAL, halt, running
from patience import PATIENCE_SECONDS, eventually
from real_models import real_encoder
from test_cluster import client_of, frontend, is_ready

MODELS = ["--no-default-model", "--builtin", "simple=add_sub", "--builtin", "words=mock"]


class Starting:
    """A server whose start is watched."""

    def __init__(self, role, *arguments):
        command = [str(BINARY), role, *LOCAL, *DOORS, *arguments]
        self.began, self.told, self.said = time.monotonic(), [], []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)
        for reader in (self._log, self._banner):
            threading.Thread(target=reader, daemon=True).start()

    def _log(self):
        for line in self.process.stderr:
            self.told.append(json.loads(line))

    def _banner(self):
        for line in self.process.stdout:
            self.said.append(line)

    def event(self, message):
        return next((event for event in list(self.told) if event["message"] == message), None)


@contextlib.contextmanager
def starting(discovery, *flags):
    with started("frontend", "--discovery", discovery, *flags) as front:
        yield front


@contextlib.contextmanager
def started(role, *arguments):
    front = Starting(role, *arguments)
    try:
        yield front
    finally:
        front.process.kill()
        front.process.wait()


def status(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_doors_are_open_before_there_is_a_model(tmp_path):
    with starting(f"file://{tmp_path}") as front:
        eventually("the ports are told", lambda: front.event("ports are open"))
        http = front.event("ports are open")["http"]
        assert status(http, "/v2/health/live") == 200
        assert status(http, "/v2/health/ready") == 400
        eventually("it is ready", lambda: front.event("ready"))
        moments = [datetime.datetime.fromisoformat(front.event(message)["timestamp"])
                   for message in ("ports are open", "ready")]
        assert (moments[1] - moments[0]).total_seconds() > 1, "workers had no moment to come"
        eventually("it is said", lambda: "is logged as `model ready`" in "".join(front.said))
        assert "models: none\n" in front.said, front.said


def test_a_banner_has_all_models_that_are_there(tmp_path):
    discovery = f"file://{tmp_path}"
    with running("--discovery", discovery, *MODELS, role="worker"), \
            starting(discovery, "--startup-wait-ms", str(PATIENCE_SECONDS * 1000)) as front:
        eventually("it is ready", lambda: front.event("ready"))
        eventually("it is said", lambda: "/v2/repository/index" in "".join(front.said))
        assert "models: simple, words\n" in front.said, front.said


def test_an_encoder_is_tried_by_what_it_answers():
    with started("serve", f"minilm={real_encoder()}") as server:
        eventually("it is said", lambda: "Every call is listed" in "".join(server.said))
    said = "".join(server.said)
    found = re.search(r"Try it: curl (http://\S+/v1/embeddings) -d '(.*)'\n", said)
    assert found and json.loads(found[2]) == {"model": "minilm", "input": "a text"}, said
    assert "messages" not in said and "text_input" not in said


def test_a_model_is_ready_when_its_worker_was_reached(tmp_path):
    discovery = f"file://{tmp_path}"
    with running("--discovery", discovery, *MODELS, role="worker") as worker:
        halt(worker.process)
        with frontend(discovery) as front, client_of(front) as client:
            told = lambda text: [line for line in list(front.log) if text in line]
            eventually("why is told", lambda: told("no answer within 3s"))
            assert told("worker joined") and not told('"message":"model ready"')
            assert not is_ready(client, "simple")
            worker.process.send_signal(signal.SIGCONT)
            eventually("it is ready", lambda: is_ready(client, "simple"))
            eventually("all are told", lambda: len(told('"message":"model ready"')) == 2)
