"""Measures how many tokens a second greedy gRPC streams have, and how soon a prompt has its first token.

    .venv/bin/python scripts/bench_streams.py HOST:PORT MODEL [--streams 32] [--tokens 240] [--prompt-tokens 1008] [--shared-tokens 1000]

Each round starts all streams at once, each on a connection of its own with a prompt of 16 tokens, and divides their tokens by the time
until the last stream has ended. Then a prompt comes that nobody has seen, and another one that begins with its first tokens: prints the
milliseconds until each has its first token, which are those of an idle server. The figures are medians of the rounds.
"""

import argparse
import random
import statistics
import threading
import time

from bench_long_prompt import Stream


class Whole(Stream):
    """A stream that knows when it has ended."""

    def __init__(self, *arguments):
        self.is_over = threading.Event()
        super().__init__(*arguments)

    def take(self, result, error):
        super().take(result, error)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            self.is_over.set()

    def until_over(self):
        if not self.is_over.wait(timeout=600) or self.error:
            raise SystemExit(f"a stream did not end: {self.error}")


def rate(address, model, streams, tokens, prompt):
    """Returns the tokens a second of all streams together."""
    began = time.monotonic()
    running = [Whole(address, model, prompt(16), tokens) for _ in range(streams)]
    try:
        for stream in running:
            stream.until_over()
        return streams * tokens / (max(stream.times[-1] for stream in running) - began)
    finally:
        for stream in running:
            stream.stop()


def first_token_ms(address, model, tokens):
    """Returns the milliseconds until a prompt has its first token."""
    began = time.monotonic()
    stream = Whole(address, model, tokens, 1)
    try:
        stream.wait()
        return 1e3 * (stream.times[0] - began)
    finally:
        stream.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--prompt-tokens", type=int, default=1008)
    parser.add_argument("--shared-tokens", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    o = parser.parse_args()
    draw = random.Random()
    prompt = lambda count: [draw.randrange(100, 10000) for _ in range(count)]
    rates = [rate(o.address, o.model, o.streams, o.tokens, prompt) for _ in range(o.rounds)]
    print(f"{o.streams} streams of {o.tokens} tokens: {statistics.median(rates):.0f} tokens/s")
    seen, shared = [], []
    for _ in range(o.rounds):
        first = prompt(o.prompt_tokens)
        second = first[:o.shared_tokens] + prompt(o.prompt_tokens - o.shared_tokens)
        seen.append(first_token_ms(o.address, o.model, first))
        shared.append(first_token_ms(o.address, o.model, second))
    print(f"first token of {o.prompt_tokens} tokens after {statistics.median(seen):.0f} ms; "
          f"with {o.shared_tokens} of them in the prefix cache after {statistics.median(shared):.0f} ms")


if __name__ == "__main__":
    main()
