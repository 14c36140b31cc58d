"""The metrics tell what happened, with cancelled apart from failed."""

import contextlib

import grpc
import pytest

from conftest import running, sdk_of
from patience import eventually
from wire import Stream, floats, page, request, scrape, tensor, text_request

# What a scheduler counts in a process of its own; blocks of other workers are in test_disaggregated.py.
SCHEDULER = ("engine_steps", "engine_batched_sequences", "engine_prefill_tokens", "engine_decode_tokens",
             "prefix_cache_query_tokens", "prefix_cache_hit_tokens", "preempted_sequences", "draft_tokens",
             "draft_accepted_tokens", "kv_host_hit_blocks", "kv_disk_hit_blocks")


def requests_total(server, model, code, rpc="ModelInfer"):
    return scrape(server, f'stator_requests_total{{rpc="{rpc}",model="{model}",code="{code}"}}')


def test_requests_count_by_rpc_model_and_code(stub, server):
    before = [requests_total(server, "identity", code) for code in ["OK", "INVALID_ARGUMENT"]]
    good = request("identity", [tensor("INPUT0", "FP32", [1])], [floats(1)])
    stub.ModelInfer(good)
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("identity"))
    after = [requests_total(server, "identity", code) for code in ["OK", "INVALID_ARGUMENT"]]
    assert [b - a for a, b in zip(before, after)] == [1, 1]


def test_an_unknown_model_makes_no_series_of_its_own(stub, server):
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("a-name-nobody-serves"))
    assert "a-name-nobody-serves" not in page(server)
    assert requests_total(server, "", "NOT_FOUND") >= 1


def test_a_cancelled_request_is_not_a_failed_one(stub, server):
    before = requests_total(server, "mock", "CANCELLED", "ModelStreamInfer")
    stream = Stream(stub)
    stream.send(text_request("mock", "x", max_tokens=500,
                             extra=[tensor("stream", "BOOL", [1])], raw=[b"\x01"]))
    stream.next()
    stream.cancel()
    counted = lambda: requests_total(server, "mock", "CANCELLED", "ModelStreamInfer")
    eventually("it is counted", lambda: counted() == before + 1)


def test_tokens_and_their_times_are_counted(stub, server):
    names = ["stator_generated_tokens_total", "stator_time_to_first_token_seconds_count"]
    before = [scrape(server, f'{name}{{model="mock_fast"}}') for name in names]
    stub.ModelInfer(text_request("mock_fast", "hello", max_tokens=7))
    after = [scrape(server, f'{name}{{model="mock_fast"}}') for name in names]
    assert [b - a for a, b in zip(before, after)] == [7, 1]


def test_nothing_is_in_flight_at_rest(server):
    def in_flight():
        return [line for line in page(server).splitlines()
                if line.startswith("stator_requests_in_flight{") and not line.endswith(" 0")]

    # What a test before this one left may be on its way out.
    eventually("all is at rest", lambda: not in_flight())


def counts(server, model):
    """Returns what the scheduler of a model has done, by the counters' short names."""
    return {name: scrape(server, f'stator_{name}_total{{model="{model}"}}') for name in SCHEDULER}


def becomes(expected, read):
    """Waits until what is read is as expected: a scheduler counts a pass after it has answered."""
    eventually(f"{expected}", lambda: read() == expected)


def ask(server, model, *prompts, tokens=1, **options):
    """Asks for greedy completions of prompts; a mock has a token for each letter of them."""
    with sdk_of(server) as sdk:
        answer = sdk.completions.create(model=model, prompt=list(prompts), max_tokens=tokens,
                                        temperature=0, **options)
    return [choice.text for choice in answer.choices]


@contextlib.contextmanager
def mocks(*specs, arguments=()):
    """Runs a server of mocks, which have counted nothing yet."""
    builtins = [part for spec in specs for part in ("--builtin", spec)]
    with running("--no-default-model", *builtins, *arguments) as server:
        yield server


