"""A chat model that takes texts: it answers with what it was asked, word by word."""
import asyncio

import stator_worker as stator

worker = stator.Worker()

@worker.chat("parrot")
async def parrot(messages):
    for word in messages[-1]["content"].split():
        await asyncio.sleep(0.01)
        yield word + " "

worker.run()
