"""Completions of plain prompts by OpenAI's own client."""

import asyncio
import math

import openai
import pytest

from conftest import sdk_of

PROMPT = "The capital of France is"


def complete(client, model, prompt=PROMPT, **options):
    options = {"temperature": 0, "max_tokens": 8, **options}
    return client.completions.create(model=model, prompt=prompt, **options)


def texts(answer):
    return [choice.text for choice in answer.choices]


def tokens_of(client, model, text, **options):
    """Returns the ids of a text's tokens."""
    body = {"model": model, "prompt": text, **options}
    return client.post("/tokenize", body=body, cast_to=object)["tokens"]


def test_a_prompt_is_continued(sdk):
    answer = complete(sdk, "smollm")
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.model == "smollm" and answer.system_fingerprint
    [choice] = answer.choices
    assert "Paris" in choice.text and choice.finish_reason == "length"
    assert choice.index == 0 and choice.logprobs is None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_without_a_limit_16_tokens_are_drawn(actor):
    answer = actor.completions.create(model="words", prompt="x")
    assert answer.usage.completion_tokens == 16


def test_all_forms_of_a_prompt_agree(sdk):
    tokens = tokens_of(sdk, "smollm", PROMPT)
    one = texts(complete(sdk, "smollm"))
    assert texts(complete(sdk, "smollm", tokens)) == one
    assert texts(complete(sdk, "smollm", [PROMPT])) == one
    assert texts(complete(sdk, "smollm", [PROMPT, PROMPT])) == one * 2
    assert texts(complete(sdk, "smollm", [tokens, tokens[:3]]))[:1] == one


def test_a_batch_answers_in_the_order_of_prompts_and_choices(sdk):
    prompts = [PROMPT, "Once upon a time, there was a"]
    single = [texts(complete(sdk, "smollm", prompt, n=2, temperature=1, seed=4))
              for prompt in prompts]
    batch = complete(sdk, "smollm", prompts, n=2, temperature=1, seed=4)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert texts(batch) == single[0] + single[1]
    assert batch.usage.completion_tokens == 32


def test_best_of_may_only_be_n(actor):
    assert len(complete(actor, "words", n=2, best_of=2).choices) == 2
    assert len(complete(actor, "words", best_of=1).choices) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        complete(actor, "words", n=1, best_of=3)
    assert caught.value.param == "best_of"


def test_an_echo_begins_with_the_prompt(sdk, actor):
    plain = texts(complete(sdk, "smollm"))[0]
    assert texts(complete(sdk, "smollm", echo=True)) == [PROMPT + plain]
    assert texts(complete(actor, "hello", list(b"ab"), echo=True, max_tokens=20)) == ["abHello, world."]
    chunks = complete(sdk, "smollm", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == PROMPT + plain


def test_log_probabilities_are_four_lists_of_one_length(sdk):
    answer = complete(sdk, "smollm", logprobs=2)
    [choice] = answer.choices
    lists = choice.logprobs
    assert "".join(lists.tokens) == choice.text
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == 8
    assert len(lists.top_logprobs) == 8 and all(len(top) == 2 for top in lists.top_logprobs)
    assert all(logprob <= 0 for logprob in lists.token_logprobs)
    for token, logprob, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs):
        assert top[token] == pytest.approx(logprob)
    offsets = [sum(map(len, lists.tokens[:index])) for index in range(8)]
    assert lists.text_offset == offsets
    bare = complete(sdk, "smollm", logprobs=0).choices[0].logprobs
    assert bare.token_logprobs == pytest.approx(lists.token_logprobs, abs=1e-4)


