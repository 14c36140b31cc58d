"""TraceSetting and LogSettings: what clients change while the server runs."""

import json
import re
import socket
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from conftest import running
from patience import eventually
from wire import Client, denied, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
MODELS = ["--builtin", "identity", "--builtin", "other=identity", "--builtin", "repeat_int32",
          "--builtin", "texts=identity,datatype=BYTES"]
DEFAULTS = {"trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"],
            "log_frequency": ["0"], "trace_mode": ["triton"]}


@pytest.fixture
def traced(tmp_path):
    """A server that may trace into a file, and does not yet."""
    with running("--trace-file", str(tmp_path / "trace.json"), *MODELS) as server:
        with Client(server) as client:
            client.file = tmp_path / "trace.json"
            yield client


def change(client, model="", **settings):
    """Changes trace settings and returns all of them but the file."""
    found = client.update_trace_settings(model or None, settings)
    return told(found)


def told(response):
    return {key: list(value.value) for key, value in response.settings.items()
            if key != "trace_file"}


def test_the_defaults_are_tritons(traced):
    assert told(traced.get_trace_settings()) == DEFAULTS
    assert told(traced.get_trace_settings("identity")) == DEFAULTS
    assert traced.get_trace_settings().settings["trace_file"].value == [str(traced.file)]


@pytest.mark.parametrize("key, value, shown", [
    ("trace_level", ["TIMESTAMPS"], ["TIMESTAMPS"]), ("trace_rate", "5", ["5"]),
    ("trace_level", ["TENSORS", "TIMESTAMPS"], ["TIMESTAMPS", "TENSORS"]),
    ("trace_count", "7", ["7"]), ("log_frequency", "3", ["3"]),
    ("trace_mode", "opentelemetry", ["opentelemetry"]),
])
def test_a_setting_is_set_for_the_server_or_a_model_and_cleared(traced, key, value, shown):
    ordered = lambda found: {k: sorted(v) for k, v in found.items()}
    changed = ordered({**DEFAULTS, key: shown})
    assert ordered(change(traced, "identity", **{key: value})) == changed
    assert told(traced.get_trace_settings()) == DEFAULTS, "one model's settings are its own"
    assert change(traced, "identity", **{key: None}) == DEFAULTS
    assert ordered(change(traced, **{key: value})) == changed
    assert ordered(told(traced.get_trace_settings("identity"))) == changed
    assert change(traced, **{key: None}) == DEFAULTS


def test_a_models_own_setting_outlasts_the_servers(traced):
    change(traced, "identity", trace_rate="2")
    assert change(traced, trace_rate="9", trace_count="4")["trace_rate"] == ["9"]
    assert told(traced.get_trace_settings("identity")) == {
        **DEFAULTS, "trace_rate": ["2"], "trace_count": ["4"]}
    assert told(traced.get_trace_settings("other"))["trace_rate"] == ["9"]
    assert change(traced, "identity", trace_rate=None)["trace_rate"] == ["9"]


@pytest.mark.parametrize("settings, code", [
    ({"trace_file": ["/tmp/x"]}, UNIMPLEMENTED), ({"trace_level": ["LOUD"]}, INVALID),
    ({"trace_level": ["OFF", "TENSORS"]}, INVALID), ({"trace_rate": ["x"]}, INVALID),
    ({"trace_rate": ["-1"]}, INVALID), ({"trace_rate": ["1", "2"]}, INVALID),
    ({"trace_rate": ["4294967296"]}, INVALID), ({"trace_count": ["-2"]}, INVALID),
    ({"trace_count": ["x"]}, INVALID), ({"log_frequency": ["-1"]}, INVALID),
    ({"trace_mode": ["loud"]}, INVALID), ({"trace_speed": ["1"]}, INVALID),
    ({"trace_count": ["5"], "trace_rate": ["x"]}, INVALID),
])
def test_a_wrong_trace_setting_is_refused_and_changes_nothing(traced, settings, code):
    values = {key: pb.TraceSettingRequest.SettingValue(value=v) for key, v in settings.items()}
    for model in ("", "identity"):
        sent = pb.TraceSettingRequest(settings=values, model_name=model)
        refused(lambda: traced.stub.TraceSetting(sent), code, list(settings)[-1][:5])
        assert told(traced.get_trace_settings(model or None)) == DEFAULTS


def test_the_settings_of_an_unknown_model_are_refused(traced):
    denied(lambda: traced.get_trace_settings("nope"), INVALID, "Request for unknown model : nope")
    denied(lambda: change(traced, "nope", trace_rate="1"), INVALID, "nope")


def test_the_flags_are_the_settings_of_the_start(tmp_path):
    flags = ["--trace-level", "TIMESTAMPS", "--trace-rate", "3", "--trace-count", "8",
             "--trace-log-frequency", "2", "--trace-file", str(tmp_path / "t")]
    with running(*flags, *MODELS) as server, Client(server) as client:
        start = {**DEFAULTS, "trace_level": ["TIMESTAMPS"], "trace_rate": ["3"],
                 "trace_count": ["8"], "log_frequency": ["2"]}
        assert told(client.get_trace_settings()) == start
        change(client, trace_level=["OFF"], trace_rate="1")
        assert change(client, trace_level=None, trace_rate=None) == start


