"""TLS between workers and frontends: who is called, who gets in, certificates that change."""

import contextlib
import json
import subprocess
import time

import pytest
from conftest import BINARY, free_port, running
from patience import PATIENCE_SECONDS, eventually
from security import Authority, replace, served_certificate
from test_cluster import add, client_of, frontend, is_ready, streamed

MODELS = ["--no-default-model", "--builtin", "simple=add_sub", "--builtin", "words=mock"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "wrong")


@pytest.fixture
def discovery(tmp_path):
    return f"file://{tmp_path}/fleet"


def shown(files):
    return ["--worker-tls-cert", files[0], "--worker-tls-key", files[1]]


def worker(discovery, *arguments):
    return running("--discovery", discovery, *MODELS, *arguments, role="worker")


def says(server, text):
    return any(text in line for line in server.log)


def told(server, text):
    """Returns how often a server warned of a peer; models that lack their worker are another fact."""
    warned = [line for line in server.log if '"WARN"' in line and "cannot be served" not in line]
    return sum(text in line for line in warned)


def is_served(front):
    with client_of(front) as client:
        return is_ready(client, "simple")


def serves(front):
    """Checks that tensors and texts come from the workers."""
    with client_of(front) as client:
        eventually("the worker is called", lambda: is_ready(client, "simple"))
        add(client)
        eventually("texts are served", lambda: is_ready(client, "words"))
    assert streamed(front, "words")[0]


def never(fact, seconds=2):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not fact()
        time.sleep(0.1)


def test_both_sides_show_certificates(discovery, authority):
    shows = shown(authority.issue("both"))
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(
            worker(discovery, *shows, "--worker-tls-client-ca", authority.pem))
        front = stack.enter_context(
            frontend(discovery, "--worker-tls-ca", authority.pem, *shows))
        serves(front)
        assert says(hub, f"grpcs://{hub.address}")


def test_a_frontend_without_certificate_is_not_let_in(discovery, authority, stranger):
    wanted = ["--worker-tls-client-ca", authority.pem]
    with worker(discovery, *shown(authority.issue("mutual")), *wanted) as hub, \
            frontend(discovery, "--worker-tls-ca", authority.pem) as bare, \
            frontend(discovery, "--worker-tls-ca", authority.pem,
                     *shown(stranger.issue("frontend"))) as wrong, \
            frontend(discovery, "--worker-tls-ca", authority.pem,
                     *shown(authority.issue("frontend"))) as right:
        serves(right)
        never(lambda: is_served(bare) or is_served(wrong))
        # Each is told why, and once, however often it was tried.
        for server, words in (
                (bare, "the worker wants a certificate and is shown none: set --worker-tls-cert"),
                (wrong, "the authority is not in the file of its --worker-tls-client-ca"),
                (hub, "the frontend shows no certificate, which --worker-tls-client-ca wants"),
                (hub, "is of no authority in the file of --worker-tls-client-ca")):
            eventually(words, lambda: told(server, words))
            assert told(server, words) == 1
        # A worker that stands still is another matter.
        assert told(right, "cannot be called") == told(right, "no answer within") <= 1


def test_a_worker_of_another_authority_is_not_called(discovery, authority, stranger):
    with worker(discovery, *shown(stranger.issue("worker"))) as hub, \
            frontend(discovery, "--worker-tls-ca", authority.pem) as strict, \
            frontend(discovery, "--worker-tls-ca", stranger.pem) as right:
        serves(right)
        # Longer than the wait before a model that lacks its worker is tried again.
        never(lambda: is_served(strict), seconds=5)
        for server, words in (
                (strict, "certificate is of no authority in the file of --worker-tls-ca"),
                (hub, "the authority is not in the file of its --worker-tls-ca")):
            eventually(words, lambda: told(server, words))
            assert told(server, words) == 1
        # It is tried every two seconds, and each reason is told once.
        unserved = lambda: [line for line in list(strict.log)
                            if "a model of workers cannot be served" in line]
        eventually("it is told", unserved)
        reasons = [json.loads(line)["why"] for line in unserved()]
        assert len(set(reasons)) == len(reasons), reasons
        ready = '"message":"model ready"'
        assert says(right, ready) and not says(strict, ready)


