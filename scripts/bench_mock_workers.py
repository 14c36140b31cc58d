"""Measures how fast many mock workers register and what they cost while idle.

    python scripts/bench_mock_workers.py BINARY [--workers 1000] [--discovery file:///DIR | etcd://HOST:PORT] [--frontend]

Prints one line: seconds from the start of the process until all are registered, then the share of one core that the workers'
process takes over a minute, and the memory of each worker there. With --frontend a frontend watches all of them: seconds until it
knows them, its share, and its memory for each beyond that of a frontend without workers. A minute has two canaries for each worker.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time

LOG = ["--log-format", "json", "--metrics-host", "127.0.0.1", "--metrics-port", "0"]
DOORS = ["--grpc-port", "0", "--http-port", "0"]
REST_SECONDS = 5
IDLE_SECONDS = 60


class Process:
    """A role of the binary that has logged a message so often; its end is that of the block."""

    def __init__(self, command, message, count=1):
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            count -= json.loads(line).get("message") == message
            if count == 0:
                break
        else:
            raise SystemExit(f"`{' '.join(command)}` ended")
        self.seconds = time.monotonic() - began
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.drain.wait()

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self):
        lines = open(f"/proc/{self.process.pid}/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--discovery")
    parser.add_argument("--frontend", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        discovery = arguments.discovery or f"file://{folder}/fleet"
        frontend = [arguments.binary, "frontend", *LOG, *DOORS, "--discovery"]
        with Process([*frontend, f"file://{folder}/nobody"], "ready") as alone:
            alone_kib = alone.rss_kib()
        command = [arguments.binary, "worker", *LOG, "--discovery", discovery, "--mock=blocks=256",
                   "--mock-workers", str(arguments.workers)]
        workers = stack.enter_context(Process(command, "ready"))
        told = {"workers": arguments.workers, "discovery": discovery.split(":")[0],
                "registered_seconds": round(workers.seconds, 2)}
        processes = [workers]
        if arguments.frontend:
            processes.append(stack.enter_context(Process([*frontend, discovery], "worker joined", arguments.workers)))
            told["joined_seconds"] = round(processes[1].seconds, 2)
        time.sleep(REST_SECONDS)
        before = [process.cpu_seconds() for process in processes]
        time.sleep(IDLE_SECONDS)
        shares = [(process.cpu_seconds() - old) / IDLE_SECONDS for process, old in zip(processes, before)]
        told["idle_core_percent"] = [round(100 * share, 2) for share in shares]
        told["kib_a_worker"] = round(workers.rss_kib() / arguments.workers)
        if arguments.frontend:
            told["frontend_kib_a_worker"] = round((processes[1].rss_kib() - alone_kib) / arguments.workers)
        print(json.dumps(told))


if __name__ == "__main__":
    main()
