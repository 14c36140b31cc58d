"""Measures how evenly tokens come while a long prompt is computed beside them.

    .venv/bin/python scripts/bench_long_prompt.py HOST:PORT MODEL [--streams 8] [--prompt-tokens 4000]

Some gRPC streams draw tokens all the time; when they run, a prompt comes that nobody has seen before. Prints the median and the 99th
percentile of the milliseconds between a stream's tokens, before the prompt came and until its first token, and how long that took.
"""

import argparse
import random
import threading
import time

import numpy as np
import tritonclient.grpc as triton

BEFORE_SECONDS = 3


def inputs(tokens, most):
    def tensor(name, datatype, values):
        made = triton.InferInput(name, list(values.shape), datatype)
        made.set_data_from_numpy(values)
        return made

    return [tensor("input_ids", "INT32", np.array(tokens, np.int32)), tensor("max_tokens", "INT32", np.array([most], np.int32)),
            tensor("stream", "BOOL", np.array([True])), tensor("ignore_eos", "BOOL", np.array([True])),
            tensor("temperature", "FP32", np.array([0], np.float32))]


class Stream:
    """One request on a connection of its own, with the times of its tokens."""

    def __init__(self, address, model, tokens, most):
        self.times, self.first, self.error = [], threading.Event(), None
        self.client = triton.InferenceServerClient(address)
        self.client.start_stream(self.take)
        self.client.async_stream_infer(model, inputs(tokens, most))

    def take(self, result, error):
        self.times.append(time.monotonic())
        self.error = error
        self.first.set()

    def wait(self):
        if not self.first.wait(timeout=300) or self.error:
            raise SystemExit(f"no token came: {self.error}")

    def stop(self):
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


def gaps(streams, begin, end):
    """Returns the milliseconds between neighbouring tokens of each stream that end within a time."""
    pairs = (pair for stream in streams for pair in zip(stream.times, stream.times[1:]))
    return sorted(1e3 * (after - before) for before, after in pairs if begin < after <= end)


def told(what, found):
    if not found:
        raise SystemExit(f"{what}: no tokens came")
    median, last = found[len(found) // 2], found[min(len(found) - 1, len(found) * 99 // 100)]
    print(f"{what}: {len(found)} tokens, median {median:.1f} ms, p99 {last:.1f} ms, most {found[-1]:.1f} ms")
    return median, last


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    arguments = parser.parse_args()
    draw = random.Random()
    prompt = lambda count: [draw.randrange(100, 10000) for _ in range(count)]
    running = []
    try:
        running += [Stream(arguments.address, arguments.model, prompt(16), 4000) for _ in range(arguments.streams)]
        for stream in running:
            stream.wait()
        begin = time.monotonic()
        time.sleep(BEFORE_SECONDS)
        sent = time.monotonic()
        long = Stream(arguments.address, arguments.model, prompt(arguments.prompt_tokens), 1)
        running.append(long)
        long.wait()
        others, came = running[:-1], long.times[0]
        median, _ = told("before", gaps(others, begin, sent))
        beside, last = told("beside the prompt", gaps(others, sent, came))
        print(f"first token of the prompt after {came - sent:.2f} s; "
              f"p99 beside it {last / beside:.2f} times the median there, {last / median:.2f} times that before")
    finally:
        for stream in running:
            stream.stop()


if __name__ == "__main__":
    main()
