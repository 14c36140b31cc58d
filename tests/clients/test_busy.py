"""Fleets whose workers have no KV blocks to spare refuse texts until blocks are free again."""

import contextlib

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2_grpc

from chaos import completion, frames, posted, total
from conftest import running
from patience import PATIENCE_SECONDS, eventually
from test_cluster import client_of, frontend, is_ready, joined
from wire import text_request

# A text's prompt takes 57 of the 100 blocks, and its tokens take a minute: nothing here waits for
# its end.
BLOCKS = 100
MODELS = ["--no-default-model", "--builtin", f"paced=mock,pace_ms=100,blocks={BLOCKS}"]
LONG = {"model": "paced", "prompt": "x" * 900, "max_tokens": 600, "stream": True}
SHORT = {"model": "paced", "prompt": "y", "max_tokens": 1}


def worker(discovery):
    return running("--discovery", discovery, *MODELS, role="worker")


def post(server, path, body):
    return httpx.post(f"http://{server.http}{path}", json=body)


@contextlib.contextmanager
def filled(front):
    """A text that holds more than half of a worker's blocks, and is let go of at the end."""
    with posted(front.http, LONG) as answer:
        next(frames(answer))
        yield


def is_refused(front, threshold):
    """Returns whether a text is refused now because of a threshold on blocks."""
    answer = post(front, "/v1/completions", SHORT)
    if answer.status_code == 200:
        return False
    assert f"of {BLOCKS} KV blocks are in use, the threshold is {threshold}" in answer.text
    return True


def is_taken(front):
    return post(front, "/v1/completions", SHORT).status_code == 200


def check_refusals(front, overload):
    """Checks what each door says, and when to come again."""
    chat = {"model": "paced", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    asked = (("/v1/completions", SHORT, overload), ("/v1/chat/completions", chat, overload),
             ("/v1/messages", chat, 529))
    for path, body, status in asked:
        answer = post(front, path, body)
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "1"), path
    with grpc.insecure_channel(front.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(text_request("paced", "x", max_tokens=1), timeout=PATIENCE_SECONDS)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.value
    hint = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(error.value).details[0].Unpack(hint)
    assert hint.retry_delay.seconds == 1


@pytest.mark.parametrize("overload", [503, 529])
def test_a_fleet_without_kv_blocks_refuses_texts_until_some_are_free(tmp_path, overload):
    discovery = f"file://{tmp_path}"
    flags = ["--busy-kv-share", "0.5", "--openai-overload-status", str(overload)]
    with frontend(discovery, *flags) as front, worker(discovery) as only, client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        read = httpx.get(f"http://{front.http}/busy_threshold").json()["thresholds"]
        assert read[0]["active_decode_blocks_threshold"] == 0.5
        assert is_taken(front)
        with filled(front):
            assert total(only, "stator_kv_blocks_used") > BLOCKS / 2
            eventually("the frontend hears of it", lambda: is_refused(front, 0.5))
            check_refusals(front, overload)
        eventually("its blocks are free", lambda: is_taken(front))
        assert completion(front.http, "z", 2)[2] == 2


def test_a_threshold_on_kv_blocks_is_set_raised_and_taken_away_live(tmp_path):
    discovery = f"file://{tmp_path}"

    def set_to(share):
        change = {"model": "paced", "active_decode_blocks_threshold": share}
        answer = post(front, "/busy_threshold", change)
        assert answer.json()["active_decode_blocks_threshold"] == share, answer.text

    with frontend(discovery) as front, worker(discovery) as only, client_of(front) as client:
        eventually("the model is ready", lambda: is_ready(client, "paced"))
        with filled(front):
            assert is_taken(front), "without a threshold nothing is refused"
            set_to(0.3)
            eventually("it is busy", lambda: is_refused(front, 0.3))
            set_to(0.99)
            assert total(only, "stator_kv_blocks_used") < 0.99 * BLOCKS and is_taken(front)
            set_to(0.3)
            assert is_refused(front, 0.3)
            set_to(None)
            assert is_taken(front)
            set_to(0.3)
            assert is_refused(front, 0.3)
        eventually("its blocks are free", lambda: is_taken(front))


def test_a_model_has_kv_blocks_as_long_as_one_of_its_workers_has(tmp_path):
    discovery = f"file://{tmp_path}"
    # In turns, so that each long text has a worker of its own.
    flags = ["--busy-kv-share", "0.5", "--router-mode", "round-robin"]
    with frontend(discovery, *flags) as front, worker(discovery) as one, worker(discovery) as two, \
            client_of(front) as client:
        eventually("both are there", lambda: joined(front) == 2 and is_ready(client, "paced"))
        computed = lambda each: total(each, "stator_engine_prefill_tokens_total")
        eventually("both are called", lambda: is_taken(front) and all(map(computed, (one, two))))
        used = lambda: [total(each, "stator_kv_blocks_used") > BLOCKS / 2 for each in (one, two)]
        with filled(front):
            assert sum(used()) == 1
            assert all(is_taken(front) for _ in range(4))
            with filled(front):
                assert all(used())
                eventually("both are full", lambda: is_refused(front, 0.5))
                assert "so are all 2 workers" in post(front, "/v1/completions", SHORT).text
            eventually("one is free again", lambda: is_taken(front))
