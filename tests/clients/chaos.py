"""What the tests of faults are made of: light clients, fleets whose processes die, counters."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import socket
import threading
import time

import numpy as np
import tritonclient.grpc as triton

from patience import PATIENCE_SECONDS, eventually
from wire import page

IS_NIGHTLY = os.environ.get("STATOR_CHAOS") == "nightly"
PACE_MS = 10
PACED = ["--no-default-model", "--builtin", f"paced=mock,pace_ms={PACE_MS}",
         "--builtin", "simple=add_sub"]
PROMPTS = ["one", "a second", "the third of them", "number four", "5", "and this is the sixth"]


def either(normal, nightly):
    """Returns how much of something a run does: `STATOR_CHAOS=nightly` does more."""
    return nightly if IS_NIGHTLY else normal


@contextlib.contextmanager
def posted(address, body, path="/v1/completions", window=None):
    """Posts JSON and gives the answer, of which nothing has been read."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
    try:
        if window:
            connection.sock = socket.socket()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            connection.sock.settimeout(PATIENCE_SECONDS)
            connection.sock.connect((connection.host, connection.port))
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read()[:500].decode()}")
        yield answer
    finally:
        connection.close()


def frames(answer):
    """Reads the JSON of a stream's frames."""
    is_done = False
    for line in answer:
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif line.startswith(b"data: "):
            frame = json.loads(line[6:])
            if "error" in frame:
                raise RuntimeError(f"in the stream: {frame['error']}")
            yield frame
    assert is_done, "the stream ended without [DONE]"


def completion(address, prompt, tokens=40, model="paced"):
    """Streams a greedy completion; returns its text and how many tokens `usage` counts."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}
    parts, usage = [], None
    with posted(address, body) as answer:
        for frame in frames(answer):
            parts += [choice["text"] for choice in frame["choices"]]
            usage = frame.get("usage") or usage
    return "".join(parts), usage["prompt_tokens"], usage["completion_tokens"]


def add(client, value=1, timeout=PATIENCE_SECONDS):
    """Asks `simple` for a sum and a difference."""
    left = triton.InferInput("INPUT0", [1, 16], "INT32")
    right = triton.InferInput("INPUT1", [1, 16], "INT32")
    left.set_data_from_numpy(np.full((1, 16), value, np.int32))
    right.set_data_from_numpy(np.full((1, 16), 2, np.int32))
    answer = client.infer("simple", [left, right], client_timeout=timeout)
    assert (answer.as_numpy("OUTPUT0") == value + 2).all()
    assert (answer.as_numpy("OUTPUT1") == value - 2).all()


def total(server, name, label=""):
    """Returns the sum of all series of a name, or of those with a label."""
    lines = [line for line in page(server).splitlines() if not line.startswith("#") and label in line]
    of = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(float(line.rsplit(" ", 1)[1]) for line in of)


class Load:
    """Asks without a pause, from several threads, until it is left, and counts what came of it."""

    def __init__(self, threads):
        self.done, self.failed, self.slowest = 0, [], 0.0
        self.is_over, self.counting = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def asker(self, number):
        """Gives, for a thread and as long as it runs, what it does again and again."""
        raise NotImplementedError

    def _run(self, number):
        with self.asker(number) as ask:
            while not self.is_over.is_set():
                started = time.monotonic()
                try:
                    ask()
                    with self.counting:
                        self.done += 1
                except Exception as error:  # whatever a client would see
                    self.failed.append(f"{type(error).__name__}: {error}")
                with self.counting:
                    self.slowest = max(self.slowest, time.monotonic() - started)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def goes_on(self):
        """Waits until as much is done as was not even begun before."""
        before = self.done
        eventually("the load goes on", lambda: self.done > before + len(self.threads))

    def check(self):
        """Asserts that no client saw anything."""
        assert not self.failed, (len(self.failed), self.failed[:3])


class Streams(Load):
    """Greedy texts, each compared with the undisturbed text of its prompt."""

    def __init__(self, server, threads=6, tokens=40, model="paced"):
        super().__init__(threads)
        self.server, self.tokens, self.model, self.wrong = server, tokens, model, []
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            texts = pool.map(lambda prompt: completion(server.http, prompt, tokens, model), PROMPTS)
            self.expected = dict(zip(PROMPTS, texts))
        assert len(set(self.expected.values())) == len(PROMPTS), "prompts have texts of their own"

    @contextlib.contextmanager
    def asker(self, number):
        chance = random.Random(number)

        def ask():
            prompt = chance.choice(PROMPTS)
            text = completion(self.server.http, prompt, self.tokens, self.model)
            if text != self.expected[prompt]:
                self.wrong.append((text, self.expected[prompt]))

        yield ask

    def check(self):
        super().check()
        assert not self.wrong, (len(self.wrong), self.wrong[:1])

    def __str__(self):
        return (f"{self.done} texts, {len(self.wrong)} wrong, {len(self.failed)} failed, "
                f"slowest {self.slowest:.1f} s")


class Sums(Load):
    """Tensor requests."""

    def __init__(self, server, threads=2):
        super().__init__(threads)
        self.server = server

    @contextlib.contextmanager
    def asker(self, number):
        with triton.InferenceServerClient(self.server.address) as client:
            def ask():
                add(client, self.done % 1000)
                time.sleep(0.005)

            yield ask

    def __str__(self):
        return f"{self.done} sums, {len(self.failed)} failed, slowest {self.slowest:.1f} s"
