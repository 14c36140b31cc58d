"""All processes of a fleet are restarted, one after the other, and no client sees it."""

import contextlib
import random
import socket
import time

from chaos import PROMPTS, Streams, completion
from conftest import Server
from test_chaos import several, start, tell, wait_for  # noqa: F401 - `tell` is a fixture


class Balancer:
    """Calls a frontend that says it is ready, and another one if nothing came of that."""

    def __init__(self, fronts):
        self.fronts, self.again = fronts, 0

    def call(self, chance, ask):
        for _ in range(50):
            ready = [front for front in list(self.fronts) if self._is_ready(front)]
            if not ready:
                time.sleep(0.05)
                continue
            front = chance.choice(ready)
            try:
                return ask(front)
            except ConnectionError:
                # Nothing of an answer had come.
                self.again += 1
        raise RuntimeError("no frontend is ready")

    def _is_ready(self, front):
        try:
            with socket.create_connection(front.http.rsplit(":", 1), 5) as connection:
                connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n"
                                   b"connection: close\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False


class Balanced(Streams):
    """Texts over HTTP, behind a balancer."""

    def __init__(self, fronts):
        super().__init__(fronts[0])
        self.balancer = Balancer(fronts)

    @contextlib.contextmanager
    def asker(self, number):
        chance = random.Random(number)

        def ask():
            prompt = chance.choice(PROMPTS)
            text = self.balancer.call(chance, lambda front: completion(front.http, prompt))
            if text != self.expected[prompt]:
                self.wrong.append((text, self.expected[prompt]))

        yield ask


def ended(server):
    """Ends a role by its signal."""
    server.terminate()
    assert server.process.wait(60) == 0, "".join(server.log[-20:])


def test_a_rolling_restart_fails_nobody(tmp_path, tell):  # noqa: F811
    discovery = f"file://{tmp_path}"
    door = lambda: Server("--discovery", discovery, role="frontend")
    fronts = [door(), door()]
    try:
        with several(discovery, 3) as workers:
            for front in fronts:
                wait_for(front, 3)
            with Balanced(fronts) as texts:
                for place, worker in enumerate(workers):
                    ended(worker)
                    workers[place] = start(discovery)
                for place, front in enumerate(fronts):
                    ended(front)
                    fronts[place] = door()
                    wait_for(fronts[place], 3)
                time.sleep(1)
            tell(f"rolling restart of 3 workers and 2 frontends: {texts}, {texts.balancer.again} "
                 "connections tried elsewhere")
            texts.check()
            assert texts.done > 30
    finally:
        for front in fronts:
            front.stop()
