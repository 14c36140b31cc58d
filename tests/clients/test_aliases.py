"""Other names of models: who has one, and what happens when its holder goes."""

import concurrent.futures
import threading
import time

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from chaos import total
from conftest import running, sdk_of
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from test_cluster import client_of, frontend, is_ready, joined, worker

PROMPT = [{"role": "user", "content": "Say"}]


def version(discovery, name, reply, *aliases):
    """Runs a worker whose model answers with its own words, under other names too."""
    flags = [part for alias in aliases for part in ("--alias", f"{alias}={name}")]
    return worker(discovery, *flags,
                  models=["--no-default-model", "--builtin", f"{name}=mock,reply={reply}"])


def said(sdk, model):
    chat = sdk.chat.completions.create(model=model, messages=PROMPT, max_tokens=3, temperature=0)
    return chat.choices[0].message.content


def index(front):
    with client_of(front) as client:
        return {model.name for model in client.get_model_repository_index().models}


def test_a_model_is_served_by_its_other_names_too(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, version(discovery, "m-1", "one", "live", "best"), \
            client_of(front) as client, sdk_of(front) as sdk:
        eventually("it is served", lambda: all(
            is_ready(client, name) for name in ("m-1", "live", "best")))
        assert {said(sdk, name) for name in ("m-1", "live", "best")} == {"one"}
        assert client.get_model_config("live").config.name == "live"
        assert index(front) == {"m-1", "live", "best"}
        # All of its names share one threshold.
        path = f"http://{front.http}/busy_threshold"
        change = {"model": "live", "waiting_requests_threshold": 7}
        assert httpx.post(path, json=change).status_code == 200
        told = httpx.get(path).json()["thresholds"]
        limits = {one["model"]: one["waiting_requests_threshold"] for one in told}
        assert limits == {"m-1": 7, "live": 7, "best": 7}


def test_an_alias_goes_to_the_next_model_without_a_gap(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, sdk_of(front) as sdk, client_of(front) as client, \
            version(discovery, "m-1", "one", "live") as old:
        eventually("the old one is served", lambda: is_ready(client, "live"))
        with version(discovery, "m-2", "two", "live"):
            eventually("the new one is served", lambda: is_ready(client, "m-2"))
            assert said(sdk, "live").startswith("one"), "the older one has the name"
            answers, stop = [], threading.Event()

            def ask():
                while not stop.is_set():
                    answers.append(said(sdk, "live"))

            thread = threading.Thread(target=ask)
            thread.start()
            try:
                eventually("it is asked", lambda: "one" in answers)
                old.terminate()
                eventually("the new one has the name", lambda: "two" in answers)
            finally:
                stop.set()
                thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "no request failed"
            assert answers == sorted(answers), "first the old one, then the new one"
            eventually("the old name is gone", lambda: index(front) == {"m-2", "live"})


def test_a_model_has_its_name_when_the_alias_is_gone_and_keeps_it(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front, sdk_of(front) as sdk, client_of(front) as client, \
            version(discovery, "m-1", "one", "m") as old:
        eventually("the alias is served", lambda: is_ready(client, "m"))
        with version(discovery, "m", "own"):
            eventually("it is told", lambda: joined(front, "is not served") == 1)
            assert said(sdk, "m") == "one", "the older one has the name"
            old.terminate()
            eventually("the model has its name", lambda: said(sdk, "m") == "own")
            eventually("the other one is gone", lambda: index(front) == {"m"})
            end = time.monotonic() + 1
            while time.monotonic() < end:
                assert said(sdk, "m") == "own"


def summed(client, model, value, **options):
    made = triton.InferInput("INPUT", [1, 1], "INT32")
    made.set_data_from_numpy(np.array([[value]], np.int32))
    return client.infer(model, [made], sequence_id=9, **options).as_numpy("OUTPUT").item()


def test_what_is_open_at_a_model_stays_when_it_gets_another_name(tmp_path):
    discovery = f"file://{tmp_path}"
    sums = lambda name: worker(discovery, "--alias", f"live={name}", models=[
        "--no-default-model", "--builtin", f"{name}=sequence"])
    with frontend(discovery) as front, client_of(front) as client, sums("old") as old:
        eventually("the old one is served", lambda: is_ready(client, "live"))
        with sums("new"):
            eventually("the new one is served", lambda: is_ready(client, "new"))
            assert summed(client, "new", 1, sequence_start=True) == 1
            old.terminate()
            # The frontend has to have heard of it, or it waits for the one that is gone.
            eventually("the name is the new one's", lambda: (
                old.process.poll() is not None and is_ready(client, "live")
                and joined(front, "conflict of cards is over") == 1))
            assert summed(client, "live", 10, sequence_start=True) == 10
            assert summed(client, "new", 2) == 3
            [counted] = client.get_inference_statistics("new").model_stats
            assert counted.inference_count == 2


def test_a_model_that_lost_an_alias_waits_for_its_worker(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--worker-wait-ms", str(NEVER_MS)) as front, sdk_of(front) as sdk, \
            client_of(front) as client, version(discovery, "m-1", "one", "live") as old:
        eventually("the old one is served", lambda: is_ready(client, "live"))
        with version(discovery, "m-2", "two", "live"):
            eventually("the new one is served", lambda: is_ready(client, "m-2"))
            old.stop()
            eventually("the other one has the name",
                       lambda: joined(front, "conflict of cards is over") == 1)
            eventually("it is asked", lambda: said(sdk, "live") == "two")
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(said, sdk, "m-1")
                eventually("it waits", lambda: total(front, "stator_worker_waits") == 1)
                assert not waiting.done()
                with version(discovery, "m-1", "one", "live"):
                    assert waiting.result(PATIENCE_SECONDS) == "one"
            assert said(sdk, "live") == "two"


@pytest.mark.parametrize("alias, fragment", [
    ("live", "--alias: expected ALIAS=MODEL, got `live`"),
    ("m=m", "--alias: expected ALIAS=MODEL, got `m=m`"),
    ("=m", "--alias: expected ALIAS=MODEL"),
    ("a=m,a=n", "--alias: `a` is given twice"),
])
def test_an_alias_that_is_none_stops_the_start(tmp_path, alias, fragment):
    with pytest.raises(RuntimeError, match=fragment), \
            version(f"file://{tmp_path}", "m", "x"), \
            running("--discovery", f"file://{tmp_path}", "--no-default-model", "--builtin", "m=mock",
                    "--alias", alias, role="worker"):
        pass


def test_an_alias_of_nobody_is_told(tmp_path):
    with worker(f"file://{tmp_path}", "--alias", "a=nobody",
                models=["--no-default-model", "--builtin", "m=mock"]) as one:
        assert any("--alias names a model that is not there" in line for line in one.log)
        with pytest.raises(InferenceServerException), \
                triton.InferenceServerClient(one.address) as client:
            client.get_model_metadata("a")
