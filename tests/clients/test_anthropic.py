"""Anthropic's Messages API, by the unmodified anthropic SDK."""

import json
import urllib.error
import urllib.request

import anthropic
import pytest

MODEL = "smollm"
TOOL = {
    "name": "get_weather",
    "description": "Tells the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# The newest SDK leaves this to those who know that their server has it.
GREEDY = {"extra_body": {"temperature": 0}}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=f"http://{server.http}", api_key="none",
                             max_retries=0) as client:
        yield client


def ask(client, messages=QUESTION, **options):
    options = {**GREEDY, "max_tokens": 40, **options}
    return client.messages.create(model=MODEL, messages=messages, **options)


def types(events):
    """The types of events; neighbours that are the same are told once."""
    told = []
    for event in events:
        if not told or told[-1] != event.type:
            told.append(event.type)
    return told


def test_a_message_is_whole(client):
    message = ask(client)
    assert message.id.startswith("msg_") and message.type == "message"
    assert message.role == "assistant" and message.model == MODEL
    block, = message.content
    assert block.type == "text" and "Paris" in block.text
    assert message.stop_reason == "end_turn" and message.stop_sequence is None
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens > 5 and usage.output_tokens > 1
    assert usage.cache_creation_input_tokens == 0
    assert message._request_id


def test_a_stream_tells_the_same_in_order(client):
    whole = ask(client)
    events = list(ask(client, stream=True))
    assert types(events) == ["message_start", "content_block_start", "content_block_delta",
                             "content_block_stop", "message_delta", "message_stop"]
    assert events[0].message.content == [] and events[0].message.usage.input_tokens > 5
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text
    end = events[-2]
    assert end.delta.stop_reason == "end_turn"
    assert end.usage.output_tokens == whole.usage.output_tokens


def test_the_stream_helper_accumulates(client):
    with client.messages.stream(model=MODEL, messages=QUESTION, max_tokens=40,
                                **GREEDY) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert message.content[0].text == text and "Paris" in text
    assert message.stop_reason == "end_turn"


def test_a_message_that_is_cut_off_says_so(client):
    message = ask(client, max_tokens=3)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 3


def test_a_stop_sequence_is_told_and_not_shown(client):
    for is_streaming in [False, True]:
        if is_streaming:
            with client.messages.stream(model=MODEL, messages=QUESTION, max_tokens=40,
                                        **GREEDY, stop_sequences=["Paris"]) as stream:
                message = stream.get_final_message()
        else:
            message = ask(client, stop_sequences=["Paris"])
        assert message.stop_reason == "stop_sequence" and message.stop_sequence == "Paris"
        assert "Paris" not in message.content[0].text


def test_the_system_is_part_of_the_prompt(client):
    def tokens(message):
        return message.usage.input_tokens + message.usage.cache_read_input_tokens

    plain, text = ask(client, max_tokens=1), ask(client, max_tokens=1, system="You are a pirate.")
    blocks = ask(client, max_tokens=1, system=[
        {"type": "text", "text": "You are a pirate.", "cache_control": {"type": "ephemeral"}}])
    assert tokens(text) == tokens(blocks) != tokens(plain)


def test_tokens_are_counted_as_they_are_used(client):
    for options in [{}, {"system": "You are brief."}, {"tools": [TOOL]}]:
        counted = client.messages.count_tokens(model=MODEL, messages=QUESTION, **options)
        usage = ask(client, max_tokens=1, **options).usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("choice", [
    {"type": "any", "disable_parallel_tool_use": True},
    {"type": "tool", "name": "get_weather"},
])
def test_a_tool_is_used_and_its_result_taken(client, choice):
    question = {"role": "user", "content": "What is the weather in Paris?"}
    message = ask(client, [question], tools=[TOOL], tool_choice=choice)
    use, = message.content
    assert use.type == "tool_use" and use.name == "get_weather" and set(use.input) == {"city"}
    assert message.stop_reason == "tool_use"

    with client.messages.stream(model=MODEL, messages=[question], max_tokens=40, **GREEDY,
                                tools=[TOOL], tool_choice=choice) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    assert streamed.content[0].input == use.input and streamed.stop_reason == "tool_use"
    assert any(event.type == "input_json" for event in events)

    history = [question, {"role": "assistant", "content": message.content},
               {"role": "user", "content": [
                   {"type": "tool_result", "tool_use_id": use.id, "content": "rain"},
                   {"type": "text", "text": "So?"}]}]
    assert ask(client, history, tools=[TOOL]).content


def test_a_conversation_has_many_turns(client):
    history = [{"role": "user", "content": "My name is Bob."},
               {"role": "assistant", "content": [{"type": "text", "text": "Hello Bob."}]},
               {"role": "user", "content": "What is my name?"}]
    assert "Bob" in ask(client, history).content[0].text


def status_error(client, **options):
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**{"model": MODEL, "messages": QUESTION, "max_tokens": 5, **options})
    error = caught.value
    assert error.body["type"] == "error" and set(error.body["error"]) == {"type", "message"}
    return error.status_code, error.body["error"]["type"], error.body["error"]["message"]


@pytest.mark.parametrize("options, place", [
    ({"extra_body": {"temperature": 1.5}}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": [
        {"type": "image", "source": {"type": "url", "url": "x"}}]}]}, "messages.0.content.0"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
])
def test_what_is_wrong_is_named(client, options, place):
    status, kind, message = status_error(client, **options)
    assert (status, kind) == (400, "invalid_request_error") and place in message


def test_an_unknown_model_is_not_found(client):
    assert status_error(client, model="nothing")[:2] == (404, "not_found_error")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nothing", messages=QUESTION)


def test_max_tokens_have_to_be_said(server):
    body = json.dumps({"model": MODEL, "messages": QUESTION}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"http://{server.http}/v1/messages", body))
    error = json.load(caught.value)
    assert caught.value.code == 400 and error["type"] == "error"
    assert "max_tokens" in error["error"]["message"]


def test_a_thread_is_refused_as_its_clients_expect(client):
    with pytest.raises(anthropic.BadRequestError) as caught:
        ask(client, extra_body={"thread": {"type": "new"}})
    assert caught.value.body["error"]["details"]["error_code"] == "thread_unsupported_request"
    assert caught.value.body["error"]["type"] == "invalid_request_error"


def test_the_tool_runner_goes_the_whole_loop(scripted):
    asked = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tells the weather of a city."""
        asked.append(city)
        return "It is sunny, with a light wind from the sea." * 4

    with anthropic.Anthropic(base_url=f"http://{scripted.http}", api_key="none", max_retries=0) as client:
        runner = client.beta.messages.tool_runner(model="caller", max_tokens=200, tools=[get_weather],
                                                  messages=QUESTION, max_iterations=3)
        messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use"] * 3
    assert set(asked) == {"Paris"} and len(asked) >= 2
    sizes = [message.usage.input_tokens + message.usage.cache_read_input_tokens for message in messages]
    # Each turn has the ones before it, with the results of their calls.
    assert sizes[1] > sizes[0] + 150 and sizes[2] > sizes[1] + 150


def test_models_are_told_as_anthropics_api_has_them(client):
    page = client.models.list()
    found = next(model for model in page.data if model.id == MODEL)
    assert (found.type, found.display_name) == ("model", MODEL)
    assert found.created_at.year >= 2026 and page.has_more is False and page.last_id
    assert client.models.retrieve(MODEL).display_name == MODEL
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_unknown_paths_below_messages_answer_in_anthropics_form(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.batches.list()
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "not_found_error"
