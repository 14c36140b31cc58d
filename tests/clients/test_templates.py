"""Real models' chat templates, rendered by the bridge and by `transformers`, byte for byte.

`scripts/setup-clients` fetches the templates. Both sides get the same moment, and `transformers`
gets the messages as the bridge adapted them to the template, which is checked apart.
"""

import copy
import datetime
import json
import os
import pathlib
import subprocess
import sys

import pytest
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).parents[2]
BINARY = ROOT / os.environ.get("STATOR_RENDER_TEMPLATE", "target/debug/examples/render_template")
TEMPLATES = sorted((ROOT / ".tools/templates").glob("*/*.jinja"))
NOW = datetime.datetime(2026, 3, 5, 7, 8, 9, tzinfo=datetime.timezone.utc)


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, identifier="abcdefghi"):
    return {"id": identifier, "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def answer(content, identifier="abcdefghi", **more):
    return message("tool", content, tool_call_id=identifier, **more)


def part(text):
    return {"type": "text", "text": text}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather",
        "description": "Tells the weather, <b>now</b> & 'later'.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's \"name\""},
                "days": {"type": "integer", "default": 1, "minimum": 0},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "exact": {"type": "number", "default": 1e-7},
                "at": {"type": "object", "properties": {"lat": {"type": "number"}},
                       "required": ["lat"]},
                "names": {"type": "array", "items": {"type": "string"}},
                "either": {"type": ["string", "null"], "nullable": True},
            },
            "required": ["city"],
        },
    }},
    {"type": "function", "function": {
        "name": "now", "description": "Tells the time — né 日本.",
        "parameters": {"type": "object", "properties": {}},
    }},
]
SYSTEM = message("system", "You are helpful.\nBe brief.")
HELLO = message("user", "Hello, how are you?")
FINE = message("assistant", "Fine, thank you.\n\nAnd you?")
WEATHER = message("user", "What is the weather in Köln?")
CALL = message("assistant", None, tool_calls=[call("get_weather", {
    "city": "Köln <&'\">", "days": 2, "exact": 0.5, "at": {"lat": 50.9, "big": 1e20},
    "names": ["a", "b"], "flag": True, "none": None})])
TALKING_CALL = message("assistant", "Let me look.", tool_calls=[call("now", {})])
TWO_CALLS = message("assistant", "", tool_calls=[
    call("get_weather", {"city": "Rome"}, "aaaaaaaaa"), call("now", {}, "bbbbbbbbb")])
THINKING = message("assistant", "Four.", reasoning_content="Two and two.\nIs four.")

# Name: messages, then what else the conversation has.
CASES = {
    "single": ([HELLO], {}),
    "system": ([SYSTEM, HELLO], {}),
    "turns": ([HELLO, FINE, message("user", "Well.")], {}),
    "turns with system": ([SYSTEM, HELLO, FINE, message("user", " Well. ")], {}),
    "developer": ([message("developer", "Be kind."), HELLO], {}),
    "no generation prompt": ([SYSTEM, HELLO, FINE], {"add_generation_prompt": False}),
    "unicode": ([message("user", "héllo 日本 🎉 \u200b \u00a0 <|x|> & < > \" ' \\n \t end ")], {}),
    "white space": ([message("user", "  \n leading\n\n  and trailing \n ")], {}),
    "empty": ([message("user", "")], {}),
    "parts": ([message("system", [part("A"), part("B")]),
               message("user", [part("Hello, "), part("you.")])], {}),
    "parts of all": ([message("user", [part("Hi")]), message("assistant", [part("Ho")]),
                      message("user", [part("a"), part("b")])], {}),
    "tools": ([SYSTEM, WEATHER], {"tools": TOOLS}),
    "tools without system": ([WEATHER], {"tools": TOOLS}),
    "one tool": ([WEATHER], {"tools": TOOLS[1:]}),
    "call": ([WEATHER, CALL], {"tools": TOOLS, "add_generation_prompt": False}),
    "answer": ([SYSTEM, WEATHER, CALL, answer('{"degrees": 21.5}')], {"tools": TOOLS}),
    "answer with name": ([WEATHER, CALL, answer("21", name="get_weather")], {"tools": TOOLS}),
    "answer of parts": ([WEATHER, CALL, answer([part("21"), part("!")])], {"tools": TOOLS}),
    "answered": ([WEATHER, CALL, answer("21"), FINE, message("user", "Thanks")],
                 {"tools": TOOLS}),
    "talking call": ([WEATHER, TALKING_CALL, answer("noon")], {"tools": TOOLS}),
    "parallel calls": ([WEATHER, TWO_CALLS, answer("sun", "aaaaaaaaa"),
                        answer("noon", "bbbbbbbbb")], {"tools": TOOLS}),
    "calls without tools": ([WEATHER, CALL, answer("21")], {}),
    "no JSON in a call": ([WEATHER, message("assistant", None, tool_calls=[
        {"id": "abcdefghi", "type": "function",
         "function": {"name": "now", "arguments": "[1, oops"}}])], {"tools": TOOLS}),
    "null": ([HELLO, message("assistant", None), HELLO], {}),
    "thinking": ([message("user", "2 + 2?"), THINKING, message("user", "Why?")], {}),
    "thinking and calls": ([WEATHER, {**CALL, "reasoning_content": "Look it up."},
                            answer("21")], {"tools": TOOLS}),
    "thinking in text": ([HELLO, message("assistant", "<think>\nHm\n</think>\n\nYes."),
                          message("user", "Why?")], {}),
    "thinking off": ([SYSTEM, HELLO], {"kwargs": {"enable_thinking": False, "thinking": False}}),
    "thinking on": ([SYSTEM, HELLO], {"kwargs": {"enable_thinking": True, "thinking": True}}),
    "effort": ([HELLO], {"kwargs": {"reasoning_effort": "high"}}),
    "low effort": ([SYSTEM, HELLO], {"kwargs": {"reasoning_effort": "low"}}),
    "documents": ([HELLO], {"documents": [{"title": "T", "text": "Some text."}]}),
    "date": ([HELLO], {"kwargs": {"date_string": "1 May 2020"}}),
    "assistant first": ([FINE, HELLO], {}),
    "two users": ([HELLO, HELLO], {}),
    "system later": ([HELLO, SYSTEM, HELLO], {}),
    "unknown role": ([message("critic", "Hm.")], {}),
    "long": ([SYSTEM, *[HELLO, FINE] * 30, HELLO], {}),
    "continue": ([HELLO, message("assistant", "I am ")],
                 {"add_generation_prompt": False, "continue_final_message": True}),
    "continue parts": ([HELLO, message("assistant", [part("I"), part("am")])],
                       {"add_generation_prompt": False, "continue_final_message": True}),
    "continue nothing": ([HELLO, CALL],
                         {"add_generation_prompt": False, "continue_final_message": True}),
}


