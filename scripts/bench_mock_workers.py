"""Measures how fast many mock workers register and what they cost while idle.

    python scripts/bench_mock_workers.py BINARY [--workers 1000] [--discovery file:///DIR | etcd://HOST:PORT] [--frontend]

Prints one line: seconds from the start of the process until all are registered, then the share of one core that the workers'
process takes over 20 s, and with --frontend that of a frontend that watches all of them.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

LOG = ["--log-format", "json", "--metrics-host", "127.0.0.1", "--metrics-port", "0"]
IDLE_SECONDS = 20


def start(command, message, count=1):
    """Starts a process; returns it and the seconds until it has logged a message so often."""
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        count -= json.loads(line).get("message") == message
        if count == 0:
            return process, time.monotonic() - began
    raise SystemExit(f"`{' '.join(command)}` ended")


def cpu_seconds(process):
    fields = open(f"/proc/{process.pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(process):
    lines = open(f"/proc/{process.pid}/status").read().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--discovery")
    parser.add_argument("--frontend", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        discovery = arguments.discovery or f"file://{folder}"
        processes = []
        try:
            command = [arguments.binary, "worker", *LOG, "--discovery", discovery, "--mock=blocks=256",
                       "--mock-workers", str(arguments.workers)]
            process, seconds = start(command, "ready")
            processes.append(process)
            told = {"workers": arguments.workers, "discovery": discovery.split(":")[0],
                    "registered_seconds": round(seconds, 2), "rss_mib": rss_mib(process)}
            if arguments.frontend:
                command = [arguments.binary, "frontend", *LOG, "--discovery", discovery, "--grpc-port", "0", "--http-port", "0"]
                front, seconds = start(command, "worker joined", arguments.workers)
                processes.append(front)
                told["joined_seconds"] = round(seconds, 2)
                subprocess.Popen(["cat"], stdin=front.stderr, stdout=subprocess.DEVNULL)
            time.sleep(5)
            before = [cpu_seconds(process) for process in processes]
            time.sleep(IDLE_SECONDS)
            shares = [(cpu_seconds(process) - old) / IDLE_SECONDS for process, old in zip(processes, before)]
            told["idle_core_percent"] = [round(100 * share, 2) for share in shares]
            print(json.dumps(told))
        finally:
            for process in processes:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
