"""`stator chat`: piped lines, and a terminal with a person's keys."""

import contextlib
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time

import pytest

from conftest import BINARY
from patience import PATIENCE_SECONDS


def chat(server, *arguments, text="", url=None):
    command = [str(BINARY), "chat", url or f"http://{server.http}", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False,
                          timeout=PATIENCE_SECONDS)


@contextlib.contextmanager
def door(*frames, status=200):
    """A server that answers each chat with these frames and keeps the requests."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append((dict(self.headers), json.loads(body)))
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if status == 200 else "application/json")
            self.end_headers()
            for frame in frames:
                self.wfile.write(frame.encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{stub.server_port}", asked
        stub.shutdown()


def frame(**delta):
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}) + "\n\n"


DONE = "data: [DONE]\n\n"


def test_each_piped_line_is_a_turn_and_only_answers_are_printed(server):
    done = chat(server, "--model", "smollm", "--temperature", "0", "--max-tokens", "24", "--stats",
                text="What is the capital of France?\n\nAnd of Italy?\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Paris" in lines[0] and "Rome" in done.stdout and ">" not in done.stdout
    figures = done.stderr.splitlines()
    assert len(figures) == 2 and all("time to first token" in line and "tokens/s" in line for line in figures)


def test_the_conversation_and_its_commands_reach_the_server(server):
    with door(frame(reasoning_content="hm"), frame(content="é\x1b!"), DONE) as (url, asked):
        text = "one\n/system be brief\ntwo\n/clear\n/model other\n/etc/hosts?\n/exit\nnever\n"
        done = chat(server, "--model", "m", "--seed", "7", text=text, url=f"{url}/v1")
    assert (done.returncode, done.stdout) == (0, "é\x1b!\n" * 3), done.stderr
    first, second, third = (body for _, body in asked)
    answer = {"role": "assistant", "content": "é\x1b!"}
    system = {"role": "system", "content": "be brief"}
    user = [{"role": "user", "content": text} for text in ["one", "two", "/etc/hosts?"]]
    assert first["messages"] == user[:1] and first["seed"] == 7 and first["stream"]
    assert second["messages"] == [system, user[0], answer, user[1]]
    assert third["messages"] == [system, user[2]] and third["model"] == "other"


def test_a_key_is_sent_and_never_printed(server, tmp_path):
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    refusal = json.dumps({"error": {"message": "no such key", "code": "invalid_api_key"}})
    with door(refusal, status=401) as (url, asked):
        done = chat(server, "--model", "m", "--api-key-file", str(key), text="hi\n", url=url)
    assert asked[0][0]["authorization"] == "Bearer s3cret"
    assert done.returncode == 1 and "HTTP 401: no such key (invalid_api_key)" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


@pytest.mark.parametrize(("frames", "told"), [
    ([frame(content="so"), 'data: {"error": {"message": "it broke"}}\n\n'], "the answer failed: it broke"),
    ([frame(content="so")], "ended before the answer did"),
    (["data: {\n\n"], "no JSON"),
    ([b"data: \xc3\x28\n\n".decode("latin-1"), DONE], "no JSON"),
])
def test_a_stream_that_fails_is_an_error(server, frames, told):
    with door(*frames) as (url, _):
        done = chat(server, "--model", "m", text="hi\nmore\n", url=url)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_cannot_be_done_is_said_in_a_sentence(server, tmp_path):
    table = [
        (["--model", "no-such-model"], {}, 1, "no-such-model"),
        ([], {"url": "http://127.0.0.1:1"}, 1, "cannot reach 127.0.0.1:1"),
        ([], {"url": "ftp://host"}, 2, "expected http or https"),
        (["--api-key-file", str(tmp_path / "none")], {}, 2, "API key"),
        (["--temperature", "3"], {}, 2, "expected a number from 0 to 2"),
    ]
    for arguments, options, code, told in table:
        done = chat(server, *arguments, text="hi\n", **options)
        assert done.returncode == code and told in done.stderr, (arguments, done.stderr)
        assert "panicked" not in done.stderr


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(BINARY, [str(BINARY), "chat", *arguments])
        self.unread = ""

    def read(self, wanted):
        """Reads up to the end of a text; returns what came before it, and the text."""
        end = time.monotonic() + PATIENCE_SECONDS
        while wanted not in self.unread:
            ready, _, _ = select.select([self.file], [], [], max(0, end - time.monotonic()))
            assert ready, f"{wanted!r} did not come: {self.unread!r}"
            self.unread += os.read(self.file, 65536).decode(errors="replace")
        before, _, self.unread = self.unread.partition(wanted)
        return before + wanted

    def type(self, text):
        os.write(self.file, text.encode())

    def code(self):
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if select.select([self.file], [], [], 0.05)[0]:
                    os.read(self.file, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the chat did not end")


def test_a_person_chats_stops_an_answer_and_ends(server):
    terminal = Terminal(f"http://{server.http}", "--model", "mock", "--max-tokens", "8000")
    terminal.read("> ")
    terminal.type("count\r")
    terminal.read(" and ")
    terminal.type("\x03")
    terminal.read("stopped; Ctrl-C again ends the chat")
    terminal.type("/nonsense\r")
    terminal.read("no command is called `/nonsense`")
    terminal.type("/stats on\r")
    terminal.read("figures are on")
    terminal.type("/model mock_fast\r")
    terminal.read("the model is mock_fast")
    terminal.type("count\r")
    shown = terminal.read("answer tokens")
    assert re.search(r"time to first token \d+ ms", shown), shown
    # Ctrl-D ends a chat that waits for a line; before that the terminal keeps it.
    terminal.read("> ")
    terminal.type("\x04")
    assert terminal.code() == 0


def test_ctrl_c_twice_ends_with_130(server):
    terminal = Terminal(f"http://{server.http}", "--model", "mock", "--max-tokens", "8000")
    terminal.read("> ")
    terminal.type("count\r")
    terminal.read(" and ")
    terminal.type("\x03")
    terminal.read("> ")
    terminal.type("\x03")
    assert terminal.code() == 130


def test_an_answer_cannot_steer_the_terminal():
    with door(frame(reasoning_content="hm\x1b[2J"), frame(content="a\x1b[2Jb"), DONE) as (url, _):
        terminal = Terminal(url, "--model", "m")
        terminal.read("> ")
        terminal.type("hi\r")
        shown = terminal.read("b\r\n")
        assert "a\ufffd[2Jb" in shown and "hm\ufffd[2J" in shown and "\x1b[2J" not in shown
        terminal.type("/exit\r")
        assert terminal.code() == 0
