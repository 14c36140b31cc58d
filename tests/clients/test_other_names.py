"""The names of Dynamo's and Triton's settings: each of them is set, told of or refused, never dropped."""

import os
import re
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import BINARY, ROOT, running

GUIDES = ROOT / "docs/guides"
ROW = re.compile(r"^\| (?:`--([a-z0-9-]+)`[^|]*)? ?\| (?:`(DYN_\w+)`)? ?\| ([^|]+) \| (.*) \|$", re.M)


def rows(guide):
    found = ROW.findall((GUIDES / guide).read_text())
    assert len(found) > 50, guide
    return found


def dump(role, *flags, **variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
    return subprocess.run([BINARY, role, "--dump-config", *flags], env={**clean, **variables},
                          capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("guide, role", [("from-dynamo.md", "frontend"), ("from-triton.md", "serve")])
def test_the_program_answers_for_every_flag_and_variable(guide, role):
    for flag, variable, here, says in rows(guide):
        word = re.search(r"`([^`]+)`", here) if here.startswith("only") else None
        value = word.group(1) if word else "1"
        tried = [dump(role, f"--{flag}={value}")] if flag else []
        tried += [dump(role, **{variable: value})] if variable else []
        for done in tried:
            told = done.stdout + done.stderr
            assert "unexpected argument" not in told, told
            if here == "refused":
                assert done.returncode == 2 and says in told, (flag, variable, told)
            elif not here.startswith("`"):
                name = f"--{flag}" if done is tried[0] and flag else variable
                assert done.returncode == 0 and f"# `{name}`" in told, (flag, variable, told)


def test_a_certificate_of_dynamos_name_takes_effect_or_stops_the_start():
    for role in ("serve", "frontend", "up"):
        done = dump(role, DYN_TLS_CERT_PATH="/nowhere/a.pem")
        assert 'tls-cert = "/nowhere/a.pem"' in done.stdout, done.stderr
    assert dump("worker", DYN_TLS_CERT_PATH="/nowhere/a.pem").returncode == 2
    assert dump("serve", DYN_NEW_TLS_CERT="x").returncode == 2


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_server_started_by_dynamos_names(tmp_path):
    file = tmp_path / "config.toml"
    variables = {"DYN_HTTP_SVC_LIVE_PATH_ENV": "/alive", "DYN_HTTP_SVC_MODELS_PATH": "/list",
                 "DYN_METRICS_PREFIX": "dynamo_frontend", "DYN_SOMETHING_NEW": "1"}
    with running("--builtin", "identity", "--kserve-grpc-server", "--dump-config-to", str(file),
                 environment=variables) as server:
        assert get(f"http://{server.http}/alive")[0] == 200
        assert get(f"http://{server.http}/list")[0] == 200
        assert get(f"http://{server.metrics}/health") == (200, '{"status":"healthy"}')
        assert get(f"http://{server.metrics}/live") == (200, '{"status":"live"}')
        scraped = get(f"http://{server.metrics}/metrics")[1]
        assert "dynamo_frontend_uptime_seconds" in scraped and "stator_" not in scraped
    assert "DYN_SOMETHING_NEW" in file.read_text()