def test_log_probabilities_of_a_stream_join_to_the_same_lists(sdk):
    whole = complete(sdk, "smollm", logprobs=1, echo=True).choices[0].logprobs
    chunks = list(complete(sdk, "smollm", logprobs=1, echo=True, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == whole.tokens
    assert [offset for part in parts for offset in part.text_offset] == whole.text_offset


def test_a_text_is_scored_without_drawing(sdk):
    """What evaluations do: echo, log-probabilities and no new tokens."""
    answer = complete(sdk, "smollm", PROMPT + " Paris", echo=True, logprobs=1, max_tokens=0)
    [choice] = answer.choices
    assert choice.text == PROMPT + " Paris" and answer.usage.completion_tokens == 0
    lists = choice.logprobs
    assert "".join(lists.tokens) == choice.text
    assert lists.token_logprobs[0] is None and lists.top_logprobs[0] is None
    assert len(lists.tokens) == answer.usage.prompt_tokens
    right = sum(lists.token_logprobs[1:])
    wrong = complete(sdk, "smollm", PROMPT + " green", echo=True, logprobs=1, max_tokens=0)
    assert math.isfinite(right)
    assert right > sum(wrong.choices[0].logprobs.token_logprobs[1:])
    drawn = complete(sdk, "smollm", echo=True, logprobs=1).choices[0].logprobs
    known = len(tokens_of(sdk, "smollm", PROMPT))
    assert drawn.token_logprobs[1:known] == pytest.approx(lists.token_logprobs[1:known], abs=1e-3)
    batch = complete(sdk, "smollm", [PROMPT, "a b"], echo=True, logprobs=1, max_tokens=0)
    assert texts(batch) == [PROMPT, "a b"]


def test_a_stream_says_what_the_whole_answer_says(sdk):
    for options in ({}, {"temperature": 1.1, "seed": 9}):
        whole = complete(sdk, "smollm", **options)
        chunks = list(complete(sdk, "smollm", stream=True,
                               stream_options={"include_usage": True}, **options))
        assert "".join(one.text for chunk in chunks for one in chunk.choices) == texts(whole)[0]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        finishes = [one.finish_reason for chunk in chunks for one in chunk.choices]
        assert finishes[-1] == "length" and set(finishes[:-1]) <= {None}


def test_stops_seeds_and_biases_count_here_too(actor, sdk):
    assert texts(complete(actor, "hello", stop=[", "], max_tokens=20)) == ["Hello"]
    biased = complete(actor, "hello", logit_bias={"122": 100}, max_tokens=2)
    assert texts(biased) == ["zz"]
    seeded = {texts(complete(sdk, "smollm", temperature=1.4, seed=2))[0] for _ in range(2)}
    assert len(seeded) == 1
    penalised = complete(sdk, "smollm", "sea sea sea sea", frequency_penalty=2.0, presence_penalty=2.0)
    assert texts(penalised) != texts(complete(sdk, "smollm", "sea sea sea sea"))
    assert complete(actor, "hello", user="me", top_p=0.5).choices


def test_a_suffix_is_refused(actor):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(actor, "hello", suffix="the end")
    assert caught.value.param == "suffix" and "suffix" in caught.value.message
    assert complete(actor, "hello", suffix="").choices


@pytest.mark.parametrize("prompt, param", [
    ([], "prompt"),
    (7, "prompt"),
    ({"a": 1}, "prompt"),
    ([["a"]], "prompt"),
    ([1.5], "prompt"),
    ([-1], "prompt"),
    ([[]], "prompt"),
    (["a", [1]], "prompt"),
    (["a", None], "prompt"),
    (["a"] * 300, "prompt"),
])
def test_what_is_no_prompt_is_refused(actor, prompt, param):
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post("/completions", body={"model": "hello", "prompt": prompt}, cast_to=object)
    assert (caught.value.param or "").startswith(param), caught.value


def test_a_token_that_the_vocabulary_lacks_is_refused(actor):
    with pytest.raises(openai.BadRequestError):
        complete(actor, "hello", [10**6])


def test_the_async_client_completes(scripted):
    async def run():
        options = {"base_url": f"http://{scripted.http}/v1", "api_key": "none", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            whole = await client.completions.create(model="hello", prompt="x", temperature=0)
            stream = await client.completions.create(model="hello", prompt="x", temperature=0,
                                                     stream=True)
            told = "".join([chunk.choices[0].text async for chunk in stream])
        return whole.choices[0].text, told

    assert asyncio.run(run()) == ("Hello, world.", "Hello, world.")


def test_the_api_key_does_not_matter_where_none_is_needed(scripted):
    with sdk_of(scripted, api_key="sk-anything") as client:
        assert complete(client, "hello").choices
