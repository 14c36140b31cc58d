"""All processes of a fleet are restarted, one after the other, and no client sees it."""

import contextlib
import random
import socket
import time

import tritonclient.grpc as triton

from chaos import PROMPTS, Streams, Sums, add, completion, total
from conftest import Server, doors_at, free_port
from patience import PATIENCE_SECONDS, eventually
from test_chaos import several, start, tell, wait_for  # noqa: F401 - `tell` is a fixture


class Balancer:
    """Calls a frontend that says it is ready, and another one if nothing came of that."""

    def __init__(self, fronts):
        self.fronts, self.again = fronts, 0

    def call(self, chance, ask):
        for _ in range(50):
            front = chance.choice(eventually("a frontend is ready", self._ready))
            try:
                return ask(front)
            except ConnectionError:
                # Nothing of an answer had come.
                self.again += 1
        raise RuntimeError("no frontend answers")

    def _ready(self):
        return [front for front in list(self.fronts) if self._is_ready(front)]

    def _is_ready(self, front):
        try:
            with socket.create_connection(front.http.rsplit(":", 1), PATIENCE_SECONDS) as connection:
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


class Shared(Sums):
    """Tensor requests of one client, whose gRPC library shares them out among frontends. Only what
    no frontend has seen does it try again by itself."""

    def __init__(self, ports):
        super().__init__(None, threads=4)
        # A list of addresses is no name of a host, which is what the library takes it for.
        options = [("grpc.default_authority", "stator"), ("grpc.lb_policy_name", "round_robin"),
                   ("grpc.min_reconnect_backoff_ms", 100),
                   ("grpc.initial_reconnect_backoff_ms", 100),
                   ("grpc.max_reconnect_backoff_ms", 500)]
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.client = triton.InferenceServerClient(f"ipv4:{addresses}", channel_args=options)

    @contextlib.contextmanager
    def asker(self, number):
        def ask():
            add(self.client, self.done % 1000)
            time.sleep(0.002)

        yield ask

    def reach(self, front):
        """Waits until requests come to a frontend."""
        count = lambda: total(front, "stator_requests_total", 'model="simple"')
        before = count()
        eventually("the frontend is asked for sums", lambda: count() > before)

    def __exit__(self, *error):
        super().__exit__(*error)
        self.client.close()


def ended(server):
    """Ends a role by its signal."""
    server.terminate()
    assert server.wait() == 0, "".join(server.log[-20:])


def test_a_rolling_restart_fails_nobody(tmp_path, tell):  # noqa: F811
    discovery, ports = f"file://{tmp_path}", [free_port(), free_port()]
    door = lambda port: Server("--discovery", discovery, role="frontend", doors=doors_at(port))
    fronts = [door(port) for port in ports]
    try:
        with several(discovery, 3) as workers:
            for front in fronts:
                wait_for(front, 3)
            with Balanced(fronts) as texts, Shared(ports) as sums:
                for front in fronts:
                    sums.reach(front)
                for place, worker in enumerate(workers):
                    ended(worker)
                    workers[place] = start(discovery)
                for place, port in enumerate(ports):
                    ended(fronts[place])
                    fronts[place] = door(port)
                    wait_for(fronts[place], 3)
                    sums.reach(fronts[place])
                eventually("both got on", lambda: texts.done > 30 and sums.done > 100)
                texts.goes_on()
            tell(f"rolling restart of 3 workers and 2 frontends: {texts}, {texts.balancer.again} "
                 f"connections tried elsewhere; {sums}")
            texts.check()
            sums.check()
            assert texts.done > 30 and sums.done > 100
    finally:
        for front in fronts:
            front.stop()