LOG_DEFAULTS = {"log_file": "", "log_info": True, "log_warning": True, "log_error": True,
                "log_verbose_level": 0, "log_format": "default"}


@pytest.fixture
def logged():
    """A server whose clients can make it log at each level."""
    with running("--model-control-mode", "explicit", *MODELS) as server:
        with Client(server) as client:
            yield client


def log_told(response):
    return {key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in response.settings.items()}


def levels(client, expected):
    """Makes the server log at debug, info and warning; returns the levels that it did log, once
    those are there that are expected."""
    log = client.server.log
    before = len(log)
    host, port = client.server.address.rsplit(":", 1)
    socket.create_connection((host, int(port))).close()
    client.unload_model("other")
    denied(lambda: client.load_model("nope"), grpc.StatusCode.INTERNAL)
    told = lambda: {json.loads(line)["level"] for line in log[before:]}
    eventually("all is logged", lambda: told() >= expected)
    # What should not be logged had its time to come.
    time.sleep(0.15)
    return told()


def read_up(client):
    """Waits until all is read that the server has logged so far, of which this is the last."""
    ready = lambda: sum('"message":"model ready"' in line for line in list(client.server.log))
    before = ready()
    client.load_model("other")
    eventually("it is logged", lambda: ready() > before)


@pytest.mark.parametrize("key, value", [
    ("log_info", False), ("log_warning", False), ("log_error", False), ("log_verbose_level", 2),
    ("log_format", "ISO8601"),
])
def test_a_log_setting_is_set_and_all_are_told(logged, key, value):
    assert log_told(logged.get_log_settings()) == LOG_DEFAULTS
    assert log_told(logged.update_log_settings({key: value})) == {**LOG_DEFAULTS, key: value}
    assert log_told(logged.get_log_settings()) == {**LOG_DEFAULTS, key: value}
    assert log_told(logged.update_log_settings({key: LOG_DEFAULTS[key]})) == LOG_DEFAULTS


@pytest.mark.parametrize("settings, expected", [
    ({}, {"INFO", "WARN"}),
    ({"log_verbose_level": 1}, {"DEBUG", "INFO", "WARN"}),
    ({"log_info": False}, {"WARN"}),
    ({"log_info": False, "log_warning": False}, set()),
    ({"log_info": False, "log_warning": False, "log_error": False}, set()),
    ({"log_warning": False}, {"INFO"}),
    ({"log_verbose_level": 1, "log_info": False}, {"DEBUG", "WARN"}),
], ids=lambda value: json.dumps(value) if isinstance(value, dict) else "")
def test_a_log_setting_works_at_once_and_back(logged, settings, expected):
    read_up(logged)
    logged.update_log_settings(settings)
    assert levels(logged, expected) == expected
    logged.update_log_settings({key: LOG_DEFAULTS[key] for key in settings})
    read_up(logged)
    both = {"INFO", "WARN"}
    assert levels(logged, both) == both


def test_the_log_format_changes_the_time(logged):
    def stamp():
        logged.unload_model("other")
        read_up(logged)
        before = len(logged.server.log)
        logged.unload_model("other")
        eventually("it is logged", lambda: len(logged.server.log) > before)
        return json.loads(logged.server.log[-1])["timestamp"]

    assert re.fullmatch(r"[0-9T:-]{19}\.\d+Z", stamp())
    logged.update_log_settings({"log_format": "ISO8601"})
    assert re.fullmatch(r"[0-9T:-]{19}Z", stamp())
    logged.update_log_settings({"log_format": "default"})
    assert re.fullmatch(r"[0-9T:-]{19}\.\d+Z", stamp())


@pytest.mark.parametrize("key, kind, value, code", [
    ("log_file", "string_param", "/tmp/x", UNIMPLEMENTED),
    ("log_info", "uint32_param", 1, INVALID), ("log_info", "string_param", "true", INVALID),
    ("log_warning", "uint32_param", 1, INVALID), ("log_error", "string_param", "no", INVALID),
    ("log_verbose_level", "bool_param", True, INVALID),
    ("log_verbose_level", "string_param", "1", INVALID),
    ("log_format", "bool_param", True, INVALID), ("log_format", "string_param", "loud", INVALID),
    ("log_colour", "bool_param", True, INVALID), ("log_info", None, None, INVALID),
])
def test_a_wrong_log_setting_is_refused_and_changes_nothing(logged, key, kind, value, code):
    sent = pb.LogSettingsRequest()
    sent.settings["log_error" if key != "log_error" else "log_info"].bool_param = False
    sent.settings[key].SetInParent()
    if kind:
        setattr(sent.settings[key], kind, value)
    refused(lambda: logged.stub.LogSettings(sent), code, key if code == INVALID else "log file")
    assert log_told(logged.get_log_settings()) == LOG_DEFAULTS


def test_the_log_level_of_the_start_is_told():
    with running("--log-level", "debug", *MODELS) as server, Client(server) as client:
        assert log_told(client.get_log_settings()) == {**LOG_DEFAULTS, "log_verbose_level": 1}
