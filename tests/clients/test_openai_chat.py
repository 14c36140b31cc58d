"""Chat completions by OpenAI's own client: every option, whole and as a stream."""

import asyncio
import json

import openai
import pytest

from conftest import sdk_of
from patience import PATIENCE_SECONDS

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def chat(client, model, messages=QUESTION, **options):
    options = {"temperature": 0, "max_completion_tokens": 24, **options}
    return client.chat.completions.create(model=model, messages=messages, **options)


def text(answer, index=0):
    return answer.choices[index].message.content


def streamed(client, model, **options):
    """Returns the chunks of a stream."""
    return list(chat(client, model, stream=True, **options))


def joined(chunks, index=0):
    """Returns the text of one choice of a stream."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices
                   if choice.index == index)


def test_a_chat_is_answered(sdk):
    answer = chat(sdk, "smollm")
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == "smollm" and answer.created > 1_700_000_000
    assert answer.system_fingerprint
    [choice] = answer.choices
    assert "Paris" in choice.message.content and choice.message.role == "assistant"
    assert choice.message.refusal is None and choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens > 5 and 0 < usage.completion_tokens <= 24
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_a_stream_says_what_the_whole_answer_says(sdk):
    for options in ({}, {"temperature": 1, "seed": 11}, {"temperature": 0.8, "seed": 3, "n": 2}):
        whole = chat(sdk, "smollm", **options)
        chunks = streamed(sdk, "smollm", stream_options={"include_usage": True}, **options)
        for choice in whole.choices:
            assert joined(chunks, choice.index) == choice.message.content
            [finish] = [one.finish_reason for chunk in chunks for one in chunk.choices
                        if one.index == choice.index and one.finish_reason]
            assert finish == choice.finish_reason
        assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_the_option_a_stream_has_no_usage(actor):
    chunks = streamed(actor, "hello")
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_streams_helper_puts_an_answer_together(actor):
    with actor.chat.completions.stream(model="hello", messages=QUESTION,
                                       stream_options={"include_usage": True}) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert "".join(deltas) == "Hello, world." and len(deltas) > 1
    assert [event.content for event in events if event.type == "content.done"] == ["Hello, world."]
    final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello, world."
    assert final.choices[0].finish_reason == "stop" and final.usage.completion_tokens > 0


def test_the_async_client_streams_many_at_once(scripted):
    async def one(client, model):
        stream = await client.chat.completions.create(
            model=model, messages=QUESTION, stream=True, temperature=0, max_tokens=40)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        options = {"base_url": f"http://{scripted.http}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            calls = [one(client, model) for model in ["hello", "party", "org/name"] * 8]
            told = await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_SECONDS)
            whole = await client.chat.completions.create(model="hello", messages=QUESTION)
            async with client.chat.completions.stream(model="party", messages=QUESTION) as stream:
                helped = await stream.get_final_completion()
            names = [model.id async for model in client.models.list()]
        return told, whole, helped, names

    told, whole, helped, names = asyncio.run(all_of_them())
    assert told == ["Hello, world.", "Grüße 🎉!", "Hi."] * 8
    assert text(whole) == "Hello, world." and text(helped) == "Grüße 🎉!"
    assert "org/name" in names


def test_n_gives_so_many_answers(sdk):
    answer = chat(sdk, "smollm", n=3, temperature=1.2, seed=5, max_completion_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens > 12


@pytest.mark.parametrize("stop, expected", [
    ("world", "Hello, "),
    (["absent", "lo, w"], "Hel"),
    (["zzz", "o", ", "], "Hell"),
    (["Hello, world.!"], "Hello, world."),
    (None, "Hello, world."),
    ([], "Hello, world."),
])
def test_a_stop_ends_the_text_and_is_not_in_it(actor, stop, expected):
    answer = chat(actor, "hello", stop=stop)
    assert text(answer) == expected and answer.choices[0].finish_reason == "stop"
    assert joined(streamed(actor, "hello", stop=stop)) == expected


def test_a_stop_is_found_across_a_models_own_tokens(sdk):
    whole = text(chat(sdk, "smollm"))
    middle = len(whole) // 2
    stop = whole[middle - 2:middle + 2]
    assert text(chat(sdk, "smollm", stop=[stop])) == whole[:whole.index(stop)]


def test_a_seed_repeats_an_answer(sdk):
    def told(seed):
        return text(chat(sdk, "smollm", temperature=1.5, seed=seed))

    assert told(7) == told(7)
    assert len({told(seed) for seed in (1, 2, 3)}) > 1
    assert told(-5) == told(-5), "the API has signed seeds"


def test_log_probabilities_come_with_their_bytes(actor, sdk):
    answer = chat(actor, "party", logprobs=True, top_logprobs=2)
    scores = answer.choices[0].logprobs.content
    raw = b"".join(bytes(score.bytes) for score in scores)
    assert raw.decode().startswith("Grüße 🎉!"), "a token may be a part of a character"
    for score in scores:
        assert score.logprob <= 0 and len(score.top_logprobs) == 2
        assert score.top_logprobs[0].logprob >= score.top_logprobs[1].logprob
        assert score.top_logprobs[0].bytes == score.bytes, "the likeliest was drawn"
    chunks = streamed(sdk, "smollm", logprobs=True, top_logprobs=3)
    whole = chat(sdk, "smollm", logprobs=True, top_logprobs=3).choices[0].logprobs.content
    told = [score for chunk in chunks for choice in chunk.choices if choice.logprobs
            for score in choice.logprobs.content]
    assert [score.token for score in told] == [score.token for score in whole]
    assert [score.logprob for score in told] == pytest.approx([one.logprob for one in whole], abs=1e-4)
    bare = chat(sdk, "smollm", logprobs=True).choices[0].logprobs.content
    assert all(score.top_logprobs == [] for score in bare)


def test_a_bias_forces_and_forbids_tokens(actor):
    forced = chat(actor, "hello", logit_bias={str(ord("z")): 100}, max_completion_tokens=3)
    assert text(forced) == "zzz"
    forbidden = text(chat(actor, "hello", logit_bias={str(ord("H")): -100}))
    assert not forbidden.startswith("H")


def test_both_names_of_the_limit_count_and_the_newer_one_wins(actor):
    create = actor.chat.completions.create
    for options in ({"max_tokens": 4}, {"max_completion_tokens": 4},
                    {"max_tokens": 9, "max_completion_tokens": 4}):
        answer = create(model="words", messages=QUESTION, **options)
        assert answer.usage.completion_tokens == 4, options
        assert answer.choices[0].finish_reason == "length"


def test_without_a_limit_a_text_ends_at_the_context(actor):
    answer = actor.chat.completions.create(
        model="short", messages=[{"role": "user", "content": "a"}])
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens in (64, 65)


def test_penalties_change_the_text(sdk):
    def told(**options):
        return text(chat(sdk, "smollm", max_completion_tokens=40,
                         extra_body={"ignore_eos": True}, **options))

    assert told(frequency_penalty=2.0) != told() != told(presence_penalty=2.0)


@pytest.mark.parametrize("options", [
    {"metadata": {"purpose": "test"}},
    {"user": "somebody"},
    {"store": True},
    {"store": False},
    {"safety_identifier": "x"},
    {"service_tier": "auto"},
    {"prompt_cache_key": "k"},
    {"verbosity": "low"},
    {"modalities": ["text"]},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "none"},
    {"response_format": {"type": "text"}},
    {"top_p": 0.9},
    {"parallel_tool_calls": True},
    {"extra_body": {"priority": 3}},
    {"extra_body": {"top_k": 1}},
    {"extra_body": {"min_p": 0.1}},
    {"extra_body": {"repetition_penalty": 1.1}},
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    {"extra_body": {"a_field_of_tomorrow": {"x": [1]}}},
])
def test_options_are_taken(actor, options):
    assert text(chat(actor, "hello", **options)) == "Hello, world."


def test_top_k_and_min_p_leave_only_the_likeliest(sdk):
    greedy = text(chat(sdk, "smollm"))
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert text(chat(sdk, "smollm", temperature=2, extra_body=extra)) == greedy, extra


def test_more_of_vllms_options(actor):
    def told(**extra):
        return text(chat(actor, "hello", extra_body=extra))

    assert told(stop_token_ids=[ord(",")]) == "Hello"
    assert told(stop="world", include_stop_str_in_output=True) == "Hello, world"
    answer = chat(actor, "hello", extra_body={"return_token_ids": True})
    assert bytes(answer.choices[0].model_extra["token_ids"][:5]) == b"Hello"
    answer = chat(actor, "hello", max_completion_tokens=20,
                  extra_body={"min_tokens": 20, "ignore_eos": True})
    assert answer.usage.completion_tokens == 20


@pytest.mark.parametrize("messages", [
    [{"role": "developer", "content": "Be brief."}, *QUESTION],
    [{"role": "system", "content": "Be brief."}, *QUESTION],
    [{"role": "user", "content": [{"type": "text", "text": "What is"},
                                  {"type": "text", "text": " this?"}]}],
    [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *QUESTION],
    [*QUESTION, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "Sure?"}],
    [*QUESTION, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
     {"role": "user", "content": "Why?"}],
    [{"role": "user", "name": "anna", "content": "Hello"}],
], ids=["developer", "system", "parts", "system in parts", "turns", "refusal", "name"])
def test_every_form_of_a_message_is_taken(actor, sdk, messages):
    assert text(chat(actor, "hello", messages)) == "Hello, world."
    assert chat(sdk, "smollm", messages, max_completion_tokens=2).usage.completion_tokens > 0


def test_parts_are_one_text(sdk):
    whole = [{"role": "user", "content": "What is the capital of France?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert text(chat(sdk, "smollm", parts)) == text(chat(sdk, "smollm", whole))


def test_the_final_message_can_be_gone_on_with(sdk):
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    assert "Paris" in text(chat(sdk, "smollm", messages, extra_body=extra))


def test_reasoning_is_apart_from_the_answer(actor):
    answer = chat(actor, "thinker", max_completion_tokens=200)
    message = answer.choices[0].message
    assert message.content == "The answer."
    assert message.model_extra["reasoning_content"].strip() == "Let me see."
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    chunks = streamed(actor, "thinker", max_completion_tokens=200,
                      stream_options={"include_usage": True})
    assert joined(chunks) == message.content
    thoughts = [choice.delta.model_extra.get("reasoning_content") or ""
                for chunk in chunks for choice in chunk.choices]
    assert "".join(thoughts) == message.model_extra["reasoning_content"]
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == details.reasoning_tokens


def test_a_json_object_is_json(sdk):
    answer = chat(sdk, "smollm", [{"role": "user", "content": "Give me a JSON object of a city."}],
                  response_format={"type": "json_object"}, max_completion_tokens=200,
                  frequency_penalty=0.5)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(answer)), dict)
    else:
        assert text(answer).lstrip().startswith("{")


def test_the_raw_response_has_the_requests_name(scripted):
    with sdk_of(scripted, default_headers={"x-request-id": "mine-1"}) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="hello", messages=QUESTION)
        assert raw.headers["x-request-id"] == "mine-1" == raw.request_id
        assert raw.parse().choices[0].message.content == "Hello, world."
    with sdk_of(scripted) as client:
        names = {chat(client, "hello")._request_id for _ in range(2)}
        assert None not in names and len(names) == 2
        with client.chat.completions.with_streaming_response.create(
                model="hello", messages=QUESTION, stream=True) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.request_id
