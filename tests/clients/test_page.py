"""The chat page and the API reference in a real browser, without a network beyond the server."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from playwright.sync_api import expect, sync_playwright

from conftest import BINARY
from patience import PATIENCE_SECONDS

BROWSERS = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
PATIENCE_MS = PATIENCE_SECONDS * 1000
expect.set_options(timeout=PATIENCE_MS)
QUESTION = """It's "so", $HOME `id` \\ {"a": 1}: what is the capital of Österreich?"""


@pytest.fixture(scope="session")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        assert "CI" not in os.environ, "no chromium is installed, and CI needs it"
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser, server):
    """A context that fails its test if a page leaves the server or complains on the console."""
    context = browser.new_context(base_url=f"http://{server.http}", color_scheme="dark",
                                  viewport={"width": 360, "height": 700})
    context.set_default_timeout(PATIENCE_MS)
    foreign, complaints = [], []
    context.on("request", lambda request: foreign.append(request.url)
               if not request.url.startswith((f"http://{server.http}/", "data:")) else None)
    context.on("console", lambda message: complaints.append(message.text)
               if message.type in ("error", "warning") else None)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.expected = []
    yield context
    context.close()
    assert not foreign, foreign
    unexpected = [text for text in complaints
                  if not any(part in text for part in context.expected)]
    assert not unexpected, unexpected


def opened(context, model, temperature="0", max_tokens="24"):
    """Opens the chat with a model and settings."""
    page = context.new_page()
    page.goto(f"/?model={model}")
    expect(page.locator("#model option").first).to_be_attached()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill(temperature)
    page.get_by_label("Most tokens").fill(max_tokens)
    return page


def ask(page, text, is_done=True):
    """Sends a message; returns the article of the answer."""
    count = page.locator("article.assistant").count()
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    article = page.locator("article.assistant").nth(count)
    expect(article).to_be_visible()
    if is_done:
        expect(article).to_have_attribute("aria-busy", "false")
    return article


def text_of(article):
    return article.locator(".text").text_content()


def snippet(article, name):
    if article.locator("details.same[open]").count() == 0:
        article.get_by_text("The same request as").click()
    article.get_by_role("tab", name=name, exact=True).click()
    return article.get_by_role("tabpanel").text_content()


def scripted(context, *frames, done=True):
    """Makes the chat route answer with these frames."""
    body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames)
    body += "data: [DONE]\n\n" if done else ""
    context.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=body))


