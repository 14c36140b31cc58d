"""The router: a prompt goes to the worker that has it cached."""

import concurrent.futures

import pytest

from conftest import sdk_of
from patience import eventually
from test_cluster import frontend, joined, worker

WORKERS = 4
# A prompt of 2,000 tokens for the mock model, whose tokens are bytes.
PROMPT = "The same beginning. " * 100


def cached(front, prompt, model="mock"):
    """Returns how many tokens of a prompt its worker had cached."""
    with sdk_of(front) as sdk:
        answer = sdk.completions.create(model=model, prompt=prompt, max_tokens=2, temperature=0)
        return answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens


def fleet_of(discovery):
    return worker(discovery, "--mock=blocks=4096,context_length=4096", "--mock-workers", str(WORKERS), models=[])


@pytest.mark.parametrize("flags", [[], ["--no-router-kv-events"]])
def test_a_prompt_that_comes_again_is_computed_once(tmp_path, flags):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--router-mode", "kv", *flags) as front, fleet_of(discovery):
        eventually("all joined", lambda: joined(front) == WORKERS)
        length, first = cached(front, PROMPT)
        assert length >= 2000 and first == 0
        # Events take a moment; a prompt that is found once stays found.
        eventually("it is found", lambda: cached(front, PROMPT)[1] > 1900)
        assert [cached(front, PROMPT)[1] > 1900 for _ in range(8)] == [True] * 8
        longer = PROMPT + "And something new behind it."
        assert 1900 < cached(front, longer)[1] < 2100


def test_one_after_the_other_computes_it_on_every_worker(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--router-mode", "round-robin") as front, fleet_of(discovery):
        eventually("all joined", lambda: joined(front) == WORKERS)
        found = [cached(front, PROMPT)[1] > 1900 for _ in range(2 * WORKERS)]
        assert found == [False] * WORKERS + [True] * WORKERS


@pytest.mark.parametrize("mode", ["random", "power-of-two", "kv"])
def test_every_mode_spreads_requests_that_share_nothing(tmp_path, mode):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--router-mode", mode) as front, fleet_of(discovery) as workers:
        eventually("all joined", lambda: joined(front) == WORKERS)
        prompts = [f"{number} " * 20 for number in range(200)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda prompt: cached(front, prompt), prompts))
        assert all(length > 0 for length, _ in answers)
        assert workers.is_running()
