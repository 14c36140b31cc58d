"""Prefill and decode workers: the text is that of one worker, and no prompt is computed twice."""

import concurrent.futures
import contextlib
import random
import time

import pytest

from chaos import completion, total
from conftest import Server, running, sdk_of
from patience import PATIENCE_SECONDS, eventually
from programs import planes
from real_models import real_model
from security import Authority
from test_cluster import client_of, frontend, is_ready, joined, worker
from test_planes import nats  # noqa: F401 - it is a fixture
from test_up import up
from ways import TELLING, came, late
from ways import ways as connections

STORY = ("Once upon a time there was a small town by the sea, where every house had a blue door and "
         "every door had a story. The fishermen went out before the sun and came back with the tide. ")
PROMPTS = [f"{number}. Chapter: " + STORY * (1 + number % 3) for number in range(6)]
MOCK = ["--no-default-model", "--builtin", "paced=mock,pace_ms=4,prefill_us=20"]


def real():
    """Returns the arguments of whoever has the real model."""
    return [f"smollm={real_model()}", "--kv-cache-mib", "64", "--threads", "1"]


def start(discovery, role, models=MOCK, arguments=()):
    flags = ("--discovery", discovery, "--role", role, *TELLING)
    return Server(*flags, *models, *arguments, role="worker")


def are_called(*workers):
    """Waits until a frontend has begun to call workers: it knows of them, and of their parts."""
    eventually("all are called", lambda: all(map(connections, workers)))


@contextlib.contextmanager
def pair(discovery, models=MOCK, model="paced", minimum=16, arguments=(), each=1):
    """A frontend and workers of both parts, which may be replaced."""
    flags = ["--prefill-min-tokens", str(minimum), "--migration-limit", "20", "--max-attempts", "10"]
    with frontend(discovery, *flags, *arguments, *TELLING) as front:
        parts = {role: [start(discovery, role, models, arguments) for _ in range(each)]
                 for role in ("prefill", "decode")}
        try:
            with client_of(front) as client:
                eventually("all workers joined", lambda: joined(front) >= 2 * each)
                eventually("the model is ready", lambda: is_ready(client, model))
            are_called(*parts["prefill"], *parts["decode"])
            yield front, parts["prefill"], parts["decode"]
        finally:
            for server in parts["prefill"] + parts["decode"]:
                server.stop()


def ways(front):
    names = ("split", "short", "kind", "ended", "no_prefill", "no_decode")
    counts = {way: total(front, "stator_disaggregated_requests_total", f'way="{way}"') for way in names}
    return {way: count for way, count in counts.items() if count}


def transferred(decode):
    """Returns blocks, bytes and fallbacks of a decode worker."""
    return tuple(total(decode, f"stator_kv_transfer_{name}_total")
                 for name in ("blocks", "bytes", "fallbacks"))


def essence(answer):
    """What is the same wherever a text is computed."""
    usage = answer.usage
    choices = [(choice.index, getattr(choice, "text", None) or choice.message.content,
                choice.finish_reason, choice.logprobs) for choice in answer.choices]
    return choices, usage.prompt_tokens, usage.completion_tokens


def completions(server, **options):
    with sdk_of(server) as sdk:
        return essence(sdk.completions.create(model="smollm", **{"max_tokens": 24, **options}))


@pytest.fixture(scope="module")
def alone():
    """One process with the real model."""
    with running(*real()) as server:
        yield server


def test_texts_are_those_of_one_process_and_prompts_are_computed_once(tmp_path, alone):
    cases = [dict(prompt=prompt, temperature=0) for prompt in PROMPTS]
    cases += [dict(prompt=PROMPTS[1], temperature=0.9, seed=seed, logprobs=2) for seed in (1, 2)]
    cases += [dict(prompt=PROMPTS[2], temperature=0, frequency_penalty=1.2, stop=[" the"]),
              dict(prompt=PROMPTS[3], temperature=0, max_tokens=1),
              dict(prompt=PROMPTS[4], temperature=1, seed=7, extra_body={"guided_regex": "[a-z ]{20,40}[.]"})]
    with pair(f"file://{tmp_path}", real(), "smollm") as (front, [prefill], [decode]):
        for case in cases:
            assert completions(front, **case) == completions(alone, **case), case
        blocks, size, fallbacks = transferred(decode)
        counts = ways(front)
        # What one process holds of a prompt is not asked for again.
        assert blocks > 25 and size == blocks * (360 << 10) and fallbacks == 0, (blocks, size, fallbacks)
        assert counts == {"split": len(cases) - 1, "ended": 1}
        assert total(prefill, "stator_kv_exported_blocks_total") == blocks
        assert total(decode, "stator_kv_imported_blocks_total") == blocks
        assert total(decode, "stator_engine_prefill_tokens_total") <= 17 * len(cases), "only last blocks"
        # Several texts, and short ones, are one worker's.
        for case in (dict(prompt=PROMPTS[5], n=2, temperature=0.9, seed=3), dict(prompt="Hi", temperature=0)):
            assert completions(front, **case) == completions(alone, **case), case
        assert ways(front) == {**counts, "kind": 1, "short": 1}


