"""The servers of others that fleets meet in and speak over: etcd and NATS."""

import contextlib
import json
import socket
import subprocess
import urllib.request

from conftest import free_port
from patience import PATIENCE_SECONDS, eventually


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class Program:
    """A server that is started again on the same port and folder."""

    def __init__(self, folder):
        self.port, self.folder, self.process = free_port(), folder, None
        self.command = self.words()
        self.start()

    def words(self):
        """Returns its command line."""
        raise NotImplementedError

    def start(self):
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        eventually(self.command[0], lambda: is_open(self.port))

    def stop(self):
        self.process.kill()
        self.process.wait()


class Etcd(Program):
    def words(self):
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        return ["etcd", "--data-dir", f"{self.folder}/data", "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                "--unsafe-no-fsync"]


class Nats(Program):
    """A server of NATS with JetStream, which counts what it carries."""

    def words(self):
        self.door = free_port()
        return ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd",
                str(self.folder), "-m", str(self.door)]

    def told(self, page):
        """Returns what it says of itself on a page of its monitoring."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.door}/{page}", timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def carried(self):
        """Returns how many bytes its clients have published since it was started."""
        return self.told("varz")["in_bytes"]

    def subjects(self):
        """Returns what its clients listen to."""
        clients = self.told("connz?subs=1")["connections"]
        return [subject for client in clients for subject in client.get("subscriptions_list") or []]

    def stream(self, name):
        """Returns the state of a stream of JetStream, and those of its consumers; none: there is none."""
        accounts = self.told("jsz?streams=1&consumers=1").get("account_details") or []
        streams = [stream for account in accounts for stream in account.get("stream_detail") or []]
        found = next((stream for stream in streams if stream["name"] == name), None)
        return found and (found["state"], found.get("consumer_detail") or [])


@contextlib.contextmanager
def program(kind, folder):
    started = kind(folder)
    try:
        yield started
    finally:
        started.stop()


def planes(nats, requests, events):
    return ["--nats", f"nats://127.0.0.1:{nats.port}", "--request-plane", requests,
            "--event-plane", events]
