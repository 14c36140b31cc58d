"""Functions that the tests of Python workers need: slow ones, failing ones, ones that report."""

import asyncio
import sys
import time

import numpy as np
import stator_worker as stator

worker = stator.Worker()
NUMBER = {"IN": ("INT32", [-1])}, {"OUT": ("INT32", [-1])}
TEXT = {"tokenizer": sys.argv[1], "context_length": 256}


def say(text):
    print(text, file=sys.stderr, flush=True)


def tensor(name, **options):
    return worker.tensor(name, inputs=NUMBER[0], outputs=NUMBER[1], **options)


@tensor("fails")
def fails(IN):
    kind = ["InvalidRequest", "NotFound", "Overloaded", "Unavailable", "Internal"][IN[0]]
    raise getattr(stator, kind)(f"because of {kind}", code="some_code", retry_after=7)


@tensor("breaks")
def breaks(IN):
    if IN[0] > 0:
        raise ZeroDivisionError("a secret")
    return {"OUT": IN.astype(np.float64)}


@tensor("sleeps")
async def sleeps(IN):
    say("begun sleeps")
    try:
        await asyncio.sleep(IN[0] / 1000)
    except asyncio.CancelledError:
        say(f"cancelled {stator.request().id}")
        raise
    return IN


@tensor("works")
def works(IN):
    end = time.monotonic() + IN[0] / 1000
    while time.monotonic() < end and not stator.request().is_cancelled():
        time.sleep(0.005)
    say("worked" if time.monotonic() >= end else "gave up")
    return IN


@tensor("stuck")
def stuck(IN):
    say("begun stuck")
    time.sleep(IN[0] / 1000)
    return IN


@tensor("yields")
def yields(IN):
    try:
        for number in range(IN[0]):
            yield np.array([number], np.int32)
    finally:
        say("closed")


@tensor("narrow", concurrency=1, max_waiting=1)
async def narrow(IN):
    say("begun narrow")
    await asyncio.sleep(IN[0] / 1000)
    return IN


@tensor("adds", sequences=True)
def adds(IN):
    state = stator.request().sequence.state
    state["total"] = np.int32(state.get("total", 0) + IN.sum())
    return np.array([state["total"]], np.int32)


@worker.tensor("mixed", max_batch_size=4,
               inputs={"TEXT": ("BYTES", [1]), "BITS": ("BF16", [2])},
               outputs={"UPPER": ("BYTES", [1]), "BITS": ("BF16", [2]), "FLAGS": ("BOOL", [2])})
def mixed(TEXT, BITS):
    upper = np.vectorize(lambda text: text.decode().upper().encode(), otypes=[object])
    return {"UPPER": upper(TEXT), "BITS": BITS, "FLAGS": BITS > 0}


@worker.tensor("spans", inputs=NUMBER[0], outputs={"OUT": ("BYTES", [1])})
def spans(IN):
    return np.array([stator.request().trace_parent.encode()], object)


@worker.tokens("alphabet", **TEXT)
async def alphabet(tokens):
    step = 0
    try:
        for step in range(1000):
            await asyncio.sleep(0.03)
            # The letters from `a` on, for each choice one later.
            yield tokens[-1] + (step + stator.request().choice) % 20
    finally:
        say(f"text closed behind {step} tokens")


@worker.tokens("lists", logprobs=True, **TEXT)
def lists(tokens):
    return [stator.Token(token, -0.5, 1, ((token, -0.5), (0, -2.0))) for token in tokens]


@worker.text("spells", aliases=["letters"])
async def spells(prompt):
    step = 0
    try:
        for step, letter in enumerate(prompt):
            await asyncio.sleep(0.002)
            yield letter
    finally:
        say(f"spelling closed behind {step} letters")


@worker.chat("caller", accepts=["tools"])
def caller(messages):
    question = messages[-1]["content"]
    yield stator.Delta(reasoning="Hm.")
    if stator.request().body.get("tools"):
        yield stator.Delta(tool_calls=({"name": "look", "arguments": '{"at":'},))
        yield stator.Delta(tool_calls=({"arguments": '"it"}'},))
    yield question + "!"
    yield stator.Delta(usage={"prompt_tokens": 7, "completion_tokens": 3, "reasoning_tokens": 1})


@worker.embedding("lengths")
def lengths(text):
    return [len(text), len(text.encode())]


worker.run()
