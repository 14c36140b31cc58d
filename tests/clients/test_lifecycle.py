"""The process: start, configuration, memory, shutdown, a model from a hub."""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import threading

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from conftest import BINARY, DOORS, LOCAL, running
from patience import NEVER_MS, PATIENCE_SECONDS, eventually
from real_models import real_model
from wire import Stream, outputs_of, refused, request, tensor, text_request


def stator(*arguments, **environment):
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                          env={**os.environ, **environment})


@contextlib.contextmanager
def stub_of(server):
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_help_is_grouped_and_names_every_variable():
    text = stator("serve", "--help").stdout
    for heading in ("Models:", "gRPC:", "Engine:", "Process:"):
        assert heading in text, text
    assert "STATOR_GRPC_PORT" in text and "DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE" in text


def test_flags_beat_variables_beat_the_file(tmp_path):
    config = tmp_path / "stator.toml"
    config.write_text("grpc-port = 1111\nserver-name = 'file'\nthreads = 3\n")
    text = stator("serve", "--config", str(config), "--grpc-port", "3333", "--dump-config",
                  STATOR_SERVER_NAME="variable").stdout
    assert "grpc-port = 3333 # flag" in text, text
    assert 'server-name = "variable" # environment' in text, text
    assert "threads = 3 # file" in text, text


@pytest.mark.parametrize("arguments, fragment", [
    (["--grpc-port", "many"], "invalid value 'many'"),
    (["--grpc-host", "no such host"], "--grpc-host: `no such host` is not an address"),
    (["--builtin", "identity,datatype=FP8"], "FP8"),
    (["--builtin", "nonsense"], "nonsense"),
    (["--exit-on-error", "/nowhere/model.gguf"], "cannot read `/nowhere/model.gguf`"),
    (["--config", "/nowhere.toml"], "cannot read `/nowhere.toml`"),
    (["--no-such-flag"], "--no-such-flag"),
], ids=lambda value: value[0] if isinstance(value, list) else None)
def test_what_cannot_be_served_stops_the_start(arguments, fragment):
    ended = stator("serve", *arguments, STATOR_GRPC_PORT="0", STATOR_METRICS_PORT="0")
    assert ended.returncode != 0 and fragment in ended.stderr, ended.stderr


def test_a_file_that_is_no_model_stops_the_start(tmp_path):
    model = tmp_path / "broken.gguf"
    real = real_model().read_bytes()
    for content, fragment in [(b"PK\3\4", "GGUF"), (real[:1000], "the file ends"),
                              (real[:5_000_000], "outside of the file")]:
        model.write_bytes(content)
        ended = stator("serve", "--exit-on-error", str(model), *LOCAL, *DOORS)
        assert ended.returncode != 0 and fragment in ended.stderr, ended.stderr


def test_a_directory_of_another_architecture_is_told_all_that_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    ended = stator("serve", "--exit-on-error", str(tmp_path), *LOCAL, *DOORS)
    assert ended.returncode != 0, ended
    for word in ("`modernbert` does not run here", "llama", "qwen3", "distilbert", "xlm-roberta"):
        assert word in ended.stderr, ended.stderr


def test_a_port_in_use_is_named(server):
    port = server.address.rsplit(":", 1)[1]
    ended = stator("serve", "--no-default-model", "--grpc-host", "127.0.0.1", "--grpc-port", port,
                   "--metrics-port", "0")
    assert ended.returncode != 0 and f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_an_idle_server_is_small():
    with running("--no-default-model") as server:
        with open(f"/proc/{server.pid}/status") as status:
            rss = next(line for line in status if line.startswith("VmRSS"))
    assert int(rss.split()[1]) < 40 * 1024, rss