def test_passes_tokens_and_the_prefix_cache_are_counted():
    with mocks("words=mock") as server:
        expected = dict.fromkeys(SCHEDULER, 0)

        def grows(**by):
            for name, amount in by.items():
                expected[name] += amount
            becomes(expected, lambda: counts(server, "words"))

        becomes(expected, lambda: counts(server, "words"))
        ask(server, "words", "a" * 64, tokens=5)
        # The pass of the prompt gives the first token.
        grows(engine_steps=5, engine_batched_sequences=5, engine_prefill_tokens=64,
              engine_decode_tokens=4, prefix_cache_query_tokens=64)
        # Of four blocks all but the last are found: something has to be computed.
        ask(server, "words", "a" * 64, tokens=5)
        grows(engine_steps=5, engine_batched_sequences=5, engine_prefill_tokens=16,
              engine_decode_tokens=4, prefix_cache_query_tokens=64, prefix_cache_hit_tokens=48)
        # Three continuations share the pass of their prompt, and then each has a place.
        ask(server, "words", "b" * 40, tokens=5, n=3)
        grows(engine_steps=5, engine_batched_sequences=13, engine_prefill_tokens=40,
              engine_decode_tokens=12, prefix_cache_query_tokens=40)


def test_sequences_that_lose_their_blocks_are_counted():
    # Both texts need five blocks at their end, and there are eight.
    prompts = ["a" * 20, "b" * 20]
    with mocks("small=mock,blocks=8,pace_ms=2", "roomy=mock,pace_ms=2") as server:
        assert ask(server, "small", *prompts, tokens=60) == ask(server, "roomy", *prompts, tokens=60)
        becomes(True, lambda: counts(server, "small")["preempted_sequences"] > 0)
        assert counts(server, "roomy")["preempted_sequences"] == 0


def test_guesses_and_those_that_were_right_are_counted():
    reply = "so so so so so me me me me me so so so so so me me me me me"
    with mocks(f"echo=mock,reply={reply}", arguments=["--draft-tokens", "4"]) as server:
        assert ask(server, "echo", "x", tokens=100) == [reply]
        with_guesses = lambda: counts(server, "echo")
        becomes(True, lambda: with_guesses()["draft_accepted_tokens"] > 10)
        found = with_guesses()
        # Where the words change a guess is wrong.
        assert found["draft_tokens"] > found["draft_accepted_tokens"], found
        assert found["engine_steps"] < len(reply), found


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_blocks_that_come_back_are_counted_by_where_they_were(tmp_path, tier):
    flags = {"host": ["--kv-host-mib", "1"], "disk": ["--kv-disk-dir", str(tmp_path)]}[tier]
    with mocks("small=mock,blocks=8", arguments=flags) as server:
        hits = lambda: [counts(server, "small")[f"kv_{kind}_hit_blocks"] for kind in ("host", "disk")]
        becomes([0, 0], hits)
        # Each prompt has four blocks, so that the third one pushes out the first.
        for letter in "abca":
            ask(server, "small", letter * 64)
        becomes([3, 0] if tier == "host" else [0, 3], hits)
        becomes(48, lambda: counts(server, "small")["prefix_cache_hit_tokens"])


def test_tritons_metrics_stand_beside_ours(stub, server):
    def series(name, **labels):
        inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        return scrape(server, f"{name}{{{inside}}}")

    def all_counts():
        of = dict(model="batched", version="1")
        return (series("nv_inference_request_success", **of), series("nv_inference_count", **of),
                series("nv_inference_exec_count", **of),
                series("nv_inference_request_failure", reason="BACKEND", **of))

    row = tensor("INPUT0", "FP32", [3, 16])
    before = all_counts()
    for _ in range(2):
        stub.ModelInfer(request("batched", [row], [floats(*range(48))]))
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("batched"))
    assert [b - a for a, b in zip(before, all_counts())] == [2, 6, 2, 0]
    text = page(server)
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert f'nv_inference_{part}_duration_us{{model="batched",version="1"}} ' in text
    assert series("nv_inference_request_duration_us", model="batched", version="1") > 0
    assert 'nv_inference_pending_request_count{model="batched",version="1"} 0' in text
    for name in ("nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model"):
        assert f'{name}{{model="batched",version="1"}} 0' in text
    assert 0 <= scrape(server, "nv_cpu_utilization") <= 1
    assert 0 < scrape(server, "nv_cpu_memory_used_bytes") <= scrape(server, "nv_cpu_memory_total_bytes")
    assert text.endswith("# EOF\n")


def test_a_cancelled_request_has_tritons_reason(stub, server):
    name = 'nv_inference_request_failure{model="mock",reason="CANCELED",version="1"}'
    before = scrape(server, name)
    stream = Stream(stub)
    stream.send(text_request("mock", "x", max_tokens=500,
                             extra=[tensor("stream", "BOOL", [1])], raw=[b"\x01"]))
    stream.next()
    stream.cancel()
    eventually("it is counted", lambda: scrape(server, name) == before + 1)
