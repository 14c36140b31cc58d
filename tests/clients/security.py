"""What the tests of TLS and API keys share: authorities, files of keys, channels."""

import contextlib
import datetime
import hashlib
import os
import ssl
import subprocess

import grpc
import trustme
from conftest import BINARY
from patience import PATIENCE_SECONDS

FAST = ["--tls-reload-secs", "1", "--no-default-model"]
MODELS = ["--builtin", "simple=add_sub", "--builtin", "mock=mock"]


class Authority:
    """A certificate authority and the files of what it issues."""

    def __init__(self, folder, name):
        self.ca, self.folder, self.name = trustme.CA(), folder, name
        self.pem = str(folder / f"{name}-ca.pem")
        self.ca.cert_pem.write_to_path(self.pem)

    def issue(self, name, **options):
        """Issues a certificate for this machine; returns the files of it and of its key."""
        issued = self.ca.issue_cert("localhost", "127.0.0.1", **options)
        files = [str(self.folder / f"{self.name}-{name}.{kind}") for kind in ("crt", "key")]
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        replace(files[0], chain)
        replace(files[1], issued.private_key_pem.bytes())
        return files

    def issue_expired(self, name):
        """Issues a certificate that ended yesterday."""
        past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        return self.issue(name, not_after=past)


def replace(path, content):
    """Replaces a file in one step."""
    with open(f"{path}.new", "wb") as file:
        file.write(content)
    os.replace(f"{path}.new", path)


def context(ca, client=None):
    """What a Python client verifies the server by, and shows of itself."""
    context = ssl.create_default_context(cafile=ca)
    if client:
        context.load_cert_chain(*client)
    return context


@contextlib.contextmanager
def secure_channel(address, ca, client=None):
    """A gRPC channel over TLS."""
    read = lambda path: open(path, "rb").read()
    certificate, key = client or (None, None)
    credentials = grpc.ssl_channel_credentials(
        read(ca), read(key) if key else None, read(certificate) if certificate else None)
    with grpc.secure_channel(address, credentials) as channel:
        yield channel


def tls_of(files):
    return ["--tls-cert", files[0], "--tls-key", files[1]]


def served_certificate(address, ca=None):
    """The certificate that a listener shows now."""
    host, port = address.rsplit(":", 1)
    return ssl.get_server_certificate((host, int(port)), ca_certs=ca, timeout=PATIENCE_SECONDS)


def entry(name, key, rest=""):
    """The entry of a key in a file of keys."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"\n{rest}\n'


def refused_start(*arguments):
    """What a server says that does not start."""
    command = [str(BINARY), "serve", "--no-default-model", "--grpc-port", "0", "--http-port", "0",
               "--metrics-port", "0", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert ended.returncode != 0, ended
    return ended.stderr
