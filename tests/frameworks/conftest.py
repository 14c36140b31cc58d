"""A server for frameworks that are installed in an environment of their own."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("STATOR_BINARY") or ROOT / "target/debug/stator"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def serving(*arguments):
    """Yields the HTTP address of a server."""
    command = [BINARY, "serve", "--http-host", "127.0.0.1", "--http-port", "0", "--grpc-port", "0",
               "--no-metrics", "--log-format", "json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        ready = next((line for line in process.stderr if '"message":"ready"' in line), None)
        assert ready, "the server ended"
        yield f"http://{json.loads(ready)['http']}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def scripted():
    """Models that say one thing: a tool call, or an object."""
    yield from serving("--no-default-model", "--tool-call-parser", "hermes",
                       "--builtin", f"caller=mock,reply={CALL}",
                       "--builtin", 'json=mock,reply={"city": "Paris", "is_capital": true}')


@pytest.fixture(scope="session")
def real():
    """The default model."""
    yield from serving("--tool-call-parser", "hermes")
