"""Fleets over NATS servers that want to know who one is, and allow what the documentation says."""

import contextlib
import itertools
import re
import time

import httpx
import pytest

from chaos import completion, total
from conftest import ROOT, free_port, running
from nats_access import Operator, guarded_by
from patience import eventually
from programs import program
from security import Authority
from test_cluster import add, client_of, frontend, is_ready, joined, streamed
from test_planes import chat, counter, lines

MODELS = ["--no-default-model", "--builtin", "simple=add_sub", "--builtin", "words=mock"]
NATS = ["--request-plane", "nats", "--event-plane", "nats"]
# Nobody listens there: who calls this worker does so over NATS or not at all.
NOWHERE = ["--advertise", "127.0.0.1:1"]
# What has to be encoded in a URL.
WORD, WRONG = "s3cret@:/%word", "wr0ng@:/%word"
ENCODED = {WORD: "s3cret%40%3A%2F%25word", WRONG: "wr0ng%40%3A%2F%25word"}
ROLES = ("worker", "frontend")


def permissions():
    """Returns what each role has to be allowed, as the table in docs/deploy.md has it."""
    text = (ROOT / "docs/deploy.md").read_text().partition("A server with permissions")[2]
    found = {}
    for role in ROLES:
        row = re.search(rf"^\| {role} \|(.*)\|(.*)\|$", text, re.MULTILINE)
        found[role] = {kind: re.findall(r"`([^`]+)`", cell)
                       for kind, cell in zip(("publish", "subscribe"), row.groups())}
    assert all(subjects for role in found.values() for subjects in role.values()), found
    return found


class Guarded:
    """A guarded server, and how the roles introduce themselves to it."""

    def __init__(self, program, folder, monitor, introductions):
        self.program, self.log_file, self.monitor = program, folder / "log", monitor
        # By role: further flags and the variables.
        self.introductions = introductions

    def log(self):
        return self.log_file.read_text()

    def events(self):
        """Returns how many KV events the streams hold, and how many consumers these have."""
        page = httpx.get(f"http://127.0.0.1:{self.monitor}/jsz?streams=true&accounts=true").json()
        streams = [stream["state"] for account in page.get("account_details", [])
                   for stream in account.get("stream_detail", [])]
        return (sum(state["messages"] for state in streams),
                sum(state["consumer_count"] for state in streams))

    def role(self, role, discovery, *arguments, words=None):
        """Runs a role that introduces itself, rightly unless other words are given."""
        flags, variables = words or self.introductions[role]
        models = [] if role == "frontend" else MODELS
        return running("--discovery", discovery, *models, *NATS, *flags, *arguments, role=role,
                       environment=variables)


@contextlib.contextmanager
def guarded(folder, settings, introduce):
    """Runs a server; `introduce` says by its port how the roles do so."""
    folder.mkdir()
    monitor = free_port()
    with program(guarded_by(settings, monitor), folder) as started:
        introductions = {role: introduce(role, started.port) for role in ROLES}
        yield Guarded(started, folder, monitor, introductions)


def by_password(folder):
    users = [{"user": role, "password": WORD, "permissions": allowed}
             for role, allowed in permissions().items()]
    introduce = lambda role, port: (
        [], {"STATOR_NATS": f"nats://{role}:{ENCODED[WORD]}@127.0.0.1:{port}"})
    return guarded(folder / "nats", {"authorization": {"users": users}}, introduce)


def by_token(folder):
    introduce = lambda role, port: (
        [], {"STATOR_NATS": f"nats://{ENCODED[WORD]}@127.0.0.1:{port}"})
    return guarded(folder / "nats", {"authorization": {"token": WORD}}, introduce)


def by_credentials(folder):
    operator = Operator()
    files = {role: operator.write_credentials(folder / f"{role}.creds", allowed)[0]
             for role, allowed in permissions().items()}
    introduce = lambda role, port: (
        ["--nats", f"nats://127.0.0.1:{port}", "--nats-credentials", str(files[role])], {})
    return guarded(folder / "nats", operator.settings, introduce)


def by_tls(folder):
    authority = Authority(folder, "nats")
    certificate, key = authority.issue("server")
    settings = {"tls": {"cert_file": certificate, "key_file": key, "timeout": 30},
                "authorization": {"user": "both", "password": WORD}}
    introduce = lambda role, port: (
        ["--nats-ca", authority.pem],
        {"STATOR_NATS": f"tls://both:{ENCODED[WORD]}@127.0.0.1:{port}"})
    return guarded(folder / "nats", settings, introduce)


@contextlib.contextmanager
def fleet(nats, discovery, *arguments):
    """A frontend and a worker that it can call over NATS alone."""
    with nats.role("worker", discovery, *NOWHERE, *arguments) as worker, \
            nats.role("frontend", discovery, *arguments) as front, client_of(front) as client:
        for model in ("simple", "words"):
            eventually(model, lambda: is_ready(client, model))
        yield front, worker


def check_quiet(nats, *servers):
    """Checks that NATS refused nothing and that nobody told a secret."""
    assert "Violation" not in nats.log(), nats.log()
    for server in servers:
        assert not lines(server, "nats refuses something")
        eventually("it is told", lambda: lines(server, "connected to nats"))
        assert not [word for word in (WORD, ENCODED[WORD]) if lines(server, word)]


