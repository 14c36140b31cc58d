"""An embedding model: how often each token comes. The tokenizer's folder is the argument."""
import sys

import numpy as np
import stator_worker as stator

worker = stator.Worker()

@worker.embedding("counts", tokenizer=sys.argv[1], context_length=512)
def counts(tokens):
    vector = np.bincount(tokens, minlength=512)
    return vector / np.linalg.norm(vector)

worker.run()
