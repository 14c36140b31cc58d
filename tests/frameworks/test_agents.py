"""Agent frameworks that combine tools with a schema for the answer."""

import pydantic
import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

QUESTION = "Is Paris a capital?"


class City(pydantic.BaseModel):
    city: str
    is_capital: bool


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"It is sunny in {city}."


def langchain_of(server, model):
    """Returns LangChain's model with a tool and a schema for its answer."""
    chat = ChatOpenAI(base_url=f"{server}/v1", api_key="none", model=model, max_retries=0)
    return chat.bind_tools([get_weather], response_format=City, strict=True)


def test_langchain_calls_a_tool_beside_a_schema(scripted):
    answer = langchain_of(scripted, "caller").invoke(QUESTION)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    # The next turn has the call and its result.
    longer = langchain_of(scripted, "caller").invoke([("user", QUESTION), answer, result])
    before, after = (one.usage_metadata["input_tokens"] for one in (answer, longer))
    assert after > before + len("It is sunny in Paris.")


def test_langchain_parses_an_answer_beside_tools(scripted):
    answer = langchain_of(scripted, "json").invoke(QUESTION)
    assert answer.additional_kwargs["parsed"] == City(city="Paris", is_capital=True)
    streamed = list(langchain_of(scripted, "json").stream(QUESTION))
    assert City.model_validate_json("".join(chunk.text for chunk in streamed)).city == "Paris"


def test_langchain_gets_what_a_real_model_is_bound_to(real):
    model = langchain_of(real, "smollm2-135m-instruct").bind(temperature=0, max_tokens=100)
    answer = model.invoke(QUESTION)
    assert isinstance(answer.additional_kwargs.get("parsed"), City) or answer.tool_calls[0]["args"]["city"]


def agent_of(server, kind, model):
    provider = OpenAIProvider(base_url=f"{server}/v1", api_key="none")
    agent = Agent(kind(model, provider=provider), output_type=NativeOutput(City), retries=0)
    asked = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tells the weather of a city."""
        asked.append(city)
        return f"It is sunny in {city}."

    return agent, asked


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai_runs_its_loop(scripted, kind):
    agent, asked = agent_of(scripted, kind, "json")
    assert agent.run_sync(QUESTION).output == City(city="Paris", is_capital=True)
    assert not asked
    # A model that always calls is asked again with each result, until the framework stops it.
    agent, asked = agent_of(scripted, kind, "caller")
    with pytest.raises(UsageLimitExceeded):
        agent.run_sync(QUESTION, usage_limits=UsageLimits(request_limit=3))
    assert asked == ["Paris"] * 3