def test_a_worker_with_another_name_is_not_called(discovery, authority):
    port = free_port()
    where = ["--worker-address", f"0.0.0.0:{port}", "--advertise", f"127.0.0.2:{port}"]
    with worker(discovery, *shown(authority.issue("named")), *where), \
            frontend(discovery, "--worker-tls-ca", authority.pem) as front:
        eventually("it is told", lambda: told(front, "has other names than the host"))
        assert not is_served(front)


def test_in_the_clear_and_by_tls_do_not_mix(discovery, authority):
    with worker(discovery), \
            frontend(discovery, "--worker-tls-ca", authority.pem) as strict, \
            frontend(discovery) as plain:
        serves(plain)
        eventually("it is told", lambda: says(strict, "speaks in the clear"))
        never(lambda: is_served(strict), seconds=1)
    with worker(discovery, *shown(authority.issue("mixed"))), frontend(discovery) as plain:
        eventually("it is told", lambda: says(plain, "needs --worker-tls-ca"))
        never(lambda: is_served(plain), seconds=1)


def test_known_addresses_are_called_by_tls(discovery, authority):
    with worker(discovery, *shown(authority.issue("static"))) as hub, \
            frontend(f"static://{hub.address}", "--worker-tls-ca", authority.pem) as front:
        serves(front)


def test_new_certificates_need_no_restart(discovery, authority):
    files = authority.issue("renewed")
    with worker(discovery, *shown(files)) as hub:
        before = served_certificate(hub.address)
        assert served_certificate(hub.address) == before
        replace(files[0], b"no certificate")

        def is_told():
            # The worker looks at its files when somebody connects.
            assert served_certificate(hub.address) == before, "a wrong file leaves the old ones"
            return says(hub, "the old ones stay in force")

        eventually("it is told", is_told)
        authority.issue("renewed")
        eventually("the new certificate", lambda: served_certificate(hub.address) != before)
        with frontend(discovery, "--worker-tls-ca", authority.pem) as front:
            serves(front)


@pytest.mark.parametrize("role, arguments, words", [
    ("worker", ["--worker-tls-cert", "a"], "--worker-tls-key"),
    ("worker", ["--worker-tls-client-ca", "a"], "--worker-tls-cert"),
    ("worker", ["--worker-tls-cert", "/none", "--worker-tls-key", "/none"],
     "--worker-tls-cert: cannot read `/none`"),
    ("frontend", ["--worker-tls-cert", "a", "--worker-tls-key", "b"], "--worker-tls-ca"),
    ("frontend", ["--worker-tls-ca", "/none"], "--worker-tls-ca: cannot read `/none`"),
])
def test_what_cannot_be_is_refused_at_the_start(discovery, role, arguments, words):
    ended = started(discovery, role, arguments)
    assert ended.returncode != 0 and words in ended.stderr, ended


def test_certificates_that_others_would_refuse_are_refused_at_the_start(discovery, authority):
    key = authority.pem.replace(".pem", ".key")
    authority.ca.private_key_pem.write_to_path(key)
    (own, own_key), (other, _) = authority.issue("own"), authority.issue("other")
    for role, more in (("worker", []), ("frontend", ["--worker-tls-ca", authority.pem])):
        for files, words in (
                ((authority.pem, key), f"--worker-tls-cert: `{authority.pem}` is an authority's own"),
                ((other, own_key), "--worker-tls-key: the key does not belong to the certificate"),
                ((own, own), f"--worker-tls-key: expected a private key in PEM in `{own}`")):
            ended = started(discovery, role, [*shown(files), *more])
            assert ended.returncode != 0 and words in ended.stderr, ended


def started(discovery, role, arguments):
    """Returns how a role ended that does not start."""
    doors = [] if role == "worker" else ["--grpc-port", "0", "--http-port", "0"]
    models = MODELS if role == "worker" else []
    command = [str(BINARY), role, "--discovery", discovery, "--metrics-port", "0", *doors, *models,
               *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
