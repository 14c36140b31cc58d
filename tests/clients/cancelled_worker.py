"""Functions that say when they hear that nobody wants their answer any more."""

import asyncio
import sys
import time

import stator_worker as stator

worker = stator.Worker()
NUMBER = {"IN": ("INT32", [-1])}, {"OUT": ("INT32", [-1])}


def say(text):
    print(f"{text} at {time.time():.6f}", file=sys.stderr, flush=True)


@worker.tokens("generator", tokenizer=sys.argv[1], context_length=256)
async def generator(tokens):
    say("begun")
    try:
        for _ in range(200):
            yield 65
            await asyncio.sleep(0.02)
    finally:
        say("ended")


@worker.tensor("function", inputs=NUMBER[0], outputs=NUMBER[1])
def function(IN):
    say("begun")
    while not stator.request().is_cancelled():
        time.sleep(0.001)
    say("ended")
    return IN


worker.run()
