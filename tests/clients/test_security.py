"""TLS of every listener: who gets in, and certificates that change under a running server."""

import signal
import socket
import ssl
import time

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from conftest import running
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import PATIENCE_SECONDS, eventually
from security import (FAST, MODELS, Authority, context, refused_start, replace, secure_channel,
                      served_certificate, tls_of)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"), "right")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "wrong")


@pytest.fixture(scope="module")
def tls(authority):
    """A server with TLS everywhere."""
    with running(*tls_of(authority.issue("server")), *FAST, *MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(authority):
    """A server that wants a certificate of its clients."""
    files = tls_of(authority.issue("mutual"))
    with running(*files, "--tls-client-ca", authority.pem, *FAST, *MODELS) as server:
        yield server


def health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS).status


def is_served(channel):
    try:
        return health(channel) == health_pb2.HealthCheckResponse.SERVING
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        return False


def test_triton_clients_speak_tls(tls, authority):
    with triton.InferenceServerClient(tls.address, ssl=True,
                                      root_certificates=authority.pem) as client:
        assert client.is_server_ready()
        assert client.get_model_metadata("simple").name == "simple"
    client = triton_http.InferenceServerClient(
        tls.http, ssl=True, ssl_context_factory=lambda: context(authority.pem))
    assert client.is_server_ready()
    assert client.get_model_metadata("simple")["name"] == "simple"


@pytest.mark.parametrize("http2", [False, True])
def test_http_has_both_versions_by_alpn(tls, authority, http2):
    with httpx.Client(verify=context(authority.pem), http2=http2) as client:
        response = client.get(f"https://{tls.http}/v2/health/ready")
        assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert response.status_code == 200
        metrics = client.get(f"https://{tls.metrics}/metrics")
        assert "stator_" in metrics.text


def test_http2_works_without_tls_by_prior_knowledge():
    with running(*FAST, *MODELS) as server:
        with httpx.Client(http1=False, http2=True) as client:
            url = f"http://{server.http}/v2/models/mock/generate"
            response = client.post(url, json={"text_input": "a b c", "max_tokens": 2})
        assert (response.http_version, response.status_code) == ("HTTP/2", 200)
        assert httpx.get(f"http://{server.http}/v2").http_version == "HTTP/1.1"


def test_plaintext_is_refused(tls):
    with grpc.insecure_channel(tls.address) as channel:
        assert not is_served(channel)
    for address in (tls.http, tls.metrics):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}/metrics")


def test_another_authority_is_refused(tls, stranger):
    with secure_channel(tls.address, stranger.pem) as channel:
        assert not is_served(channel)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{tls.http}/v2", verify=context(stranger.pem))


def test_old_versions_of_tls_are_refused(tls, authority):
    host, port = tls.http.rsplit(":", 1)
    for version, is_spoken in [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)]:
        wanted = context(authority.pem)
        wanted.set_ciphers("DEFAULT:@SECLEVEL=0")
        wanted.minimum_version = ssl.TLSVersion.TLSv1
        wanted.maximum_version = version
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as plain:
            try:
                wanted.wrap_socket(plain, server_hostname="127.0.0.1").close()
                assert is_spoken
            except (ssl.SSLError, ConnectionError):
                assert not is_spoken


def test_a_client_certificate_is_required(mutual, authority):
    client = authority.issue("client")
    with secure_channel(mutual.address, authority.pem, client) as channel:
        assert is_served(channel)
    url = f"https://{mutual.http}/v2/health/ready"
    assert httpx.get(url, verify=context(authority.pem, client)).status_code == 200
    with secure_channel(mutual.address, authority.pem) as channel:
        assert not is_served(channel)
    with pytest.raises(httpx.TransportError):
        httpx.get(url, verify=context(authority.pem))
    # Metrics have TLS, and ask for no certificate.
    metrics = httpx.get(f"https://{mutual.metrics}/metrics", verify=context(authority.pem))
    assert metrics.status_code == 200


def test_strange_and_expired_client_certificates_are_refused(mutual, authority, stranger):
    for client in (stranger.issue("client"), authority.issue_expired("old")):
        with secure_channel(mutual.address, authority.pem, client) as channel:
            assert not is_served(channel)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://{mutual.http}/v2", verify=context(authority.pem, client))


def test_an_expired_server_certificate_is_refused_by_clients(authority):
    with running(*tls_of(authority.issue_expired("expired")), *FAST) as server:
        with pytest.raises(httpx.ConnectError, match="expired"):
            httpx.get(f"https://{server.http}/v2", verify=context(authority.pem))


def test_only_the_listeners_named_have_tls(authority):
    files = tls_of(authority.issue("some"))
    with running(*files, "--tls-listeners", "http", *FAST) as server:
        with grpc.insecure_channel(server.address) as channel:
            assert is_served(channel)
        assert httpx.get(f"http://{server.metrics}/metrics").status_code == 200
        url = f"https://{server.http}/v2"
        assert httpx.get(url, verify=context(authority.pem)).status_code == 200


