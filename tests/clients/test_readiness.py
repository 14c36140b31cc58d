"""One readiness for all doors of a frontend: they change together when workers go and come."""

import contextlib
import threading

import grpc
import httpx
import pytest
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from chaos import add
from conftest import running
from patience import eventually
from test_cluster import client_of, frontend, joined

SIMPLE = ["--no-default-model", "--builtin", "simple=add_sub"]
WORDS = ["--no-default-model", "--builtin", "words=mock"]
SERVICE = "inference.GRPCInferenceService"
STATUS = health_pb2.HealthCheckResponse
# A request for a model without workers fails soon, and the model is forgotten.
IMPATIENT = ["--worker-wait-ms", "300"]


class Watch(threading.Thread):
    """Follows what gRPC health tells of a name, by its changes."""

    def __init__(self, stub, name):
        super().__init__(daemon=True)
        self.told = []
        self.call = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        self.start()

    def run(self):
        with contextlib.suppress(grpc.RpcError):
            for answer in self.call:
                if self.told[-1:] != [answer.status]:
                    self.told.append(answer.status)


class Doors:
    """Asks every door of a frontend whether it, and a model, is ready."""

    def __init__(self, front, stack):
        self.front = front
        self.client = stack.enter_context(client_of(front))
        self.web = stack.enter_context(tritonclient.http.InferenceServerClient(front.http))
        channel = stack.enter_context(grpc.insecure_channel(front.address))
        self.health = health_pb2_grpc.HealthStub(channel)

    def check(self, name):
        """Returns what Check says; a name that nobody knows yet is not served either."""
        try:
            asked = self.health.Check(health_pb2.HealthCheckRequest(service=name))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND, error
            return False
        assert asked.status in (STATUS.SERVING, STATUS.NOT_SERVING)
        return asked.status == STATUS.SERVING

    def rest(self, path, field):
        """Returns what the body of a REST route says, whose status has to agree with it."""
        answer = httpx.get(f"http://{self.front.http}{path}")
        is_ready = answer.json()[field]
        assert answer.status_code == (200 if is_ready else 400), answer.text
        return is_ready

    def health_page(self):
        """Returns the models that `/health` names; its status has to agree with them."""
        answer = httpx.get(f"http://{self.front.http}/health")
        body = answer.json()
        healthy = (200, "healthy") if body["models"] else (503, "unhealthy")
        assert (answer.status_code, body["status"]) == healthy, answer.text
        return body["models"]

    def server(self):
        """Returns what each door says of the server."""
        return {
            "ServerReady": self.client.is_server_ready(),
            "Check": self.check(""),
            "Check of the service": self.check(SERVICE),
            "/v2/health/ready": self.rest("/v2/health/ready", "ready"),
            "Triton's HTTP client": self.web.is_server_ready(),
            "/health": bool(self.health_page()),
        }

    def model(self, name):
        """Returns what each door says of a model."""
        return {
            "ModelReady": self.client.is_model_ready(name),
            "Check": self.check(name),
            "REST": self.rest(f"/v2/models/{name}/ready", "ready"),
            "Triton's HTTP client": self.web.is_model_ready(name),
            "/health": name in self.health_page(),
        }

    def become(self, is_ready, *models):
        """Waits until all doors say the same of the server and of models, and they go on so."""
        def states():
            return [self.server(), *map(self.model, models)]

        expected = [dict.fromkeys(state, is_ready) for state in states()]
        eventually(f"all doors say {is_ready}", lambda: states() == expected)
        for _ in range(5):
            assert states() == expected

    def is_live(self):
        """Returns whether the process says that it works, whatever it serves."""
        lives = [httpx.get(f"http://{self.front.http}{path}").status_code
                 for path in ("/live", "/v2/health/live")]
        return self.client.is_server_live() and self.web.is_server_live() and lives == [200, 200]


def worker(discovery, models):
    return running("--discovery", discovery, *models, role="worker")


@pytest.mark.parametrize("end", ["stop", "terminate"])
def test_all_doors_follow_the_last_worker_that_goes_and_the_next_one_that_comes(tmp_path, end):
    discovery = f"file://{tmp_path}"
    with contextlib.ExitStack() as stack:
        doors = Doors(stack.enter_context(frontend(discovery, *IMPATIENT)), stack)
        assert doors.is_live()
        doors.become(False, "simple")
        watches = [Watch(doors.health, name) for name in ("", SERVICE)]
        eventually("they are told", lambda: all(
            watch.told == [STATUS.NOT_SERVING] for watch in watches))
        with worker(discovery, SIMPLE) as first:
            doors.become(True, "simple")
            add(doors.client)
            watches.append(Watch(doors.health, "simple"))
            eventually("it is told", lambda: watches[-1].told == [STATUS.SERVING])
            getattr(first, end)()
            doors.become(False, "simple")
        assert doors.is_live()
        with pytest.raises(InferenceServerException):
            add(doors.client)
        with worker(discovery, SIMPLE):
            doors.become(True, "simple")
            add(doors.client)
            rounds = [STATUS.SERVING, STATUS.NOT_SERVING, STATUS.SERVING]
            for watch, began in zip(watches, ([STATUS.NOT_SERVING], [STATUS.NOT_SERVING], [])):
                eventually("its watcher is told", lambda: watch.told == began + rounds)


def test_a_model_without_workers_is_not_ready_beside_one_that_is(tmp_path):
    discovery = f"file://{tmp_path}"
    with contextlib.ExitStack() as stack:
        front = stack.enter_context(frontend(discovery, *IMPATIENT))
        doors = Doors(front, stack)
        other = stack.enter_context(worker(discovery, WORDS))
        with worker(discovery, SIMPLE):
            eventually("both joined", lambda: joined(front) == 2)
            doors.become(True, "simple", "words")
        eventually("one is gone", lambda: not any(doors.model("simple").values()))
        for _ in range(5):
            assert not any(doors.model("simple").values())
            assert all(doors.model("words").values()) and all(doors.server().values())
        other.stop()
        doors.become(False, "simple", "words")
