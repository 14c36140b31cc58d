"""Mock workers: many in one process, with what tokens cost and adapters by name."""

import concurrent.futures
import time

import pytest

from conftest import running, sdk_of
from patience import eventually
from test_cluster import client_of, frontend, is_ready, joined, streamed, worker

USER = [{"role": "user", "content": "Count"}]


def test_a_hundred_workers_are_one_process_and_a_hundred_workers(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery) as front:
        with worker(discovery, "--mock=loras=first+second,blocks=256", "--mock-workers", "100", models=[]) as fleet:
            eventually("all joined", lambda: joined(front) == 100)
            with client_of(front) as client:
                for model in ("mock", "first", "second"):
                    eventually(model, lambda: is_ready(client, model))
            texts = {model: streamed(front, model)[0] for model in ("mock", "first", "second")}
            assert len(set(texts.values())) == 3, "an adapter has words of its own"
            with concurrent.futures.ThreadPoolExecutor(32) as pool:
                answers = list(pool.map(lambda _: streamed(front, "mock", tokens=5), range(400)))
            assert {usage.completion_tokens for _, usage in answers} == {5}
            assert len({text for text, _ in answers}) == 1
            with sdk_of(front) as sdk:
                models = {model.id: getattr(model, "parent", None) for model in sdk.models.list()}
            assert models == {"mock": None, "first": "mock", "second": "mock"}
            fleet.terminate()
            eventually("it ends", lambda: not fleet.is_running())
            assert fleet.process.returncode == 0
        eventually("all left", lambda: joined(front, "worker left") >= 100)


def test_tokens_take_their_time():
    def seconds(server, model, tokens, prompt="a"):
        with sdk_of(server) as sdk:
            began = time.monotonic()
            answer = sdk.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0)
            assert answer.usage.completion_tokens == tokens
            return time.monotonic() - began

    costs = "prefill_us=10000,decode_us=200000"
    builtins = [f"slow=mock,{costs}", f"quick=mock,{costs},speedup=10"]
    with running("--no-default-model", *(part for spec in builtins for part in ("--builtin", spec))) as server:
        # The ratios leave seconds for what takes milliseconds; the quicker ones are tried three
        # times, because other work on the machine only ever adds to a time.
        slow = seconds(server, "slow", 10)
        assert slow > 9 * 0.2 - 0.01
        assert min(seconds(server, "quick", 10) for _ in range(3)) < slow / 2
        first = seconds(server, "slow", 1, "b" * 200)
        assert first > 2
        again = min(seconds(server, "slow", 1, "b" * 200) for _ in range(3))
        assert again < first / 2, "the prompt is in the prefix cache"


@pytest.mark.parametrize("arguments, told", [
    (["--mock=pace=1"], "no setting is called `pace`"),
    (["--mock=speedup=0"], "speedup"),
    (["--mock=blocks=0"], "blocks"),
    (["--mock=prefill_us=x"], "prefill_us"),
    (["--mock-workers", "2"], "--mock"),
    (["--mock", "--mock-workers", "2", "--worker-address", "127.0.0.1:7999"], "--mock-workers"),
])
def test_a_wrong_setting_is_named(tmp_path, arguments, told):
    with pytest.raises(RuntimeError, match=told):
        with worker(f"file://{tmp_path}", *arguments, models=[]):
            pass
