"""What is wrong with a Python worker is told when it is made, and its TLS is that of others."""

import contextlib
import pathlib

import numpy as np
import pytest
import stator_worker
from cryptography.hazmat.primitives import serialization
from stator_worker import addresses

from patience import eventually
from python_workers import EXAMPLES, python_worker
from security import Authority
from test_cluster import client_of, frontend, is_ready
from test_python_workers import tensor

INPUTS = {"inputs": {"IN": ("FP32", [-1])}, "outputs": {"OUT": ("FP32", [-1])}}


def worker(**settings):
    return stator_worker.Worker(**settings)


@pytest.mark.parametrize("function, words", [
    (lambda X: X, r"called with \(IN=...\) and takes \(X\)"),
    (lambda: None, r"takes \(\)"),
    (lambda IN, other: IN, "'other'"),
])
def test_a_function_that_cannot_be_called_is_refused(function, words):
    with pytest.raises(TypeError, match=words):
        worker().tensor("double", **INPUTS)(function)


def test_functions_that_can_be_called_are_taken():
    here = worker()
    here.tensor("a", **INPUTS)(lambda IN, more=1: IN)
    here.tensor("b", **INPUTS)(lambda **arrays: arrays)
    here.tensor("c", **INPUTS)(lambda IN: (yield IN))
    optional = "name: 'd' input { name: 'X' data_type: TYPE_FP32 dims: [1] optional: true } " \
               "output { name: 'Y' data_type: TYPE_FP32 dims: [1] }"
    here.tensor("d", config=optional)(lambda X=None: X)
    with pytest.raises(TypeError, match="model `e`"):
        here.tensor("e", config=optional)(lambda X: X)
    here.chat("f")(lambda messages: "x")
    for adding in (here.chat, here.text, here.embedding):
        with pytest.raises(TypeError, match=r"takes \(one, two\)"):
            adding("g")(lambda one, two: "x")


@pytest.mark.parametrize("settings, words", [
    ({"address": "somewhere"}, "address: expected HOST:PORT, got `somewhere`"),
    ({"address": "host:99999"}, "address: expected HOST:PORT"),
    ({"advertise": "host:0"}, "advertise: expected HOST:PORT"),
    ({"namespace": "a b"}, "namespace: expected"),
    ({"tls_cert": "a"}, "`tls_cert` together with `tls_key`"),
    ({"tls_ca": "a"}, "`tls_ca` needs"),
])
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ValueError, match=words):
        worker(**settings)


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(ValueError, match="/none.*there is no such folder"):
        worker().tokens("t", tokenizer="/none")(lambda tokens: tokens)
    with pytest.raises(ValueError, match="it has none"):
        worker().embedding("t", tokenizer=tmp_path)(lambda tokens: tokens)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json` is no JSON"):
        worker().tokens("t", tokenizer=tmp_path)(lambda tokens: tokens)
    (tmp_path / "a.pem").write_text("no certificate")
    with pytest.raises(OSError, match="tls_cert: cannot read `/none`"):
        addresses.Tls("/none", "/none", None).credentials()
    with pytest.raises(ValueError, match="is not PEM"):
        addresses.Tls(tmp_path / "a.pem", tmp_path / "a.pem", None).credentials()
    authority = Authority(tmp_path, "some")
    (cert, _), (_, other) = authority.issue("one"), authority.issue("other")
    with pytest.raises(ValueError, match="the key of .* does not belong to the certificate"):
        addresses.Tls(cert, other, None).credentials()
    for kind in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        encrypted = encrypt(other, kind)
        with pytest.raises(ValueError, match=f"tls_key: `{encrypted}` is encrypted"):
            addresses.Tls(cert, encrypted, None).credentials()


def encrypt(path, kind):
    """Writes a key with a password in front of it; returns the file."""
    key = serialization.load_pem_private_key(pathlib.Path(path).read_bytes(), None)
    encrypted = pathlib.Path(f"{path}.encrypted")
    encrypted.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind,
                                            serialization.BestAvailableEncryption(b"secret")))
    return encrypted


def test_variables_that_mean_nothing_are_named(tmp_path):
    with python_worker(EXAMPLES / "tensors.py", f"file://{tmp_path}", nats="nats://a:1") as here:
        assert here.says("ignored") == 1 and here.says("STATOR_NATS") == 1


def test_a_python_worker_speaks_tls(tmp_path):
    authority = Authority(tmp_path, "right")
    discovery = f"file://{tmp_path}/fleet"
    (cert, key), (own, own_key) = authority.issue("worker"), authority.issue("frontend")
    shows = {"worker_tls_cert": cert, "worker_tls_key": key, "worker_tls_client_ca": authority.pem}
    believes = ["--worker-tls-ca", authority.pem]
    with contextlib.ExitStack() as stack:
        stack.enter_context(python_worker(EXAMPLES / "tensors.py", discovery, **shows))
        front = stack.enter_context(frontend(
            discovery, *believes, "--worker-tls-cert", own, "--worker-tls-key", own_key))
        bare = stack.enter_context(frontend(discovery, *believes))
        with client_of(front) as client:
            eventually("it is called", lambda: is_ready(client, "double"))
            values = np.ones(4, np.float32)
            answer = client.infer("double", [tensor("IN", values, "FP32")]).as_numpy("OUT")
            assert (answer == 2).all()
        with client_of(bare) as client:
            assert not is_ready(client, "double")
        eventually("it is told", lambda: any(
            "a worker cannot be called" in line and "it may want a certificate" in line for line in bare.log))
