"""What a frontend does about workers that are away, silent or busy."""

import concurrent.futures
import contextlib
import signal
import threading
import time

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2_grpc

from chaos import PACED, Streams, Sums, add, completion, posted, total
from conftest import Server, halt, running
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from test_cluster import client_of, frontend, is_ready, joined, told
from wire import text_request

# However long workers take to start, requests wait for them.
FOREVER = ["--worker-wait-ms", str(NEVER_MS)]


def worker(discovery, *arguments, models=PACED):
    return running("--discovery", discovery, *models, *arguments, role="worker")


def post(server, path, body):
    return httpx.post(f"http://{server.http}{path}", json=body)


def test_a_restart_of_the_only_worker_fails_nobody(tmp_path):
    discovery = f"file://{tmp_path}"
    start = lambda: Server("--discovery", discovery, *PACED, role="worker")
    with frontend(discovery, *FOREVER) as front, contextlib.ExitStack() as stack:
        only = start()
        stack.callback(lambda: only.stop())
        with client_of(front) as client:
            for model in ("paced", "simple"):
                eventually("the model is ready", lambda: is_ready(client, model))
        with Streams(front, threads=3) as streams, Sums(front) as sums:
            for how in ("terminate", "stop", "terminate"):
                streams.goes_on()
                getattr(only, how)()
                assert only.wait() in (0, -signal.SIGKILL)
                eventually("all wait for a worker", lambda: total(front, "stator_worker_waits") == 5)
                only = start()
            streams.goes_on()
        streams.check()
        sums.check()
        assert total(front, "stator_worker_waits") == 0


@contextlib.contextmanager
def without_worker(discovery, *flags):
    """A frontend of a model whose worker is gone."""
    with frontend(discovery, *flags) as front, client_of(front) as client:
        with worker(discovery) as only:
            eventually("the model is ready", lambda: is_ready(client, "paced"))
            only.stop()
        eventually("it is gone", lambda: not is_ready(client, "paced"))
        yield front


def ask(front):
    return post(front, "/v1/completions", {"model": "paced", "prompt": "x"}).status_code


def test_waiting_for_a_worker_has_an_end(tmp_path):
    with without_worker(f"file://{tmp_path}", "--worker-wait-ms", "1000") as front:
        asked = time.monotonic()
        assert ask(front) == 503
        assert time.monotonic() - asked >= 1
        eventually("it is forgotten", lambda: ask(front) == 404)


def test_waiting_for_a_worker_has_a_bound(tmp_path):
    discovery, bound = f"file://{tmp_path}", ["--max-worker-waits", "2"]
    with without_worker(discovery, *FOREVER, *bound) as front, \
            concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, front) for _ in range(6)]
        eventually("all others are answered", lambda: sum(one.done() for one in asked) >= 4)
        assert total(front, "stator_worker_waits") == 2
        with worker(discovery):
            assert sorted(one.result() for one in asked) == [200] * 2 + [503] * 4


def test_a_silent_worker_is_asked_and_gone_on_without(tmp_path):
    discovery = f"file://{tmp_path}"
    flags = ["--canary-interval-ms", "300", "--canary-timeout-ms", "3000"]
    models = ["--no-default-model", "--builtin", "paced=mock,pace_ms=10"]
    silent, again = "worker is not called: it does not answer", "worker answers again"
    with frontend(discovery, *flags, *FOREVER, "--router-mode", "round-robin") as front, \
            worker(discovery, models=models) as one, worker(discovery, models=models) as other, \
            client_of(front) as client:
        eventually("both are there", lambda: joined(front) == 2)
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        halt(one.process)
        eventually("the silent one is found", lambda: told(front, one, silent))
        for _ in range(6):
            assert completion(front.http, "x", 10)[2] == 10
        halt(other.process)
        eventually("the other one is as well", lambda: told(front, other, silent))
        eventually("nobody is called", lambda: not is_ready(client, "paced"))
        one.process.send_signal(signal.SIGCONT)
        # One whose connection was given up meanwhile comes back as another.
        eventually("it answers again",
                   lambda: told(front, one, again) or told(front, one, "worker is called again"))
        assert completion(front.http, "x", 10)[2] == 10
        other.process.send_signal(signal.SIGCONT)
        assert total(front, "stator_failed_canaries_total") >= 2
        # No request of a client is made of them.
        assert total(front, "stator_generated_tokens_total") == 70
        eventually("no call is left", lambda: total(front, "stator_worker_calls") == 0)