def delta(finish=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def test_an_answer_is_streamed_and_measured(context):
    page = opened(context, "mock", max_tokens="60")
    # The page itself counts how often the text grew: it may be over before the test looks again.
    page.evaluate("""() => {
        window.growths = 0;
        const options = { characterData: true, childList: true, subtree: true };
        new MutationObserver(() => { window.growths += 1; }).observe(document.getElementById("log"), options);
    }""")
    article = ask(page, "count")
    assert page.evaluate("growths") > 10
    stats = article.locator(".stats").text_content()
    for part in ["time to first token", "tokens/s", "60 answer tokens", "finish: length"]:
        assert part in stats, stats
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_conversation_is_sent_along_and_a_new_chat_forgets_it(context):
    page = opened(context, "smollm", max_tokens="8")
    first = text_of(ask(page, QUESTION))
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And of Spain?")
    assert sent.value.post_data_json["messages"] == [
        {"role": "user", "content": QUESTION}, {"role": "assistant", "content": first},
        {"role": "user", "content": "And of Spain?"}]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    page.get_by_label("System prompt").fill("Be brief.")
    with page.expect_request("**/v1/chat/completions") as sent:
        again = ask(page, QUESTION)
    roles = [message["role"] for message in sent.value.post_data_json["messages"]]
    assert roles == ["system", "user"] and text_of(again)


def test_curl_python_and_grpcurl_give_the_same_text(context):
    page = opened(context, "smollm")
    page.get_by_label("More fields").fill('{"top_p": 0.9, "top_k": 40}')
    article = ask(page, QUESTION)
    text = text_of(article)
    assert text

    def run(command):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = run(["bash", "-c", snippet(article, "curl")])
    frames = [line.removeprefix("data: ") for line in out.splitlines() if line.startswith("data: ")]
    assert frames.pop() == "[DONE]"
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == text
    assert run([sys.executable, "-c", snippet(article, "Python")]) == text + "\n"
    assert run(["bash", "-c", snippet(article, "grpcurl")]) == text + "\n"


def test_stop_and_escape_end_an_answer(context):
    page = opened(context, "mock", max_tokens="8000")
    for stop in [lambda: page.get_by_role("button", name="Stop").click(),
                 lambda: page.keyboard.press("Escape")]:
        article = ask(page, "count", is_done=False)
        expect(article.locator(".text")).not_to_be_empty()
        stop()
        expect(article).to_have_attribute("aria-busy", "false")
        expect(article.locator(".stats")).to_contain_text("stopped")
        text = text_of(article)
        page.wait_for_timeout(200)
        assert text_of(article) == text
    expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_an_unknown_model_is_told_and_the_message_can_be_sent_again(context):
    context.expected.append("404")
    page = opened(context, "no-such-model")
    article = ask(page, "hello")
    expect(article.get_by_role("alert")).to_contain_text("404")
    expect(article.get_by_role("alert")).to_contain_text("no-such-model")
    expect(page.get_by_label("Message")).to_have_value("hello")
    page.get_by_label("Model", exact=True).select_option("mock")
    assert text_of(ask(page, "hello again"))


def test_an_error_in_the_middle_of_a_stream_is_told_after_what_came(context):
    page = opened(context, "mock")
    error = {"error": {"message": "the engine failed", "type": "server_error", "code": "oops"}}
    scripted(context, delta(content="so far"), error, done=False)
    article = ask(page, "hello")
    assert text_of(article) == "so far"
    expect(article.get_by_role("alert")).to_have_text("error oops: the engine failed")
    context.unroute_all()
    scripted(context, delta(content="so far"), done=False)
    expect(ask(page, "hello").get_by_role("alert")).to_contain_text("broke off")


def test_what_a_model_says_is_text_and_its_reasoning_is_folded(context):
    page = opened(context, "mock")
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    scripted(context, delta(role="assistant"), delta(reasoning_content=f"hm {evil}"),
             delta(content=evil), delta(finish="stop"))
    article = ask(page, "hello")
    assert text_of(article) == evil
    assert article.locator("img, script").count() == 0
    reasoning = article.locator(".reasoning")
    expect(reasoning.locator("pre")).to_be_hidden()
    reasoning.locator("summary").click()
    expect(reasoning.locator("pre")).to_have_text(f"hm {evil}")


def test_a_tool_call_is_shown_and_the_next_message_is_its_result(context):
    page = opened(context, "mock")
    tools = [{"type": "function", "function": {"name": "f"}}]
    page.get_by_label("More fields").fill(json.dumps({"tools": tools, "stop": ["x"]}))
    call = {"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "f", "arguments": '{"a"'}}
    scripted(context, delta(tool_calls=[call]),
             delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
             delta(finish="tool_calls"))
    article = ask(page, "call f")
    expect(article.locator(".call summary")).to_have_text("Tool call: f call_1")
    expect(article.locator(".call pre")).to_have_text('{"a": 1}')
    assert "tools=[" in snippet(article, "Python")
    grpcurl = snippet(article, "grpcurl")
    assert '"tools":{"string_param":' in grpcurl and grpcurl.startswith("# without stop:")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "42")
    asked, answered = sent.value.post_data_json["messages"][-2:]
    assert asked["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert answered == {"role": "tool", "tool_call_id": "call_1", "content": "42"}


def test_the_key_is_sent_and_stays_out_of_the_examples(context):
    page = opened(context, "mock", max_tokens="4")
    page.get_by_label("API key").fill("s3cret")
    page.get_by_label("API key").blur()
    with page.expect_request("**/v1/chat/completions") as sent:
        article = ask(page, "hello")
    assert sent.value.headers["authorization"] == "Bearer s3cret"
    for name in ["curl", "Python", "grpcurl"]:
        text = snippet(article, name)
        assert "STATOR_API_KEY" in text and "s3cret" not in text
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


def test_settings_that_cannot_be_sent_are_told(context):
    page = opened(context, "mock", temperature="3")
    notice = page.locator("#notice")
    for label, bad, told in [("Temperature", "3", "Temperature"), ("More fields", "[1]", "JSON object"),
                             ("More fields", "{", "More fields")]:
        page.get_by_label(label).fill(bad)
        page.get_by_label("Message").fill("hello")
        page.get_by_label("Message").press("Enter")
        expect(notice).to_contain_text(told)
        assert page.locator("article").count() == 0
        page.get_by_label("Temperature").fill("1")


def test_the_examples_are_tabs_for_the_keyboard(context):
    page = opened(context, "mock", max_tokens="4")
    article = ask(page, "hello")
    article.get_by_text("The same request as").click()
    article.get_by_role("tab", name="curl", exact=True).focus()
    page.keyboard.press("ArrowRight")
    expect(article.get_by_role("tab", name="Python")).to_be_focused()
    expect(article.get_by_role("tabpanel")).to_contain_text("from openai import OpenAI")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(article.get_by_role("tabpanel")).to_contain_text("ModelInfer")


def test_the_pages_allow_no_other_script_and_no_other_host(context, server):
    for path in ["/", "/docs"]:
        with urllib.request.urlopen(f"http://{server.http}{path}") as answer:
            policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-"), policy
        assert "connect-src 'self'" in policy and "unsafe-eval" not in policy


def document(server):
    with urllib.request.urlopen(f"http://{server.http}/openapi.json") as answer:
        return json.load(answer)


def test_the_document_is_valid_and_what_the_command_prints(server):
    told = document(server)
    OpenAPIV31SpecValidator(told).validate()
    printed = subprocess.run([str(BINARY), "openapi"], capture_output=True, check=True)
    assert json.loads(printed.stdout) == told


def test_the_reference_shows_every_route_and_tries_one(context, server):
    page = context.new_page()
    page.goto("/docs")
    operations = page.locator(".operation")
    expect(operations.first).to_be_visible()
    told = document(server)
    count = sum(method in ("get", "post", "delete") for item in told["paths"].values() for method in item)
    expect(operations).to_have_count(count)
    for index in range(count):
        operations.nth(index).locator("summary").first.click()
    expect(page.get_by_role("heading", name="Try it")).to_have_count(count)
    page.get_by_label("Filter").fill("post generate")
    shown = page.locator("#generate")
    expect(shown).to_be_visible()
    expect(page.locator("#listModels")).to_be_hidden()
    expect(shown).to_contain_text("max_tokens")
    shown.get_by_label("model (path)").fill("mock_fast")
    shown.get_by_label("Body").fill('{"text_input": "a", "max_tokens": 3}')
    expect(shown.get_by_label("curl")).to_contain_text("/v2/models/mock_fast/generate'")
    shown.get_by_role("button", name="Send").click()
    expect(shown.get_by_label("Answer")).to_contain_text('"text_output"')
    expect(shown.get_by_label("Answer")).to_contain_text("200")
    out = subprocess.run(["bash", "-c", shown.get_by_label("curl").text_content()],
                         capture_output=True, check=True)
    assert "text_output" in json.loads(out.stdout)