def test_shutdown_lets_requests_finish_and_refuses_new_ones():
    with running("--no-default-model", "--builtin", "mock=mock,pace_ms=10", "--builtin", "identity",
                 "--shutdown-grace-ms", str(NEVER_MS)) as server, stub_of(server) as stub:
        stream = Stream(stub)
        stream.send(text_request("mock", "hello", extra=[tensor("streaming", "BOOL", [1])],
                                 raw=[b"\1"], max_tokens=600))
        stream.next()
        server.terminate()
        made = request("identity", [tensor("INPUT0", "FP32", [1])], [bytes(4)])

        def is_refused():
            try:
                stub.ModelInfer(made)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                return True
            return False

        eventually("requests are refused", is_refused)
        assert server.process.poll() is None, "it refuses before it ends"
        assert len(stream.until_final()) == 599, "the request under way finishes"
        stream.close()
        assert server.wait() == 0


def test_shutdown_is_bounded():
    with running("--no-default-model", "--builtin", "mock=mock,pace_ms=10",
                 "--shutdown-grace-ms", "300") as server, stub_of(server) as stub:
        stream = Stream(stub)
        stream.send(text_request("mock", "hello", extra=[tensor("streaming", "BOOL", [1])],
                                 raw=[b"\1"], max_tokens=8000))
        stream.next()
        server.terminate()
        with pytest.raises(grpc.RpcError):
            stream.until_final()
        stream.close()
        assert server.wait() == 0
        assert any("cancelled" in line for line in server.log), server.log


def test_the_log_holds_no_prompt(server, stub):
    secret = "a-very-secret-prompt"
    stub.ModelInfer(text_request("mock_fast", secret, max_tokens=2))
    refused(lambda: stub.ModelInfer(text_request("mock_fast", secret, top_p=9.0)),
            grpc.StatusCode.INVALID_ARGUMENT)
    assert not any(secret in line for line in server.log)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a Hugging Face hub as a download needs; files come in ranges."""

    files = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/api/models/some/model"):
            siblings = ",".join(f'{{"rfilename": "{name}"}}' for name in self.files)
            return self.answer(200, f'{{"siblings": [{siblings}], "sha": "abc"}}'.encode())
        content = self.files.get(self.path.rsplit("/", 1)[1])
        if not self.path.startswith("/some/model/resolve/main/") or content is None:
            return self.answer(404, b"")
        tag = hashlib.sha256(content).hexdigest()
        headers = {"etag": f'"{tag}"', "x-repo-commit": "abc", "accept-ranges": "bytes"}
        wanted = self.headers.get("range")
        if not wanted:
            return self.answer(200, content, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers["content-range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first:last + 1], headers)

    do_HEAD = do_GET

    def answer(self, code, body, headers=None):
        self.send_response(code)
        for key, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub():
    Hub.files = {}
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}"
    listener.shutdown()


def test_a_model_comes_from_a_hub_and_is_kept(hub, tmp_path):
    real = real_model().read_bytes()
    Hub.files = {"README.md": b"hello", "tiny.gguf": real}
    arguments = ["tiny=some/model", "--hub-url", hub, "--model-dir", str(tmp_path)]
    for _ in range(2):
        with running(*arguments) as server, stub_of(server) as stub:
            made = text_request("tiny", "The capital of France is", temperature=0.0, max_tokens=4)
            assert b"Paris" in outputs_of(stub.ModelInfer(made))["text_output"][0]
        Hub.files.pop("README.md", None)


def test_a_hub_without_the_model_says_so(hub, tmp_path):
    Hub.files = {"README.md": b"hello"}
    ended = stator("serve", "--exit-on-error", "some/model", "--hub-url", hub, "--model-dir", str(tmp_path),
                   *LOCAL, *DOORS)
    assert ended.returncode != 0 and "holds no GGUF file" in ended.stderr, ended.stderr
    Hub.files = {"a.gguf": b"x", "b.gguf": b"y"}
    ended = stator("serve", "--exit-on-error", "some/model", "--hub-url", hub, "--model-dir", str(tmp_path),
                   *LOCAL, *DOORS)
    assert "name one" in ended.stderr, ended.stderr
