"""Real models' chat templates, rendered by the bridge and by `transformers`, byte for byte.

`scripts/setup-clients` fetches the templates. Both sides get the same moment, and `transformers`
gets the messages as the bridge adapted them to the template, which is checked apart.
"""

import copy
import datetime
import html
import json
import os
import pathlib
import subprocess

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


# Where `transformers` raises and the bridge renders: what the error says, and why.
LENIENT = {
    "'NoneType' object is not iterable":
        "no tools, documents or arguments are none; the bridge iterates over none as over nothing, "
        "so that a template for tools also serves a conversation without any",
    "Object of type generator is not JSON serializable":
        "the template writes what `map` makes as JSON, which only other renderers than "
        "`transformers` can do; the bridge writes a list",
}

# Where both render: the template joins texts marked `safe` with others, which Jinja2 escapes as
# HTML even where nothing else is escaped. The bridge writes what the template means.
ESCAPED = {"meetkai-functionary-medium-v3.1"}

# Templates that want variables which no request has, so that neither side renders anything.
WITHOUT_TEXT = {"fireworks-ai-llama-3-firefunction-v2"}

# Small templates over the variables below, each a quirk of Jinja2 or Python.
VARIABLES = {
    "s": "  Hello, Wörld \n", "n": None, "t": True, "i": 7, "f": 2.5, "z": "", "l": [3, 1, 2],
    "d": {"b": 1, "a": [1, 2.0, 1e-7, 1e22, None, True, "x'y", 'q"q', "é\n\u200b"]},
    "e": {}, "el": [], "o": [{"n": "b", "v": 2}, {"n": "a", "v": 1, "w": 0}],
}
QUIRKS = r"""
{{ d }}{{ e }}{{ l }}{{ n }}{{ t }}{{ f }}{{ (1, 2) }}{{ (1,) }}{{ [1.0, 'a', none] }}
{{ d | tojson }}{{ d | tojson(indent=2) }}{{ e | tojson(indent=2) }}{{ el | tojson(indent=2) }}
{{ o | tojson(indent=4, sort_keys=true) }}{{ o | tojson(separators=(',', ':')) }}
{{ d | tojson(ensure_ascii=true) }}{{ '</a>&\u2028\x7f' | tojson }}{{ {1: none, 'x': 2.0} | tojson }}
{{ missing | tojson }}
{{ 1e16 }}{{ 0.00001 }}{{ 10 / 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 2 ** -1 }}{{ 0.1 + 0.2 }}{{ 1 + true }}
{{ s.strip() }}{{ s.strip('H \n') }}{{ s.lstrip() }}{{ s.rstrip() }}{{ s | trim }}{{ n | trim }}
{{ s.split() }}{{ s.split(' ') }}{{ s.split(', ', 1) }}{{ s.split(none, 1) }}{{ s.split(maxsplit=1) }}
{{ s.rsplit(' ', 1) }}{{ 'a b  c '.rsplit(none, 1) }}{{ s.partition(',') }}{{ s.rpartition('x') }}
{{ 'x'.split('') }}
{{ s.title() }}{{ "they're".title() }}{{ s.capitalize() }}{{ s.swapcase() }}{{ s.upper() }}
{{ 'a\r\nb\n\nc'.splitlines() }}{{ 'a\nb\n'.splitlines(true) }}{{ s.find('W') }}{{ s.index('W') }}
{{ s.startswith(('x', '  H')) }}{{ s.endswith('\n') }}{{ s.count('l') }}{{ s.replace('l', 'L', 1) }}
{{ '{} {x}'.format(1, x=2) }}{{ '{:.2f}|{:>5}|{:05d}'.format(3.14159, 'ab', 42) }}{{ '%s %d' | format('a', 2) }}
{{ 'ab'.center(6) }}{{ 'abc'.center(6) }}{{ '-5'.zfill(4) }}{{ 'ab'.ljust(5) }}{{ 'abc'.removeprefix('a') }}
{{ 'abc'[::-1] }}{{ 'abc'[-2:] }}{{ l[::-1] }}{{ l[1:] }}{{ l[:-1] }}{{ l[-1] }}{{ l[9] }}{{ l + [4] }}
{{ d.get('b') }}{{ d.get('q') }}{{ d.get('q', 1) }}{{ d.q }}{{ d.q is defined }}{{ n.q }}{{ s.q }}{{ d['b'] }}
{{ d.q.q }}
{{ missing + 'x' }}
{{ missing }}{{ missing | length }}{{ missing | default('x') }}{{ n | default('x') }}{{ n | default('x', true) }}
{{ z | default('x', boolean=true) }}{{ z | default('x', boolean=false) }}{{ missing or 'y' }}{{ not missing }}
{{ n | length }}
{{ n | items | list }}
{% for k, v in d.items() %}{{ k }}{% endfor %}{% for k, v in d | items %}{{ k }}{% endfor %}{{ d | dictsort }}
{{ o | map(attribute='n') | join('+') }}{{ o | selectattr('n', 'equalto', 'a') | list }}{{ l | sort }}
{{ o | rejectattr('w', 'defined') | list }}{{ l | map('string') | list }}{{ l | select('odd') | list }}
{{ 'a\nb\n\nc\n' | indent }}{{ 'a\nb' | indent(2, true) }}{{ 'a\n\nb' | indent('> ', blank=true) }}
{{ '<a & "b">' | e }}{{ '<a>' | safe }}{{ 2.5 | round }}{{ '12' | int }}{{ 'abc' | list }}{{ l | first }}
{{ l is sequence }}{{ d is sequence }}{{ s is sequence }}{{ l[1:] is sequence }}{{ i is sequence }}
{{ n is iterable }}{{ s is iterable }}{{ d is mapping }}{{ l is mapping }}{{ i is number }}{{ t is integer }}
{{ d.a[2] is number }}{{ d.a[2] ~ '' }}{{ d.a[3] | string }}{{ n is none }}{{ t is true }}{{ raise_exception is callable }}
{{ 'x' if n }}{{ 'a' 'b' }}{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }}{{ 1 < 2 < 3 }}{{ 'ab' * 2 }}{{ 'x' not in 'ab' }}
{{ 'a' + 1 }}
{{ 'x' in n }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %j %A %B %-d %e %p %I %y %U %V%%') }}
{% for x in l %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}
{% for x in l if x > 1 %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{{ loop.length }}{% else %}no{% endfor %}
{% set x = 1 %}{% for y in l %}{% set x = y %}{% if y == 1 %}{% break %}{% endif %}{% endfor %}{{ x }}
{% set ns = namespace(x=[]) %}{% for y in l %}{% set ns.x = ns.x + [y] %}{% endfor %}{{ ns.x }}{{ ns.y }}
{% macro m(a, b=2) %}{{ a }}{{ b }}{{ i }}{% endmacro %}{{ m(1) }}{{ m() }}{{ m(1, b=none) }}{{ m(1) is string }}
{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %} x {% endcall %}{% set y %} a {% endset %}[{{ y }}]
{% generation %} a {{ i }}{% set i = 1 %} {%- endgeneration %} {{ i }}
{{ l.append(4) }}
{{ d.pop('a') }}
{{ raise_exception('no') }}
""".strip().split("\n")


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


def difference(template, ours, options, is_escaped=False):
    """Says where the bridge and `transformers` differ, or nothing."""
    if "messages" not in ours:
        return f"refused before rendering: {ours}"
    theirs, why = expected(template, ours["messages"], options)
    if is_escaped and theirs:
        theirs = html.unescape(theirs)
    if ours.get("text") == theirs:
        return None
    if why and "text" in ours and any(known in why for known in LENIENT):
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
        if found := difference(template, ours, options, path.stem in ESCAPED):
            differences.append(f"{name}:\n{found}")
        elif "messages" in ours:
            check_adaptation(messages, ours["messages"])
    assert not differences, "\n".join(differences)
    assert texts >= 5 or path.stem in WITHOUT_TEXT


@pytest.mark.parametrize("template", QUIRKS)
def test_a_quirk_is_rendered_as_in_transformers(template, renderer):
    options = {"kwargs": VARIABLES}
    ours = renderer.render(template, [HELLO], options)
    assert not difference(template, ours, options)
