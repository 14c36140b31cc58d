"""What a guarded nats-server and its clients need: configurations, keys, files of credentials."""

import base64
import hashlib
import json
import time

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from programs import Program

# The first byte of a public key, by whose it is, and of a seed.
OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3
RAW = serialization.Encoding.Raw


def _checked(data):
    """Returns bytes with their CRC-16 (XMODEM) behind them, in NATS's base 32."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def _unpadded(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Key:
    """An nkey: a pair of keys of Ed25519 in NATS's writing."""

    def __init__(self, kind):
        self.kind, self.pair = kind, ed25519.Ed25519PrivateKey.generate()

    @property
    def public(self):
        data = self.pair.public_key().public_bytes(RAW, serialization.PublicFormat.Raw)
        return _checked(bytes([self.kind]) + data)

    @property
    def seed(self):
        data = self.pair.private_bytes(RAW, serialization.PrivateFormat.Raw,
                                       serialization.NoEncryption())
        return _checked(bytes([SEED | self.kind >> 5, (self.kind & 31) << 3]) + data)

    def sign(self, subject, name, **claims):
        """Returns a JWT of what `subject` is and may."""
        body = {"iat": int(time.time()), "iss": self.public, "sub": subject.public, "name": name,
                "nats": {"version": 2, **claims}}
        body["jti"] = _unpadded(hashlib.sha256(json.dumps(body).encode()).digest())
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = ".".join(_unpadded(json.dumps(part).encode()) for part in (head, body))
        return f"{text}.{_unpadded(self.pair.sign(text.encode()))}"


class Operator:
    """Who signs the account of a fleet, and that of the server's own news."""

    LIMITS = {**dict.fromkeys(["subs", "conn", "leaf", "imports", "exports", "data", "payload",
                               "mem_storage", "disk_storage", "streams", "consumer"], -1),
              "wildcards": True}

    def __init__(self):
        self.key, self.fleet, system = Key(OPERATOR), Key(ACCOUNT), Key(ACCOUNT)
        account = lambda key, limits: self.key.sign(key, "account", type="account", limits=limits)
        # An account that has JetStream cannot be the system's.
        plain = {word: limit for word, limit in self.LIMITS.items()
                 if word not in ("mem_storage", "disk_storage", "streams", "consumer")}
        self.settings = {
            "operator": self.key.sign(self.key, "operator", type="operator"),
            "system_account": system.public, "resolver": "MEMORY",
            "resolver_preload": {self.fleet.public: account(self.fleet, self.LIMITS),
                                 system.public: account(system, plain)},
        }

    def write_credentials(self, path, permissions, signer=None):
        """Writes the file of a new user, as `nsc` does; returns its path and its secret."""
        user = Key(USER)
        allowed = {short: {"allow": permissions[word]}
                   for short, word in (("pub", "publish"), ("sub", "subscribe"))}
        token = (signer or self.fleet).sign(user, "user", type="user", subs=-1, data=-1, payload=-1,
                                            **allowed)
        path.write_text(f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
                        "-----BEGIN USER NKEY SEED-----\n"
                        f"{user.seed}\n------END USER NKEY SEED------\n")
        return path, user.seed


def guarded_by(settings, monitor):
    """Returns what starts a server with these settings, JetStream and a port that tells what it
    does."""
    class Guarded(Program):
        def words(self):
            file = self.folder / "nats.conf"
            # Who takes longer to say who it is would be refused for that.
            known = {"timeout": 30, **settings.get("authorization", {})}
            # NATS reads JSON as it reads its own form of configurations.
            file.write_text(json.dumps({
                "listen": f"127.0.0.1:{self.port}", "http": f"127.0.0.1:{monitor}",
                "jetstream": {"store_dir": str(self.folder)}, **settings, "authorization": known}))
            return ["nats-server", "-c", str(file)]
    return Guarded