def test_canaries_leave_tensor_models_alone(tmp_path):
    discovery, flags = f"file://{tmp_path}", ["--canary-interval-ms", "200"]
    models = ["--no-default-model", "--builtin", "simple=add_sub"]
    with frontend(discovery, *flags) as front, worker(discovery, models=models), \
            client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "simple"))
        time.sleep(1)
        add(client)
        assert is_ready(client, "simple")
        assert total(front, "stator_failed_canaries_total") == 0


@contextlib.contextmanager
def crowded(front, only, count=6):
    """Long texts at a worker, of which all but one wait."""
    is_over, before = threading.Event(), total(front, "stator_generated_tokens_total")

    def hold():
        body = {"model": "paced", "prompt": "long", "max_tokens": 8000, "stream": True}
        with posted(front.http, body):
            is_over.wait(PATIENCE_SECONDS)

    def are_there(count):
        has_begun = total(front, "stator_generated_tokens_total") > before
        names = ("stator_running_sequences", "stator_queue_depth_requests")
        return has_begun and sum(total(only, name) for name in names) >= count

    threads = []
    try:
        for number in range(1, count + 1):
            threads.append(threading.Thread(target=hold))
            threads[-1].start()
            # The threshold is for what comes when these are there.
            eventually(f"{number} are there", lambda: are_there(number))
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("overload", ["503", "529"])
def test_a_busy_model_refuses_with_a_hint_and_thresholds_change_live(tmp_path, overload):
    discovery = f"file://{tmp_path}"
    flags = ["--busy-waiting-requests", "100", "--openai-overload-status", overload,
             "--openai-keep-alive-ms", "200"]
    with frontend(discovery, *flags) as front, \
            worker(discovery, "--max-running-sequences", "1") as only, client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        read = httpx.get(f"http://{front.http}/busy_threshold").json()["thresholds"]
        assert read == [{"model": "paced", "active_decode_blocks_threshold": None,
                         "active_prefill_tokens_threshold": None,
                         "waiting_requests_threshold": 100}]
        with crowded(front, only):
            eventually("the frontend hears that they wait",
                       lambda: total(front, "stator_queue_depth_requests") >= 3)
            lower = {"model": "paced", "waiting_requests_threshold": 2}
            assert post(front, "/busy_threshold", lower).json()["waiting_requests_threshold"] == 2
            with grpc.insecure_channel(front.address) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                with pytest.raises(grpc.RpcError) as error:
                    stub.ModelInfer(text_request("paced", "x", max_tokens=1), timeout=PATIENCE_SECONDS)
                assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "requests wait, the threshold is 2" in error.value.details()
                hint = error_details_pb2.RetryInfo()
                assert rpc_status.from_call(error.value).details[0].Unpack(hint)
                assert hint.retry_delay.seconds == 1
            chat = {"model": "paced", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
            for path, status in (("/v1/chat/completions", int(overload)), ("/v1/messages", 529)):
                answer = post(front, path, chat)
                assert (answer.status_code, answer.headers["retry-after"]) == (status, "1"), path
            assert not is_ready(client, "simple") or add(client) is None, "tensors are not texts"
            higher = {"model": "paced", "waiting_requests_threshold": None}
            assert post(front, "/busy_threshold", higher).status_code == 200
            with posted(front.http, {"model": "paced", "prompt": "x", "stream": True}):
                pass
        eventually("they are gone", lambda: total(only, "stator_queue_depth_requests") == 0)


def test_thresholds_stay_when_all_workers_go_and_come(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--worker-wait-ms", "100") as front, client_of(front) as client:
        thresholds = lambda: httpx.get(f"http://{front.http}/busy_threshold").json()["thresholds"]
        for expected in (None, 0.25):
            with worker(discovery):
                eventually("the model is ready", lambda: is_ready(client, "paced"))
                assert thresholds()[0]["active_decode_blocks_threshold"] == expected
                change = {"model": "paced", "active_decode_blocks_threshold": 0.25}
                assert post(front, "/busy_threshold", change).status_code == 200
            eventually("the model is forgotten", lambda: thresholds() == [])


def test_prompts_that_wait_make_a_model_busy(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--busy-prefill-tokens", "10") as front, \
            worker(discovery, "--max-running-sequences", "1") as only, client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        assert completion(front.http, "a prompt of more than ten tokens", 2)[2] == 2
        # The first of them has its first output, and four tokens of each of the others wait.
        with crowded(front, only, 4):
            body = {"model": "paced", "prompt": "x", "max_tokens": 1}
            answer = post(front, "/v1/completions", body)
            assert answer.status_code == 503 and "prompt tokens wait" in answer.text
