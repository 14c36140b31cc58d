"""Tools and structured answers by OpenAI's own client."""

import json
from typing import Literal

import openai
import pydantic
import pytest

QUESTION = [{"role": "user", "content": "How is the weather in Paris? Use the tool."}]


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties),
                  "additionalProperties": False}
    function = {"name": name, "description": f"Does {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = tool("get_weather", city={"type": "string", "enum": ["Paris", "Rome", "Oslo"]})
TIME = tool("get_time", zone={"type": "string", "enum": ["UTC", "CET"]})
SCRIPTED = tool("get_weather", city={"type": "string"})


class City(pydantic.BaseModel):
    name: Literal["Paris", "Rome"]
    is_capital: bool
    rank: Literal[1, 2, 3]


class Scripted(pydantic.BaseModel):
    city: str
    is_capital: bool


def ask(client, model, **options):
    options = {"temperature": 0, "max_completion_tokens": 300, "messages": QUESTION, **options}
    return client.chat.completions.create(model=model, **options)


def calls_of(answer):
    """Returns the calls as pairs of a name and its arguments."""
    calls = answer.choices[0].message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def collected(chunks):
    """Puts the calls of a stream together as clients do, and checks the form of their deltas."""
    calls, text, finish = {}, "", None
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or []:
                if delta.index not in calls:
                    assert delta.id and delta.type == "function" and delta.function.name
                    calls[delta.index] = [delta.id, delta.function.name, ""]
                else:
                    assert delta.id is None and delta.function.name is None
                calls[delta.index][2] += delta.function.arguments or ""
    assert list(calls) == list(range(len(calls)))
    return [(name, json.loads(arguments)) for _, name, arguments in calls.values()], text, finish


def test_a_call_is_read_out_of_the_text(actor):
    answer = ask(actor, "caller", tools=[SCRIPTED])
    assert calls_of(answer) == [("get_weather", {"city": "Paris"})]
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_") and call.type == "function"


def test_calls_of_a_stream_are_the_whole_answers(actor):
    whole = ask(actor, "callers", tools=[SCRIPTED])
    assert calls_of(whole) == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})]
    assert len({call.id for call in whole.choices[0].message.tool_calls}) == 2
    calls, text, finish = collected(ask(actor, "callers", tools=[SCRIPTED], stream=True))
    assert calls == calls_of(whole)
    assert text == whole.choices[0].message.content and text.strip() == "I will look."
    assert finish == whole.choices[0].finish_reason == "tool_calls"


def test_the_streams_helper_reads_calls(actor):
    with actor.chat.completions.stream(model="callers", messages=QUESTION, tools=[SCRIPTED],
                                       temperature=0) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [json.loads(event.arguments)["city"] for event in done] == ["Paris", "Rome"]
    final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and len(final.message.tool_calls) == 2


