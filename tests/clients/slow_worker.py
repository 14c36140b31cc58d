"""Functions that say when they begin, and end when a file is there: with and without sequences."""

import asyncio
import pathlib
import sys

import numpy as np
import stator_worker as stator

worker = stator.Worker()
NUMBER = {"inputs": {"IN": ("INT32", [1])}, "outputs": {"OUT": ("INT32", [1])}}
END = pathlib.Path(sys.argv[1])


async def work():
    print("begun", file=sys.stderr, flush=True)
    while not END.exists():
        await asyncio.sleep(0.01)


@worker.tensor("slow", **NUMBER)
async def slow(IN):
    await work()
    return IN + 1


@worker.tensor("sums", sequences=True, **NUMBER)
async def sums(IN):
    await work()
    state = stator.request().sequence.state
    state["total"] = np.int32(state.get("total", 0) + IN[0])
    return np.array([state["total"]], np.int32)


worker.run()