class Renderer:
    """The bridge's renderer as a process: a line in, a line out."""

    def __init__(self):
        self.process = subprocess.Popen([BINARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, encoding="utf-8")

    def render(self, template, messages, options):
        case = {"add_generation_prompt": True, **options, "template": template, "bos": "<s>",
                "eos": "</s>", "now": int(NOW.timestamp()), "messages": messages}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def renderer():
    renderer = Renderer()
    yield renderer
    renderer.process.kill()
    renderer.process.wait()


@pytest.fixture(autouse=True)
def still_clock(monkeypatch):
    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW.replace(tzinfo=None)

    monkeypatch.setattr(chat_template_utils, "datetime", Still)


def expected(template, messages, options):
    """Renders as a tokenizer's `apply_chat_template`; None where it raises."""
    options = {"add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
               **options, **options.get("kwargs", {})}
    options.pop("kwargs", None)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [copy.deepcopy(messages)], chat_template=template, **options)
    except Exception as error:  # whatever a template may raise
        return None, repr(error)
    return rendered[0], None


def difference(template, ours, options):
    """Says where the bridge and `transformers` differ, or nothing."""
    if "messages" not in ours:
        return f"refused before rendering: {ours}"
    theirs, why = expected(template, ours["messages"], options)
    if ours.get("text") == theirs:
        return None
    return f"ours:   {ours.get('text')!r} {ours.get('error', '')}\ntheirs: {theirs!r} {why or ''}"


def is_same_content(given, adapted):
    if isinstance(given, list):
        return adapted in (given, "".join(part["text"] for part in given))
    return adapted in (given or "", given, [part(given or "")])


def check_adaptation(given, adapted):
    """The template gets the client's messages: arguments are objects, contents have their form."""
    for before, after in zip(given, adapted, strict=True):
        before, after = copy.deepcopy(before), copy.deepcopy(after)
        assert is_same_content(before.pop("content"), after.pop("content"))
        assert after.pop("thinking", None) == before.get("reasoning_content")
        for call in before.get("tool_calls", []):
            try:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            except json.JSONDecodeError:
                pass
        if after["role"] == "system" and before["role"] == "developer":
            before["role"] = "system"
        assert list(before.items()) == list(after.items())


def test_templates_are_there():
    assert len(TEMPLATES) >= 12, "run scripts/fetch_templates.py"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_renders_as_in_transformers(path, renderer):
    template = path.read_text(encoding="utf-8")
    differences = []
    texts = 0
    for name, (messages, options) in CASES.items():
        ours = renderer.render(template, messages, options)
        texts += "text" in ours
        if found := difference(template, ours, options):
            differences.append(f"{name}:\n{found}")
        elif "messages" in ours:
            check_adaptation(messages, ours["messages"])
    assert not differences, "\n".join(differences)
    assert texts >= 5