def test_without_tools_the_syntax_is_text(actor):
    answer = ask(actor, "caller")
    assert "<tool_call>" in answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None
    answer = ask(actor, "caller", tools=[SCRIPTED], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_a_call_that_was_cut_off_ended_by_length(actor):
    answer = ask(actor, "caller", tools=[SCRIPTED], max_completion_tokens=60)
    assert answer.choices[0].finish_reason == "length"
    *_, last = ask(actor, "caller", tools=[SCRIPTED], max_completion_tokens=60, stream=True)
    assert last.choices[0].finish_reason == "length"


def test_required_calls_something(sdk, actor):
    answer = ask(sdk, "smollm", tools=[WEATHER, TIME], tool_choice="required",
                 parallel_tool_calls=False)
    [(name, arguments)] = calls_of(answer)
    valid = {"get_weather": ("city", ["Paris", "Rome", "Oslo"]), "get_time": ("zone", ["UTC", "CET"])}
    key, values = valid[name]
    assert list(arguments) == [key] and arguments[key] in values
    assert answer.choices[0].finish_reason == "tool_calls"
    calls, text, finish = collected(ask(sdk, "smollm", tools=[WEATHER, TIME], stream=True,
                                        tool_choice="required", parallel_tool_calls=False))
    assert (calls, text, finish) == ([(name, arguments)], "", "tool_calls")
    answer = ask(actor, "listed", tools=[SCRIPTED], tool_choice="required")
    assert calls_of(answer) == [("get_weather", {"city": "Oslo"})]


def test_the_named_tool_is_called(sdk, actor):
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = ask(sdk, "smollm", tools=[WEATHER, TIME], tool_choice=choice)
    [(name, arguments)] = calls_of(answer)
    assert name == "get_time" and arguments["zone"] in ("UTC", "CET")
    assert answer.choices[0].finish_reason == "stop", "as the API has it for a named tool"
    calls, _, finish = collected(ask(sdk, "smollm", tools=[WEATHER, TIME], tool_choice=choice,
                                     stream=True))
    assert calls == [(name, arguments)] and finish == "stop"
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(actor, "named", tools=[SCRIPTED], tool_choice=choice)
    assert calls_of(answer) == [("get_weather", {"city": "Bern"})]


def test_allowed_tools_are_the_only_ones(sdk, actor):
    def allowed(mode):
        tools = [{"type": "function", "function": {"name": "get_time"}}]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    answer = ask(sdk, "smollm", tools=[WEATHER, TIME], tool_choice=allowed("required"),
                 parallel_tool_calls=False)
    assert [name for name, _ in calls_of(answer)] == ["get_time"]
    answer = ask(actor, "hello", tools=[WEATHER, TIME], tool_choice=allowed("auto"))
    assert answer.choices[0].message.content == "Hello, world."


def test_auto_leaves_the_model_free(actor, sdk):
    for options in ({}, {"tool_choice": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": False}):
        assert ask(actor, "hello", tools=[WEATHER], **options).choices[0].message.content
    answer = ask(sdk, "smollm", tools=[WEATHER], max_completion_tokens=8)
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_only_one_call_where_more_are_not_wanted(actor):
    answer = ask(actor, "callers", tools=[SCRIPTED], parallel_tool_calls=False)
    assert calls_of(answer) == [("get_weather", {"city": "Paris"})]


def test_a_conversation_with_calls_goes_on(actor, sdk):
    first = ask(actor, "caller", tools=[SCRIPTED]).choices[0].message
    messages = [*QUESTION, first, {"role": "tool", "tool_call_id": first.tool_calls[0].id,
                                   "content": "It is sunny."}]
    answer = ask(actor, "hello", messages=messages, tools=[SCRIPTED])
    assert answer.choices[0].message.content == "Hello, world."
    answer = ask(sdk, "smollm", messages=messages, tools=[SCRIPTED], max_completion_tokens=16)
    assert answer.usage.prompt_tokens > 30
    parts = [{"type": "text", "text": "It is sunny."}]
    messages[-1] = {**messages[-1], "content": parts}
    assert ask(actor, "hello", messages=messages, tools=[SCRIPTED]).choices


@pytest.mark.parametrize("options, param", [
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": 7}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "absent"}}},
     "tool_choice"),
    ({"tools": "x"}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [WEATHER] * 129}, "tools"),
    ({"tools": [WEATHER], "parallel_tool_calls": "yes"}, "parallel_tool_calls"),
    ({"response_format": {"type": "poem"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": 7}, "response_format"),
])
def test_what_is_no_tool_choice_or_format_is_refused(actor, options, param):
    body = {"model": "hello", "messages": QUESTION, **options}
    with pytest.raises(openai.BadRequestError) as caught:
        actor.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param, caught.value
    assert caught.value.type == "invalid_request_error"


def test_parse_gives_the_clients_own_type(sdk, actor):
    answer = sdk.chat.completions.parse(
        model="smollm", response_format=City, temperature=0, max_completion_tokens=100,
        messages=[{"role": "user", "content": "Is Paris a capital?"}])
    assert isinstance(answer.choices[0].message.parsed, City)
    answer = actor.chat.completions.parse(
        model="json", response_format=Scripted, temperature=0, messages=QUESTION)
    assert answer.choices[0].message.parsed == Scripted(city="Paris", is_capital=True)
    with actor.chat.completions.stream(model="json", response_format=Scripted, temperature=0,
                                       messages=QUESTION) as stream:
        for _ in stream:
            pass
    parsed = stream.get_final_completion().choices[0].message.parsed
    assert parsed == Scripted(city="Paris", is_capital=True)


def test_parse_reads_the_arguments_of_tools(actor):
    answer = actor.chat.completions.parse(
        model="caller", temperature=0, messages=QUESTION,
        tools=[{"type": "function", "function": {**SCRIPTED["function"], "strict": True}}])
    [call] = answer.choices[0].message.tool_calls
    assert call.function.parsed_arguments == {"city": "Paris"}


def test_a_schema_is_kept_at_any_temperature(sdk):
    schema = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9},
              "minItems": 2, "maxItems": 3}
    answer = ask(sdk, "smollm", temperature=1.5, seed=3, n=3, response_format={
        "type": "json_schema", "json_schema": {"name": "numbers", "schema": schema, "strict": True}})
    for choice in answer.choices:
        numbers = json.loads(choice.message.content)
        assert 2 <= len(numbers) <= 3 and all(1 <= number <= 9 for number in numbers)
        assert choice.finish_reason == "stop"


def test_vllms_guides_are_kept(sdk):
    def told(**extra):
        return ask(sdk, "smollm", extra_body=extra).choices[0].message.content

    assert told(guided_choice=["yes", "no"]) in ("yes", "no")
    assert told(guided_regex="[0-9]{3}-[a-z]{2}").count("-") == 1
    assert json.loads(told(guided_json={"enum": [1, 2]})) in (1, 2)
    assert told(guided_grammar='start: "left" | "right"') in ("left", "right")


def test_a_schema_that_is_none_is_refused_by_name(actor):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(actor, "hello", response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "no such type"}}})
    assert caught.value.type == "invalid_request_error"
    assert "no such type" in caught.value.message
    assert caught.value.param == "response_format"