def test_chats_stream_through_both_parts(tmp_path, alone):
    def chat(server, turns, **options):
        with sdk_of(server) as sdk:
            chunks = list(sdk.chat.completions.create(
                model="smollm", messages=turns, max_tokens=30, stream=True,
                stream_options={"include_usage": True}, **options))
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        usage = chunks[-1].usage
        return text, usage.prompt_tokens, usage.completion_tokens

    with pair(f"file://{tmp_path}", real(), "smollm") as (front, _, [decode]):
        turns = [{"role": "user", "content": STORY + "Who came back with the tide?"}]
        for options in (dict(temperature=0), dict(temperature=0.7, seed=5)):
            for _ in range(2):
                answer = chat(front, turns, **options)
                assert answer == chat(alone, turns, **options)
            turns += [{"role": "assistant", "content": answer[0]}, {"role": "user", "content": "And then?"}]
        blocks, _, fallbacks = transferred(decode)
        assert blocks >= 3 and fallbacks == 0


def test_a_real_text_outlives_both_parts(tmp_path, alone):
    discovery, chance = f"file://{tmp_path}", random.Random(3)
    expected = {prompt: completion(alone.http, prompt, 40, "smollm") for prompt in PROMPTS}
    with pair(discovery, real(), "smollm") as (front, prefill, decode):
        for round in range(4):
            parts, role = ((prefill, "prefill"), (decode, "decode"))[round % 2]
            with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
                texts = {prompt: pool.submit(completion, front.http, prompt, 40, "smollm")
                         for prompt in PROMPTS}
                time.sleep(chance.uniform(0.1, 2))
                parts[0].stop()
                for prompt, text in texts.items():
                    assert text.result(PATIENCE_SECONDS) == expected[prompt], (role, round)
            before = joined(front)
            parts[0] = start(discovery, role, real())
            eventually("it is back", lambda: joined(front) > before)


def test_killed_workers_cost_no_text(tmp_path):
    discovery, chance = f"file://{tmp_path}", random.Random(5)
    with pair(discovery, each=2) as (front, prefill, decode):
        expected = {prompt: completion(front.http, prompt) for prompt in PROMPTS}
        assert len(set(expected.values())) > 1
        for round in range(16):
            parts, role = ((prefill, "prefill"), (decode, "decode"))[round % 2]
            with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
                texts = {prompt: pool.submit(completion, front.http, prompt) for prompt in PROMPTS}
                time.sleep(chance.uniform(0, 0.25))
                victim = chance.randrange(2)
                parts[victim].stop()
                for prompt, text in texts.items():
                    assert text.result(PATIENCE_SECONDS) == expected[prompt], (role, round)
            parts[victim] = start(discovery, role)
        assert total(front, "stator_migrations_total") > 0
        print(f"16 kills: {ways(front)}")