@pytest.mark.parametrize("way", [by_password, by_token, by_credentials, by_tls])
def test_a_fleet_works_over_a_guarded_server(tmp_path, way):
    with way(tmp_path) as nats, fleet(nats, f"file://{tmp_path}/fleet") as (front, worker):
        with client_of(front) as client:
            for value in range(10):
                add(client, value)
        text, usage = streamed(front)
        assert text and usage.completion_tokens == 12
        for number in range(4):
            chat(front, number)
        eventually("events are heard", lambda: counter(front, "kv_events", "words") > 0)

        # What is told before the stream is there, and heard before it is found, goes without it.
        def are_kept():
            chat(front, time.monotonic())
            messages, consumers = nats.events()
            return messages > 0 and consumers > 0

        eventually("they come over JetStream", are_kept)
        check_quiet(nats, front, worker)


@pytest.mark.parametrize("way", [by_password, by_credentials])
def test_permissions_suffice_for_prompts_that_are_handed_over(tmp_path, way):
    discovery, numbers = f"file://{tmp_path}/fleet", itertools.count()
    with way(tmp_path) as nats, \
            nats.role("worker", discovery, *NOWHERE, "--role", "prefill") as prefill, \
            nats.role("worker", discovery, *NOWHERE, "--role", "decode") as decode, \
            nats.role("frontend", discovery, "--prefill-min-tokens", "16") as front, \
            client_of(front) as client:
        eventually("both are there", lambda: joined(front) == 2 and is_ready(client, "words"))

        def is_split():
            # Each prompt is another one, so no worker has blocks of it.
            prompt = f"{next(numbers)}. prompt of several blocks " + "x" * 200
            assert completion(front.http, prompt, 9, model="words")[2] == 9
            return (total(front, "stator_disaggregated_requests_total", 'way="split"') > 0
                    and total(decode, "stator_kv_transfer_blocks_total") >= 200 // 16)

        eventually("the blocks come", is_split)
        # NATS may stand still while it is asked, which costs the first blocks.
        assert (total(decode, "stator_kv_transfer_fallbacks_total") == 0
                or lines(decode, "KV blocks do not come", "no answer over nats"))
        check_quiet(nats, front, prefill, decode)


def wrong(way, folder, nats):
    """Returns flags and variables that `way` does not take, and the secrets in them."""
    port = nats.program.port
    if way is by_credentials:
        # An account that the server's operator knows nothing of.
        operator = Operator()
        path, seed = operator.write_credentials(folder / "wrong.creds", permissions()["worker"])
        return (["--nats", f"nats://127.0.0.1:{port}", "--nats-credentials", str(path)], {}), [seed]
    user = "" if way is by_token else "worker:"
    url = f"nats://{user}{ENCODED[WRONG]}@127.0.0.1:{port}"
    return ([], {"STATOR_NATS": url}), [WRONG, ENCODED[WRONG]]


@pytest.mark.parametrize("way", [by_password, by_token, by_credentials])
def test_wrong_credentials_are_told_without_secrets_and_calls_go_over_grpc(tmp_path, way):
    discovery = f"file://{tmp_path}/fleet"
    with way(tmp_path) as nats:
        words, secrets = wrong(way, tmp_path, nats)
        with nats.role("worker", discovery, words=words) as worker, \
                nats.role("frontend", discovery, words=words) as front, client_of(front) as client:
            eventually("the model is ready", lambda: is_ready(client, "simple"))
            add(client)
            for server in (worker, front):
                told = lambda: lines(server, '"WARN"', "nats cannot be reached")
                eventually("it is told", told)
                assert "authorization violation" in told()[0].lower(), told()
                assert f"127.0.0.1:{nats.program.port}" in told()[0]
                assert not lines(server, '"message":"connected to nats"')
                assert not [secret for secret in secrets if lines(server, secret)]


def test_a_server_of_an_unknown_authority_is_not_spoken_to(tmp_path):
    discovery = f"file://{tmp_path}/fleet"
    with by_tls(tmp_path) as nats:
        variables = nats.introductions["worker"][1]
        with nats.role("worker", discovery, words=([], variables)) as worker:
            eventually("it is told", lambda: lines(worker, '"WARN"', "nats cannot be reached"))
            eventually("it ended the handshake", lambda: "TLS handshake error" in nats.log())
            assert not lines(worker, '"message":"connected to nats"')
            assert not lines(worker, ENCODED[WORD]) and not lines(worker, WORD)


@pytest.mark.parametrize("content", [None, "no credentials"])
def test_a_file_that_has_no_credentials_stops_the_start(tmp_path, content):
    path = tmp_path / "user.creds"
    if content:
        path.write_text(content)
    flags = ["--nats", "nats://127.0.0.1:1", "--nats-credentials", str(path)]
    with pytest.raises(RuntimeError, match="did not start") as error:
        with frontend(f"file://{tmp_path}/fleet", *NATS, *flags):
            pass
    assert f"the credentials of NATS, `{path}`" in str(error.value)
    assert content is None or content not in str(error.value)
