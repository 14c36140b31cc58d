"""A client that asks every 20 ms, in a process of its own: clients beside it cost it no time of its interpreter.

As a program it asks the server at an address until its standard input ends, and prints from when to when it waited each
time.
"""

import contextlib
import subprocess
import sys
import threading
import time

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from patience import PATIENCE_SECONDS

PAUSE_SECONDS = 0.02


@contextlib.contextmanager
def paced(server):
    """Asks while a block runs; yields from when to when the client waited each time, all of it after the block."""
    client = subprocess.Popen([sys.executable, __file__, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = client.stdout.readline()
    assert first, "the client has no answer"
    waits = [_times(first)]
    reader = threading.Thread(target=lambda: waits.extend(map(_times, client.stdout)), daemon=True)
    reader.start()
    try:
        yield waits
    finally:
        client.stdin.close()
        reader.join()
        assert client.wait() == 0, "a request failed"


def _times(line):
    begin, end = line.split()
    return float(begin), float(end)


def longest_stall(waits, late):
    """Returns the longest time that a paced client waited for the server and not for the machine."""
    return max(end - begin - late.within(begin, end) for begin, end in waits)


def ask(address):
    is_over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while not is_over.is_set():
            begun = time.time()
            assert stub.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_SECONDS).live
            print(f"{begun:.6f} {time.time():.6f}", flush=True)
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    ask(sys.argv[1])
