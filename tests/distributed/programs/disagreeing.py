"""Ranks that compile the same collectives with other work beside them, and then different ones."""
import sys

import tinyarr as ta
from tinyarr.distributed import all_reduce, world

rank = world().rank

@ta.compile
def step(x):
    y = all_reduce(x * 2)
    if rank == 1:
        y = y + all_reduce(x, "max")
    return y

@ta.compile
def fine(x):
    return all_reduce(x * (rank + 1)) + (x.sum() if rank else 0)

sys.stdout.write(f"fine {fine(ta.ones((4,)))[0].item() - 4 * rank}\n")
try:
    step(ta.ones((4,)))
except ta.errors.TraceError as error:
    sys.stdout.write(str(error).replace("\n", " / ") + "\n")