def test_tools_and_a_schema_go_together(actor, sdk):
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": Scripted.model_json_schema()}}
    for options in ({}, {"tool_choice": "auto"}, {"parallel_tool_calls": False}):
        answer = ask(actor, "caller", tools=[SCRIPTED], response_format=schema, **options)
        assert calls_of(answer) == [("get_weather", {"city": "Paris"})]
        answer = ask(actor, "json", tools=[SCRIPTED], response_format=schema, **options)
        assert Scripted.model_validate_json(answer.choices[0].message.content).city == "Paris"
    calls, text, finish = collected(ask(actor, "caller", tools=[SCRIPTED], response_format=schema, stream=True))
    assert (calls, text, finish) == ([("get_weather", {"city": "Paris"})], "", "tool_calls")
    answer = ask(actor, "json", tools=[SCRIPTED], response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content)["is_capital"]
    answer = ask(actor, "listed", tools=[SCRIPTED], tool_choice="required", response_format=schema)
    assert calls_of(answer) == [("get_weather", {"city": "Oslo"})]
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    answer = sdk.chat.completions.parse(model="smollm", messages=QUESTION, tools=[strict], temperature=0,
                                        response_format=City, max_completion_tokens=100)
    message = answer.choices[0].message
    assert isinstance(message.parsed, City) or message.tool_calls[0].function.parsed_arguments["city"]


def test_a_schema_beside_tools_that_is_none_is_refused_by_name(actor):
    schema = {"type": "no such type"}
    with pytest.raises(openai.BadRequestError, match="no such type") as caught:
        ask(actor, "hello", tools=[SCRIPTED],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert caught.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match="no such type") as caught:
        actor.responses.create(model="hello", input="Hi", tools=[{"type": "function", **SCRIPTED["function"]}],
                               text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    assert caught.value.param == "text.format"
    answer = actor.responses.create(
        model="caller", input="Hi", tools=[{"type": "function", **SCRIPTED["function"]}], temperature=0,
        text={"format": {"type": "json_schema", "name": "x", "schema": Scripted.model_json_schema()}})
    assert answer.output[0].name == "get_weather"


def test_calls_that_are_required_are_bounded_in_number(actor):
    answer = ask(actor, "many", tools=[SCRIPTED], tool_choice="required", max_completion_tokens=2000)
    assert len(calls_of(answer)) == 16 and answer.choices[0].finish_reason == "tool_calls"


def test_vllms_structured_outputs_are_kept(sdk, actor):
    def told(client=sdk, model="smollm", **outputs):
        return ask(client, model, max_completion_tokens=60,
                   extra_body={"structured_outputs": outputs}).choices[0].message.content

    assert told(choice=["yes", "no"]) in ("yes", "no")
    assert told(regex="[0-9]{3}-[a-z]{2}").count("-") == 1
    assert json.loads(told(json={"enum": [1, 2]}, regex=None)) in (1, 2)
    assert told(grammar='start: "left" | "right"') in ("left", "right")
    structure = {"begin": "<f>", "schema": {"enum": [1, 2]}, "end": "</f>"}
    tag = {"type": "structural_tag", "structures": [structure], "triggers": ["<f>"]}
    assert told(actor, "hello", structural_tag=tag) == "Hello, world."
    for wrong in ({}, {"json": {}, "regex": "a"}, {"choice": []}, {"structural_tag": {"format": {"type": "any"}}}):
        with pytest.raises(openai.BadRequestError) as caught:
            told(actor, "hello", **wrong)
        assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize("field, value", [
    ("allowed_token_ids", [1]), ("bad_words", ["x"]), ("chat_template", "x"), ("documents", [{"text": "x"}]),
    ("add_special_tokens", True), ("mm_processor_kwargs", {"x": 1}), ("vllm_xargs", {"x": 1}),
])
def test_what_would_change_the_answer_and_is_not_known_is_refused(actor, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(actor, "hello", extra_body={field: value})
    assert caught.value.param == field