def test_a_new_certificate_is_shown_and_old_connections_live_on(authority):
    files = authority.issue("renewed")
    with running(*tls_of(files), *FAST) as server:
        before = served_certificate(server.http)
        with (secure_channel(server.address, authority.pem) as channel,
              httpx.Client(verify=context(authority.pem)) as client):
            assert is_served(channel)
            first = client.get(f"https://{server.http}/v2")
            stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            next(stream)
            authority.issue("renewed")
            eventually("a new certificate", lambda: served_certificate(server.http) != before)
            assert served_certificate(server.address) == served_certificate(server.metrics)
            assert is_served(channel) and stream.is_active()
            second = client.get(f"https://{server.http}/v2")
            streams = [r.extensions["network_stream"] for r in (first, second)]
            addresses = [s.get_extra_info("client_addr") for s in streams]
            assert addresses[0] == addresses[1], "the connection was opened anew"


def test_a_broken_new_certificate_leaves_the_old_one(authority):
    files = authority.issue("kept")
    with running(*tls_of(files), *FAST) as server:
        before = served_certificate(server.http)
        replace(files[0], b"no certificate")
        eventually("a warning", lambda: any("stay in force" in line for line in server.log))
        time.sleep(2.5)
        assert served_certificate(server.http) == before
        warnings = [line for line in server.log if "stay in force" in line]
        assert len(warnings) == 1 and "--tls-cert" in warnings[0]
        replace(files[0], before.encode())
        eventually("the right one", lambda: any("read again" in line for line in server.log))


def test_a_signal_reloads_at_once(authority):
    files = authority.issue("signalled")
    with running(*tls_of(files), "--tls-reload-secs", "0", "--no-default-model") as server:
        before = served_certificate(server.http)
        authority.issue("signalled")
        time.sleep(1)
        assert served_certificate(server.http) == before
        server.process.send_signal(signal.SIGHUP)
        eventually("a new certificate", lambda: served_certificate(server.http) != before)


def test_silent_handshakes_hold_a_place_and_no_more(authority):
    files = tls_of(authority.issue("bounded"))
    with running(*files, "--http-max-connections", "2", *FAST) as server:
        host, port = server.http.rsplit(":", 1)
        # Connections are taken in the order in which they came.
        silent = [socket.create_connection((host, int(port))) for _ in range(2)]
        get = lambda timeout: httpx.get(f"https://{server.http}/v2", timeout=timeout,
                                        verify=context(authority.pem))
        with pytest.raises(httpx.TimeoutException):
            get(1)
        # A handshake ends after 10 seconds, and leaves its place.
        assert get(PATIENCE_SECONDS).status_code == 200
        assert [one.recv(1) for one in silent] == [b"", b""]


def test_flags_that_cannot_be_honoured_stop_the_start(authority, stranger, tmp_path):
    cert, key = authority.issue("start")
    other = stranger.issue("start")[1]
    empty = tmp_path / "empty"
    empty.write_text("")
    keys = tmp_path / "keys.toml"
    keys.write_text("[[keys]]\nname = 1\n")
    cases = [
        (["--tls-cert", cert], "--tls-cert: needs --tls-key"),
        (["--tls-key", key], "--tls-key: needs --tls-cert"),
        (["--tls-client-ca", authority.pem], "--tls-client-ca: needs --tls-cert"),
        (["--tls-cert", cert, "--tls-key", other], "--tls-key: the key does not belong"),
        (["--tls-cert", cert, "--tls-key", str(empty)], "--tls-key: expected a private key"),
        (["--tls-cert", str(empty), "--tls-key", key], "--tls-cert: expected at least one"),
        (["--tls-cert", "/nowhere", "--tls-key", key], "--tls-cert: cannot read `/nowhere`"),
        ([*tls_of((cert, key)), "--tls-client-ca", str(empty)], "--tls-client-ca: expected"),
        ([*tls_of((cert, key)), "--tls-client-ca", authority.pem, "--tls-listeners", "metrics"],
         "--tls-client-ca: needs"),
        (["--tls-listeners", "smtp"], "--tls-listeners"),
        (["--tls-listeners", "grpc"], "--tls-listeners: needs --tls-cert and --tls-key"),
        (["--api-keys", "/nowhere"], "--api-keys: cannot read `/nowhere`"),
        (["--api-keys", str(keys)], "--api-keys: "),
        (["--cors-origin", "example.org"], "--cors-origin: expected"),
        (["--cors-origin", "*", "--cors-origin", "http://a.example"], "--cors-origin: `*`"),
    ]
    for arguments, expected in cases:
        assert expected in refused_start(*arguments), arguments