def test_each_part_does_it_all_while_the_other_is_away(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--prefill-min-tokens", "16") as front, client_of(front) as client:
        prefill = start(discovery, "prefill")
        try:
            eventually("a prefill worker serves", lambda: is_ready(client, "paced"))
            expected = completion(front.http, PROMPTS[0])
            assert ways(front) == {"no_decode": 1}
            with contextlib.ExitStack() as stack:
                decode = start(discovery, "decode")
                stack.callback(decode.stop)
                eventually("both are there", lambda: joined(front) == 2)
                are_called(decode)
                assert completion(front.http, PROMPTS[0]) == expected
                assert ways(front) == {"no_decode": 1, "split": 1}
                assert transferred(decode) == (len(PROMPTS[0]) // 16, 0, 0), "a mock's blocks have no bytes"
                prefill.stop()
                eventually("it is gone", lambda: joined(front, "worker left") == 1)
                assert completion(front.http, PROMPTS[0]) == expected
                assert completion(front.http, PROMPTS[1]) == completion(front.http, PROMPTS[1])
                assert ways(front) == {"no_decode": 1, "split": 1}
        finally:
            prefill.stop()


def test_aggregated_workers_go_on_with_prompts_too(tmp_path):
    discovery = f"file://{tmp_path}"
    with frontend(discovery, "--prefill-min-tokens", "16") as front, \
            worker(discovery, models=MOCK) as whole, client_of(front) as client:
        eventually("it serves", lambda: is_ready(client, "paced"))
        expected = completion(front.http, PROMPTS[2])
        prefill = start(discovery, "prefill")
        try:
            eventually("both are there", lambda: joined(front) == 2)
            are_called(prefill)
            assert completion(front.http, PROMPTS[2]) == expected
            assert completion(front.http, PROMPTS[5])[2] == 40
            assert ways(front) == {"split": 2}
            blocks, _, fallbacks = transferred(whole)
            assert 0 < blocks < len(PROMPTS[5]) // 16 + 1 and fallbacks == 0, "it had one prompt"
        finally:
            prefill.stop()


def test_adapters_and_small_caches(tmp_path):
    models = ["--mock=prefill_us=5,loras=first+second,blocks=200"]
    with pair(f"file://{tmp_path}", models, "mock") as (front, [prefill], [decode]):
        with client_of(front) as client:
            for model in ("first", "second"):
                eventually(model, lambda: is_ready(client, model))
        texts = {model: completion(front.http, PROMPTS[0], model=model) for model in ("mock", "first", "second")}
        assert len({text for text, _, _ in texts.values()}) == 3
        # An adapter's blocks are its own.
        assert transferred(decode) == (3 * (len(PROMPTS[0]) // 16), 0, 0)
        # More prompts than either cache has room for: some blocks are given up before they are asked for.
        prompts = [f"{number:03} " + STORY * 3 for number in range(40)]
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            texts = list(pool.map(lambda prompt: completion(front.http, prompt, model="mock"), prompts * 2))
        assert texts[:40] == texts[40:]
        assert {(prompt, drawn) for _, prompt, drawn in texts} == {(len(prompts[0]), 40)}
        for server in (prefill, decode):
            eventually("nothing is left over", lambda: total(server, "stator_kv_blocks_used") == 0
                       and total(server, "stator_open_calls") == 0)


def test_blocks_come_over_nats_too(tmp_path, nats):  # noqa: F811
    arguments = planes(nats, "nats", "grpc")
    model, before = "smollm", nats.carried()
    with pair(f"file://{tmp_path}", real(), model, arguments=arguments) as (front, [prefill], [decode]):
        assert completion(front.http, PROMPTS[0], model=model)[2] == 40
        blocks, size, fallbacks = transferred(decode)
        assert blocks > 1 and fallbacks == 0
        assert ways(front) == {"split": 1}
        # Whoever asked for blocks did it by a connection to the prefill worker.
        came(prefill, "nats", front, decode)
        came(decode, "nats", front)
        eventually("NATS carried the blocks",
                   lambda: nats.carried() - before > size or late(prefill, decode))


def test_blocks_come_by_tls_or_not_at_all(tmp_path):
    authority = Authority(tmp_path, "right")
    files = authority.issue("worker")
    shows = ["--worker-tls-cert", files[0], "--worker-tls-key", files[1]]
    inside = [*shows, "--worker-tls-client-ca", authority.pem]
    discovery = f"file://{tmp_path}/fleet"
    with frontend(discovery, "--prefill-min-tokens", "16", "--worker-tls-ca", authority.pem, *shows) as front, \
            client_of(front) as client, contextlib.ExitStack() as stack:
        keep = lambda server: stack.callback(server.stop) and server
        prefill = keep(start(discovery, "prefill", arguments=inside))
        believing = keep(start(discovery, "decode", arguments=[*inside, "--worker-tls-ca", authority.pem]))
        eventually("both are there", lambda: joined(front) == 2 and is_ready(client, "paced"))
        are_called(prefill, believing)
        expected = completion(front.http, PROMPTS[0])
        assert transferred(believing) == (len(PROMPTS[0]) // 16, 0, 0)
        believing.stop()
        eventually("it is gone", lambda: joined(front, "worker left") == 1)
        bare = keep(start(discovery, "decode", arguments=inside))
        eventually("another one is there", lambda: joined(front) == 3)
        are_called(bare)
        assert completion(front.http, PROMPTS[0]) == expected
        assert transferred(bare) == (0, 0, 1)
        completion(front.http, PROMPTS[1])
        assert transferred(bare) == (0, 0, 2)
        # It is told with the other's address, and once.
        told = lambda: [line for line in list(bare.log) if "KV blocks do not come" in line]
        eventually("it is told", told)
        assert len(told()) == 1 and prefill.address in told()[0], told()
        assert prefill.is_running()


def test_one_command_runs_both_parts(tmp_path):
    flags = ["--prefill-workers", "1", "--decode-workers", "2", "--prefill-min-tokens", "16"]
    with up(tmp_path, *MOCK, *flags) as fleet:
        fleet.joined(3)
        assert completion(fleet.http, PROMPTS[0])[2] == 40
        for name in ("prefill-0", "decode-0", "decode-1"):
            role = name.partition("-")[0]
            assert f"--role={role}" in open(f"/proc/{fleet.pid(name)}/cmdline").read().split("\0")
        assert not fleet.told("process started", replica="worker-0")


@pytest.mark.parametrize("flags, fragment", [
    (["--prefill-workers", "1"], "--decode-workers"),
    (["--prefill-workers", "1", "--decode-workers", "1", "--no-prefix-cache"], "--no-prefix-cache"),
])
def test_half_a_fleet_is_refused(tmp_path, flags, fragment):
    with up(tmp_path, *MOCK, *flags) as fleet:
        assert fleet.wait() != 0
        assert fragment in "".join(fleet.log), fleet.log


def test_a_part_without_a_prefix_cache_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="--role"):
        start(f"file://{tmp_path}", "decode", arguments=["--no-prefix-cache"])
