"""The Responses API, by the unmodified openai SDK."""

import json
import urllib.request

import openai
import pydantic
import pytest
from conftest import running
from real_models import real_model

MODEL = "smollm"
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather of a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none",
                       max_retries=0) as client:
        yield client


def ask(client, text="What is the capital of France?", **options):
    options = {"temperature": 0, "max_output_tokens": 40, **options}
    return client.responses.create(model=MODEL, input=text, **options)


def types(events):
    """The types of events; neighbours that are the same are told once."""
    told = []
    for event in events:
        kind = event.type.removeprefix("response.")
        if not told or told[-1] != kind:
            told.append(kind)
    return told


def test_a_response_is_whole(client):
    assert "Paris" in ask(client).output_text
    response = ask(client, instructions="You are brief.", metadata={"a": "b"}, user="me",
                   max_output_tokens=20)
    assert response.id.startswith("resp_") and response.object == "response"
    assert response.error is None and response.output_text
    assert response.model == MODEL and response.metadata == {"a": "b"}
    assert response.instructions == "You are brief." and response.user == "me"
    assert response.temperature == 0 and response.top_p == 1 and response.max_output_tokens == 20
    assert response.tool_choice == "auto" and response.tools == []
    assert response.parallel_tool_calls and response.truncation == "disabled"
    assert response.text.format.type == "text"
    item, = response.output
    assert item.type == "message" and item.role == "assistant" and item.status == response.status
    usage = response.usage
    assert usage.input_tokens > 5 and usage.output_tokens > 1
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens >= 0
    assert usage.output_tokens_details.reasoning_tokens == 0
    # What the SDK's model knows is what was sent, without a warning.
    type(response).model_validate(response.model_dump())


