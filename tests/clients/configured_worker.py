"""A model that a file with a Triton ModelConfig, the argument, says all about."""

import pathlib
import sys

import stator_worker as stator

worker = stator.Worker()


@worker.tensor("scaled", config=pathlib.Path(sys.argv[1]).read_text(), aliases=["grown"])
def scaled(VALUES, FACTOR=3):
    return {"PRODUCTS": VALUES * FACTOR, "COUNTS": [[row.size] for row in VALUES]}


worker.run()
