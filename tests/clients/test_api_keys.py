"""API keys on every door: who may do what, how often, and how a refusal reads."""

import subprocess
import tomllib

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from conftest import BINARY, running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from google.rpc import error_details_pb2
from patience import eventually
from security import FAST, MODELS, entry, replace
from tritonclient.grpc import service_pb2, service_pb2_grpc

KEYS = "".join([
    entry("all", "sk-all", 'scopes = ["*"]'),
    entry("caller", "sk-caller", 'scopes = ["inference"]'),
    entry("reader", "sk-reader", 'scopes = ["metadata"]'),
    entry("one-model", "sk-one", 'models = ["mo*"]'),
    entry("scraper", "sk-metrics", 'scopes = ["metrics"]'),
    entry("expired", "sk-expired", "expires = 2020-01-01T00:00:00Z"),
    entry("few", "sk-few", "requests_per_minute = 3"),
    entry("stream", "sk-stream", "requests_per_minute = 2"),
    entry("spender", "sk-spender", "tokens_per_minute = 5"),
    entry("tokens", "sk-tokens", "tokens_per_minute = 5"),
])
METHODS = {
    "ServerMetadata": (service_pb2.ServerMetadataRequest(), "reader"),
    "ModelReady": (service_pb2.ModelReadyRequest(name="simple"), "reader"),
    "RepositoryIndex": (service_pb2.RepositoryIndexRequest(), "reader"),
    "RepositoryModelUnload": (service_pb2.RepositoryModelUnloadRequest(model_name="x"), "all"),
    "TraceSetting": (service_pb2.TraceSettingRequest(), "all"),
    "LogSettings": (service_pb2.LogSettingsRequest(), "all"),
    "SystemSharedMemoryRegister": (service_pb2.SystemSharedMemoryRegisterRequest(name="x"), "all"),
}
ROUTES = {
    "/v2": "reader",
    "/v2/models/simple/ready": "reader",
    "/v2/models/simple/config": "reader",
    "/v2/logging": "all",
    "/v2/trace/setting": "all",
    "/v2/systemsharedmemory/status": "all",
}
GENERATE = {"text_input": "a b c", "max_tokens": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with keys in a TOML file."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(KEYS)
    with running("--api-keys", str(file), *FAST, *MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def bearer(key):
    return [("authorization", f"Bearer {key}")] if key else []


def code_of(call):
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def get(server, path, key=None, **options):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"http://{server.http}{path}", headers=headers, **options)


def generate(server, key, **headers):
    headers = {"authorization": f"Bearer {key}"} if key else headers
    url = f"http://{server.http}/v2/models/mock/generate"
    return httpx.post(url, json=GENERATE, headers=headers)


def text_request(model="mock"):
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(b"\x05\x00\x00\x00a b c")
    return request


def test_health_needs_no_key(server, stub):
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert get(server, path).status_code == 200
    assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_tells_no_names_of_models_without_a_key(server):
    named = lambda key: httpx.get(f"http://{server.http}/health", headers=dict(bearer(key) or ())).json()
    assert named(None) == {"status": "healthy", "models": []}
    assert named("sk-wrong") == named("sk-metrics") == named(None)
    assert "mock" in named("sk-caller")["models"] and named("sk-reader") == named("sk-caller")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def code(name, key):
            asked = health_pb2.HealthCheckRequest(service=name)
            return code_of(lambda: stub.Check(asked, metadata=bearer(key)))

        for name in ("", "inference.GRPCInferenceService"):
            assert code(name, None) == code(name, "sk-wrong") == code(name, "sk-caller") == "OK"
        for name in ("mock", "nope"):
            assert code(name, None) == code(name, "sk-wrong") == "UNAUTHENTICATED"
            assert code(name, "sk-metrics") == "PERMISSION_DENIED"
        assert code("mock", "sk-caller") == code("mock", "sk-reader") == "OK"
        assert code("nope", "sk-caller") == "NOT_FOUND"

        def watched(name, key):
            call = stub.Watch(health_pb2.HealthCheckRequest(service=name), metadata=bearer(key))
            code = code_of(lambda: next(call))
            call.cancel()
            return code

        assert watched("", None) == watched("mock", "sk-caller") == "OK"
        for name in ("mock", "nope"):
            assert watched(name, None) == watched(name, "sk-wrong") == "UNAUTHENTICATED"
        # A second message is refused before either is looked at.
        twice = channel.stream_unary("/grpc.health.v1.Health/Check")
        asked = [health_pb2.HealthCheckRequest(service=name).SerializeToString() for name in ("", "mock")]
        for key in (None, "sk-caller"):
            assert code_of(lambda: twice(iter(asked), metadata=bearer(key))) == "UNIMPLEMENTED"


@pytest.mark.parametrize("method", METHODS)
def test_methods_need_their_scope(stub, method):
    request, scope = METHODS[method]
    call = lambda key: code_of(lambda: getattr(stub, method)(request, metadata=bearer(key)))
    assert call(None) == "UNAUTHENTICATED"
    assert call("sk-wrong") == "UNAUTHENTICATED"
    assert call("sk-expired") == "UNAUTHENTICATED"
    assert call("sk-caller") == "PERMISSION_DENIED"
    assert (call("sk-reader") == "PERMISSION_DENIED") == (scope == "all")
    assert call("sk-all") not in ("UNAUTHENTICATED", "PERMISSION_DENIED")


@pytest.mark.parametrize("route", ROUTES)
def test_routes_need_their_scope(server, route):
    status = lambda key: get(server, route, key).status_code
    assert [status(None), status("sk-wrong"), status("sk-expired")] == [401] * 3
    assert status("sk-caller") == 403
    assert status("sk-reader") == (403 if ROUTES[route] == "all" else 200)
    assert status("sk-all") == 200


def test_loading_over_http_needs_the_scope_admin(server):
    for action in ("load", "unload"):
        url = f"http://{server.http}/v2/repository/models/simple/{action}"
        post = lambda key: httpx.post(url, headers={"authorization": f"Bearer {key}"}).status_code
        assert (post("sk-reader"), post("sk-one")) == (403, 403)
        assert post("sk-all") not in (401, 403)


def test_inference_by_both_headers_on_both_doors(server, stub):
    assert generate(server, "sk-caller").status_code == 200
    assert generate(server, None, **{"x-api-key": "sk-caller"}).status_code == 200
    assert generate(server, None).status_code == 401
    assert generate(server, "sk-reader").status_code == 403
    infer = lambda metadata: code_of(lambda: stub.ModelInfer(text_request(), metadata=metadata))
    assert infer(bearer("sk-caller")) == "OK"
    assert infer([("x-api-key", "sk-caller")]) == "OK"
    assert infer([]) == "UNAUTHENTICATED"
    assert infer(bearer("sk-reader")) == "PERMISSION_DENIED"


def test_triton_clients_bring_keys_as_headers(server):
    headers = {"authorization": "Bearer sk-caller"}
    for library, address in [(triton, server.address), (triton_http, server.http)]:
        inputs = [library.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
        for one in inputs:
            one.set_data_from_numpy(np.ones((1, 16), np.int32))
        client = library.InferenceServerClient(address)
        result = client.infer("simple", inputs, headers=headers)
        assert result.as_numpy("OUTPUT0")[0, 0] == 2
        with pytest.raises(Exception, match="no API key was given"):
            client.infer("simple", inputs)


def test_compressed_calls_are_asked_too(stub):
    call = lambda key, model="mock": code_of(lambda: stub.ModelInfer(
        text_request(model), metadata=bearer(key), compression=grpc.Compression.Gzip))
    assert call(None) == "UNAUTHENTICATED"
    assert call("sk-one", "simple") == "PERMISSION_DENIED"
    assert call("sk-one") == "OK"


def test_a_key_is_for_its_models(server, stub):
    assert generate(server, "sk-one").status_code == 200
    url = f"http://{server.http}/v2/models/simple/infer"
    refused = httpx.post(url, json={"inputs": []}, headers={"authorization": "Bearer sk-one"})
    assert refused.status_code == 403
    assert refused.json() == {"error": "model 'simple' is not allowed for this key"}
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(text_request("simple"), metadata=bearer("sk-one"))
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "model 'simple' is not allowed for this key"
    answers = stub.ModelStreamInfer(iter([text_request("simple"), text_request()]),
                                    metadata=bearer("sk-one"))
    messages = [answer.error_message for answer in answers]
    assert "model 'simple' is not allowed for this key" in messages
    assert "" in messages, "the stream lives on"


def test_refusals_read_as_their_api_writes_them(server):
    refused = {path: httpx.post(f"http://{server.http}{path}", json={})
               for path in ("/v1/chat/completions", "/v1/messages", "/v2/models/mock/generate")}
    assert {answer.status_code for answer in refused.values()} == {401}
    assert {answer.headers["www-authenticate"] for answer in refused.values()} == {"Bearer"}
    assert all(len(answer.headers["x-request-id"]) == 32 for answer in refused.values())
    openai = refused["/v1/chat/completions"].json()["error"]
    message = openai.pop("message")
    assert openai == {"type": "authentication_error", "param": None, "code": "invalid_api_key"}
    assert refused["/v1/messages"].json() == {
        "type": "error", "error": {"type": "authentication_error", "message": message}}
    assert refused["/v2/models/mock/generate"].json() == {"error": message}
    denied = httpx.post(f"http://{server.http}/v1/chat/completions", json={},
                        headers={"authorization": "Bearer sk-reader"})
    assert (denied.status_code, denied.json()["error"]["type"]) == (403, "permission_error")


def test_requests_over_the_rate_are_told_when_to_come_back(server, stub):
    statuses = [generate(server, "sk-few").status_code for _ in range(3)]
    assert statuses == [200] * 3
    refused = generate(server, "sk-few")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
    openai = httpx.post(f"http://{server.http}/v1/completions", json={},
                        headers={"authorization": "Bearer sk-few"})
    assert openai.status_code == 429
    error = openai.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(text_request(), metadata=bearer("sk-few"))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    [detail] = rpc_status.from_call(caught.value).details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info) and 0 < info.retry_delay.seconds + info.retry_delay.nanos / 1e9 <= 20


def test_every_request_of_a_stream_counts(stub):
    answers = stub.ModelStreamInfer(iter([text_request() for _ in range(3)]),
                                    metadata=bearer("sk-stream"))
    refused = [a.error_message for a in answers if a.error_message]
    assert len(refused) == 1 and "2 requests per minute" in refused[0]


def test_tokens_are_counted_and_refuse_the_next_request(server):
    assert generate(server, "sk-tokens").status_code == 200
    refused = generate(server, "sk-tokens")
    assert refused.status_code == 429
    assert "5 tokens per minute" in refused.json()["error"]
    # At least 3 + 8 tokens are used, so 6 have to come back before the next may run.
    assert int(refused.headers["retry-after"]) > 60


def complete(server, key, path="/v1/completions", model="mock"):
    body = {"model": model, "prompt": "a b c", "max_tokens": 8}
    return httpx.post(f"http://{server.http}{path}", json=body,
                      headers={"authorization": f"Bearer {key}"})


def test_openai_routes_keep_to_models_and_count_tokens(server):
    assert complete(server, "sk-one").status_code == 200
    refused = complete(server, "sk-one", model="simple")
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    assert "'simple' is not allowed" in refused.json()["error"]["message"]
    assert complete(server, "sk-spender").status_code == 200
    assert complete(server, "sk-spender").status_code == 429


def test_a_route_that_moves_takes_its_scope_along(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    moves = ["--openai-path", "completions=/live", "--openai-path", "live=/alive"]
    with running("--api-keys", str(file), *moves, *FAST, *MODELS) as server:
        assert complete(server, "sk-reader", "/live").status_code == 403
        assert complete(server, "sk-wrong", "/live").json()["error"]["code"] == "invalid_api_key"
        assert complete(server, "sk-caller", "/live").status_code == 200
        assert get(server, "/alive").status_code == 200


def test_metrics_need_their_scope(server):
    status = lambda key: httpx.get(f"http://{server.metrics}/metrics",
                                   headers=bearer(key)).status_code
    assert [status(None), status("sk-reader"), status("sk-metrics")] == [401, 403, 200]


def test_keys_are_reloaded_and_never_logged(tmp_path):
    file = tmp_path / "keys.json"
    minted = subprocess.run([BINARY, "key", "new", "--scopes", "metadata"], capture_output=True,
                            text=True, check=True)
    key = minted.stderr.split()[-1]
    assert key.startswith("sk-stator-") and key not in minted.stdout
    file.write_text("[]")
    level = ["--log-level", "trace"]
    with running("--api-keys", str(file), *FAST, *level) as server:
        assert get(server, "/v2", key).status_code == 401
        digest = tomllib.loads(minted.stdout)["keys"][0]["sha256"]
        listed = f'[{{"name": "new", "sha256": "{digest}", "scopes": ["metadata"]}}]'
        replace(file, listed.encode())
        eventually("the new key", lambda: get(server, "/v2", key).status_code == 200)
        replace(file, b"[{]")
        eventually("a warning", lambda: any("stay in force" in line for line in server.log))
        assert get(server, "/v2", key).status_code == 200
        replace(file, b"[]")
        eventually("no key", lambda: get(server, "/v2", key).status_code == 401)
        with grpc.insecure_channel(server.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            code_of(lambda: stub.ServerMetadata(service_pb2.ServerMetadataRequest(),
                                                metadata=bearer(key)))
        server.terminate()
        assert server.wait() == 0
        assert not [line for line in server.log if key in line]


def test_origins_of_web_pages(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(KEYS)
    asked = {"origin": "http://a.example", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type"}
    with running("--cors-origin", "http://a.example", "--cors-origin", "http://b.example:3000",
                 "--api-keys", str(file), *FAST, *MODELS) as server:
        url = f"http://{server.http}/v2/models/mock/generate"
        answer = httpx.options(url, headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://a.example"
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        other = httpx.options(url, headers={**asked, "origin": "http://c.example"})
        assert "access-control-allow-origin" not in other.headers
        # A refusal can be read by the page too, and the preflight opened nothing.
        refused = httpx.post(url, json=GENERATE, headers={"origin": "http://b.example:3000"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://b.example:3000"
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
    with running("--cors-origin", "*", *FAST, *MODELS) as server:
        answer = httpx.get(f"http://{server.http}/v2", headers={"origin": "http://any.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
    with running(*FAST) as server:
        answer = httpx.options(f"http://{server.http}/v2", headers=asked)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