def test_a_stream_tells_the_same_in_order(client):
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert types(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[0].response.id == events[-1].response.id
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens


def test_the_stream_helper_accumulates(client):
    with client.responses.stream(model=MODEL, input="What is the capital of France?",
                                 temperature=0, max_output_tokens=40) as stream:
        snapshots = [event.snapshot for event in stream
                     if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert snapshots[-1] == response.output_text and "Paris" in response.output_text


def test_a_response_that_is_cut_off_is_incomplete(client):
    response = ask(client, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete" and response.usage.output_tokens == 3
    assert types(ask(client, max_output_tokens=3, stream=True))[-1] == "incomplete"


@pytest.mark.parametrize("is_streaming", [False, True])
def test_a_response_is_kept_and_gone_on_from(client, is_streaming):
    first = ask(client, "My name is Bob. Say hello to me.", stream=is_streaming)
    if is_streaming:
        first = list(first)[-1].response
    assert client.responses.retrieve(first.id) == first
    second = ask(client, "What is my name?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    history = [{"role": "user", "content": "My name is Bob. Say hello to me."},
               {"role": "assistant", "content": first.output_text},
               {"role": "user", "content": "What is my name?"}]
    spelled = client.responses.create(model=MODEL, input=history, temperature=0,
                                      max_output_tokens=40)
    assert second.usage.input_tokens == spelled.usage.input_tokens
    assert second.output_text == spelled.output_text

    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [item.role for item in items] == ["user", "assistant", "user"]
    assert items[1].id == first.output[0].id
    page = client.responses.input_items.list(second.id, limit=1)
    assert page.data[0].content[0].text == "What is my name?" and page.has_more

    client.responses.delete(first.id)
    for call in [client.responses.retrieve, client.responses.delete, client.responses.cancel,
                 client.responses.input_items.list]:
        with pytest.raises(openai.NotFoundError) as caught:
            call(first.id)
        assert caught.value.body["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"
    assert client.responses.retrieve(second.id).id == second.id


def test_only_what_is_to_be_kept_is_kept(client):
    response = ask(client, store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_response_that_is_over_is_not_cancelled(client):
    response = ask(client)
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(response.id)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_tool_is_called_and_its_result_taken(client, choice):
    text = "What is the weather in Paris?"
    response = ask(client, text, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    call, = response.output
    assert call.type == "function_call" and call.name == "get_weather" and call.call_id
    assert set(json.loads(call.arguments)) == {"city"} and call.status == "completed"
    assert response.tools[0].name == "get_weather"

    events = list(ask(client, text, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False,
                      stream=True))
    assert types(events) == [
        "created", "in_progress", "output_item.added", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "completed"]
    grown = "".join(event.delta for event in events
                    if event.type == "response.function_call_arguments.delta")
    assert grown == call.arguments == events[-1].response.output[0].arguments

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    answer = ask(client, [result], previous_response_id=response.id)
    spelled = ask(client, [{"role": "user", "content": text}, call, result])
    assert answer.output_text and answer.output_text == spelled.output_text


def test_a_text_has_the_shape_that_is_asked_for(client):
    class City(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        is_capital: bool

    response = client.responses.parse(model=MODEL, input="Tell me of Paris.", temperature=0,
                                      text_format=City, max_output_tokens=100)
    assert isinstance(response.output_parsed, City)
    assert response.text.format.type == "json_schema"


def test_the_tokens_are_scored(client):
    response = ask(client, max_output_tokens=5, top_logprobs=2,
                   include=["message.output_text.logprobs"])
    part = response.output[0].content[0]
    assert part.text.startswith("".join(score.token for score in part.logprobs)[:5])
    assert all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in part.logprobs)
    events = ask(client, max_output_tokens=5, top_logprobs=2, stream=True,
                 include=["message.output_text.logprobs"])
    told = [score.token for event in events if event.type == "response.output_text.delta"
            for score in event.logprobs]
    assert told == [score.token for score in part.logprobs]


@pytest.mark.parametrize("options, param", [
    ({"temperature": 3}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"text": {"format": {"type": "rhyme"}}}, "text.format"),
    ({"tools": [{"name": "x"}]}, "tools[0].type"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"text": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0].type"),
    ({"text": []}, "input"),
])
def test_what_is_wrong_is_named(client, options, param):
    if "text" in options and isinstance(options["text"], list):
        options = {"input": options["text"]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": MODEL, "input": "hi", **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="nothing", input="hi")
    assert caught.value.code == "model_not_found"


def test_the_kept_responses_have_a_bound(server):
    with running(f"{MODEL}={real_model()}", "--openai-stored-responses", "2") as server:
        client = openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0)
        ids = [ask(client, "hi", max_output_tokens=1).id for _ in range(3)]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(ids[0])
        assert [client.responses.retrieve(id).id for id in ids[1:]] == ids[1:]


def test_every_event_has_its_name(server):
    body = {"model": MODEL, "input": "hi", "stream": True, "max_output_tokens": 2}
    request = urllib.request.Request(f"http://{server.http}/v1/responses",
                                     json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        frames = answer.read().decode().removesuffix("\n\n").split("\n\n")
    for frame in frames:
        event, data = frame.split("\n")
        assert event == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_the_request_of_codex_is_answered(actor):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"type": "function", "name": "get_weather", "description": "x", "strict": False, "parameters": parameters}
    tools = [
        {**function, "name": "exec_command"},
        {"type": "namespace", "name": "sky", "description": "x", "tools": [function]},
        {"type": "custom", "name": "apply_patch", "description": "x",
         "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}},
        {"type": "web_search", "external_web_access": False},
    ]
    developer = {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}
    user = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "The weather?"}]}
    asked = {"model": "caller", "instructions": "You are an agent.", "tools": tools, "tool_choice": "auto",
             "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"}, "store": False,
             "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"}}
    raw = actor.responses.with_raw_response.create(input=[developer, user], **asked)
    assert raw.headers["x-stator-warning"].endswith("of type: custom, web_search")
    [call] = raw.parse().output
    assert (call.type, call.name, call.namespace) == ("function_call", "get_weather", "sky")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    items = [developer, user, call.model_dump(exclude_none=True), result]
    with actor.responses.with_streaming_response.create(input=items, stream=True, **asked) as reply:
        assert "x-stator-warning" in reply.headers
        done = [event for event in reply.parse() if event.type == "response.output_item.done"]
    assert done[0].item.namespace == "sky"
    answer = actor.responses.create(model="hello", input="Hi", tools=[{"type": "web_search"}])
    assert answer.output_text == "Hello, world."
