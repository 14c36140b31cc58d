"""Fleets of real processes in stores that want certificates, users or objects."""

import shutil
import subprocess
import time

import httpx
import pytest

from patience import eventually
import security
from conftest import free_port
from kubernetes_api import api_server
from test_cluster import add, client_of, frontend, is_ready, joined, worker
from test_planes import said

MODELS = ["--no-default-model", "--builtin", "simple=add_sub", "--builtin", "words=mock"]


def has_all(client):
    """Waits until a server has every model."""
    for model in ("simple", "words"):
        eventually("the model is ready", lambda: is_ready(client, model))


def meet(url, *arguments):
    """Runs a fleet, and ends its worker."""
    with worker(url, *arguments, models=MODELS) as only, frontend(url, *arguments) as front, client_of(front) as client:
        has_all(client)
        add(client)
        assert said(front, "Who is there?")
        only.terminate()
        assert only.wait() == 0
        eventually("it left", lambda: joined(front, "worker left") == 1)
        return "".join(only.log + front.log)


@pytest.fixture
def guarded(tmp_path):
    """An etcd with certificates of both sides and one user; yields its URL and the flags for it."""
    authority = security.Authority(tmp_path, "store")
    certificate, key = authority.issue("etcd")
    port, peer = free_port(), f"http://127.0.0.1:{free_port()}"
    client = f"https://127.0.0.1:{port}"
    process = subprocess.Popen(
        [shutil.which("etcd"), "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", client,
         "--advertise-client-urls", client, "--listen-peer-urls", peer,
         "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", "--unsafe-no-fsync",
         "--cert-file", certificate, "--key-file", key, "--trusted-ca-file", authority.pem, "--client-cert-auth"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    verify = security.context(authority.pem, (certificate, key))
    try:
        with httpx.Client(base_url=client, verify=verify) as http:
            call = lambda path, **body: http.post(f"/v3/auth/{path}", json=body).raise_for_status()
            eventually("etcd answers", lambda: answers(http))
            call("user/add", name="root", password="over-the-wall")
            call("role/add", name="root")
            call("user/grant", user="root", role="root")
            call("enable")
        word = tmp_path / "password"
        word.write_text("over-the-wall\n")
        yield f"etcds://127.0.0.1:{port}", [
            "--discovery-tls-ca", authority.pem, "--discovery-tls-cert", certificate, "--discovery-tls-key", key,
            "--discovery-user", "root", "--discovery-password-file", str(word)]
    finally:
        process.kill()
        process.wait()


def answers(http):
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_fleet_meets_in_an_etcd_that_is_guarded(guarded):
    url, flags = guarded
    log = meet(url, *flags)
    assert "over-the-wall" not in log


def test_without_the_password_nothing_is_seen(guarded):
    url, flags = guarded
    with worker(url, *flags, models=MODELS), frontend(url, *flags[:6]) as front, client_of(front) as client:
        eventually("it says so", lambda: joined(front, "discovery store is lost") == 1)
        time.sleep(1)
        assert client.is_server_live() and not client.is_server_ready()
        assert joined(front) == 0


def test_a_fleet_meets_in_kubernetes_and_survives_its_api_server():
    with api_server() as (store, url):
        with worker(url, models=MODELS), frontend(url) as front, client_of(front) as client:
            has_all(client)
            expected = said(front, "What now?")
            store.set_down(True)
            eventually("the outage is known", lambda: joined(front, "the last known workers stay") == 1)
            for value in range(100):
                add(client, value)
            assert said(front, "What now?") == expected
            store.set_down(False)
            eventually("it is over", lambda: joined(front, "discovery is there again") == 1)
            with worker(url, models=MODELS) as second:
                eventually("the second one joined", lambda: joined(front) == 2)
                second.terminate()
                assert second.wait() == 0
            eventually("it left", lambda: joined(front, "worker left") == 1)
            add(client)
            kinds = sorted(kind for kind, _ in store.objects)
            assert kinds == ["configmaps", "leases", "leases"], "the second one took its record away"
