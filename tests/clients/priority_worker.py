"""Functions that tell the priority of their request."""

import numpy as np
import stator_worker as stator

worker = stator.Worker()


@worker.tensor("tensors", inputs={"IN": ("INT32", [1])}, outputs={"OUT": ("UINT64", [1])})
def tensors(IN):
    return np.array([stator.request().priority], np.uint64)


@worker.text("texts")
async def texts(prompt):
    yield str(stator.request().priority)


worker.run()
