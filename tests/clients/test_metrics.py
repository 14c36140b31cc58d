"""The metrics tell what happened, with cancelled apart from failed."""

import urllib.request

import grpc
import pytest

from wire import Stream, floats, request, tensor, text_request


def page(server):
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
        return answer.read().decode()


def scrape(server, series):
    """Returns the value of a series, 0 when there is none yet."""
    for line in page(server).splitlines():
        if line.startswith(series + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


def requests_total(server, model, code, rpc="ModelInfer"):
    return scrape(server, f'stator_requests_total{{rpc="{rpc}",model="{model}",code="{code}"}}')


def test_requests_count_by_rpc_model_and_code(stub, server):
    before = [requests_total(server, "identity", code) for code in ["OK", "INVALID_ARGUMENT"]]
    good = request("identity", [tensor("INPUT0", "FP32", [1])], [floats(1)])
    stub.ModelInfer(good)
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("identity"))
    after = [requests_total(server, "identity", code) for code in ["OK", "INVALID_ARGUMENT"]]
    assert [b - a for a, b in zip(before, after)] == [1, 1]


def test_an_unknown_model_makes_no_series_of_its_own(stub, server):
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(request("a-name-nobody-serves"))
    assert "a-name-nobody-serves" not in page(server)
    assert requests_total(server, "", "NOT_FOUND") >= 1


def test_a_cancelled_request_is_not_a_failed_one(stub, server):
    before = requests_total(server, "mock", "CANCELLED", "ModelStreamInfer")
    stream = Stream(stub)
    stream.send(text_request("mock", "x", max_tokens=500,
                             extra=[tensor("stream", "BOOL", [1])], raw=[b"\x01"]))
    stream.next()
    stream.cancel()
    for _ in range(200):
        if requests_total(server, "mock", "CANCELLED", "ModelStreamInfer") == before + 1:
            break
    else:
        raise AssertionError("the cancelled request was not counted")


def test_tokens_and_their_times_are_counted(stub, server):
    names = ["stator_generated_tokens_total", "stator_time_to_first_token_seconds_count"]
    before = [scrape(server, f'{name}{{model="mock_fast"}}') for name in names]
    stub.ModelInfer(text_request("mock_fast", "hello", max_tokens=7))
    after = [scrape(server, f'{name}{{model="mock_fast"}}') for name in names]
    assert [b - a for a, b in zip(before, after)] == [7, 1]


def test_nothing_is_in_flight_at_rest(server):
    for line in page(server).splitlines():
        if line.startswith("stator_requests_in_flight{"):
            assert line.endswith(" 0"), line
