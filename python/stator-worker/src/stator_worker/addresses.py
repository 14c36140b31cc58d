"""Where a worker listens: the port, in the clear or by TLS."""

import logging
import pathlib
import ssl

import grpc

log = logging.getLogger("stator_worker")


def check(name, text, is_called=False):
    """Checks that an address is HOST:PORT; one that is called has a port of its own."""
    host, _, port = text.rpartition(":")
    lowest = 1 if is_called else 0
    if not host or not port.isdecimal() or not lowest <= int(port) <= 65535:
        raise ValueError(f"{name}: expected HOST:PORT, got `{text}`")


def listen(server, address, tls):
    """Opens the port; returns its number."""
    try:
        if tls.is_on:
            return server.add_secure_port(address, tls.credentials())
        return server.add_insecure_port(address)
    except RuntimeError:
        raise OSError(f"address: cannot listen on `{address}`: it is in use, or no address of this "
                      "machine") from None


class Tls:
    """A worker's certificate and key, and the authorities of frontends if these have to show one of
    theirs. The files are read again for each connection; while new ones cannot be read, those before
    stay in force."""

    def __init__(self, certificate, key, authorities):
        if bool(certificate) != bool(key):
            raise ValueError("TLS: expected `tls_cert` together with `tls_key`, got one of them")
        if authorities and not certificate:
            raise ValueError("TLS: `tls_ca` needs `tls_cert` and `tls_key`")
        files = [("tls_cert", certificate), ("tls_key", key), ("tls_ca", authorities)]
        self._files = [(name, path or None) for name, path in files]
        self._seen = self._told = None
        self.is_on = bool(certificate)

    def credentials(self):
        """Makes what the server shakes hands with."""
        self._seen = self._read()
        _, _, authorities = self._seen
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._seen), self._fetch,
            require_client_authentication=authorities is not None)

    def _read(self):
        contents = []
        for name, path in self._files:
            try:
                contents.append(path and pathlib.Path(path).read_bytes())
            except OSError as error:
                raise OSError(f"{name}: cannot read `{path}`: {error.strerror}") from None
            if contents[-1] is not None and b"-----BEGIN " not in contents[-1]:
                raise ValueError(f"{name}: `{path}` is not PEM")
        if contents != self._seen:
            self._check()
        return contents

    def _check(self):
        """Checks that the key is that of the certificate, which handshakes would not say."""
        (_, certificate), (_, key), _ = self._files

        def password():
            # Without this the terminal would be asked.
            raise ValueError(f"tls_key: `{key}` is encrypted: expected a key without a password")

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
        except ssl.SSLError as error:
            raise ValueError(f"tls_key: the key of `{key}` does not belong to the certificate of "
                             f"`{certificate}` ({error.reason or error})") from None

    def _fetch(self):
        """Returns the certificates if they have changed."""
        try:
            found = self._read()
        except (OSError, ValueError) as error:
            if str(error) != self._told:
                self._told = str(error)
                log.warning("certificates: the old ones stay in force: %s", error)
            return None
        if found == self._seen:
            return None
        self._seen, self._told = found, None
        log.info("certificates read again")
        return _configuration(found)


def _configuration(contents):
    certificate, key, authorities = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
