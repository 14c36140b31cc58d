"""Two tensor models: one answers once, the other as often as it likes."""
import stator_worker as stator

worker = stator.Worker()

@worker.tensor("double", inputs={"IN": ("FP32", [-1])}, outputs={"OUT": ("FP32", [-1])})
def double(IN):
    return IN * 2

@worker.tensor("count", inputs={"N": ("INT32", [1])}, outputs={"I": ("INT32", [1])})
async def count(N):
    for i in range(N[0]):
        yield [i]

worker.run()
