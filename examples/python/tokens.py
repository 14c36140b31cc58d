"""A text model on tokens: it says what it was told. The tokenizer's folder is the argument."""
import asyncio
import sys

import stator_worker as stator

worker = stator.Worker()

@worker.tokens("echo", tokenizer=sys.argv[1], context_length=4096)
async def echo(tokens):
    for token in tokens:
        await asyncio.sleep(0.01)
        yield token

worker.run()
