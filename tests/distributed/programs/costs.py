"""What a step of each scheme sends, and what it holds, against theory.

P elements are trained by n ranks. Counted are the arrays that MPI itself is given, by a communicator that stands in
the place of MPI's own. MPI adds up half types in float32.
"""

import math
import sys
from collections import Counter

import numpy as np
from mpi4py import MPI

import tinyarr as ta
from tests.distributed.programs.training import BUCKET, Parallel, Setting
from tinyarr.compiler import Interpreter
from tinyarr.distributed import world

sent: Counter = Counter()  # bytes that each of MPI's functions was given to send
calls: Counter = Counter()


class Counting(MPI.Intracomm):
    """A communicator that counts, whatever function is called; so are those made of it."""

    def Create_group(self, *args):
        return Counting(super().Create_group(*args))

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if not callable(found) or not name[0].isupper() or name == "Create_group":
            return found

        def counted(*args, **kwargs):
            operands = [x for x in args if isinstance(x, np.ndarray)]
            if operands:
                in_place = any(x is MPI.IN_PLACE for x in args)
                sent[name] += operands[0].nbytes if in_place or len(operands) < 3 else math.nan
                calls[name] += 1
            return found(*args, **kwargs)

        return counted


MPI.COMM_WORLD = Counting(MPI.COMM_WORLD)
N = world().size
PADDING = 128  # bytes to which each parameter is aligned, times the ranks each bucket


def padded(parallel, itemsize: int, name: str) -> list[int]:
    """Of each bucket the elements: parameters aligned, the last one first; of Zero's, by group, whole parts for all."""
    step, found = PADDING // itemsize, []
    groups = [group["parameters"][::-1] for group in parallel.model.parameter_groups(0.1)]
    for parameters in [[p for group in groups for p in group]] if name == "data" else groups:
        bucket: list[int] = []
        for p in parameters:
            if sum(bucket) * p.grad_dtype.itemsize >= BUCKET:
                found.append(bucket)
                bucket = []
            bucket.append(p.size)
        found.append(bucket)
    aligned = [sum(-(-size // step) * step for size in bucket) for bucket in found]
    share = step if name == "data" else step * N
    return [-(-size // share) * share for size in aligned]


def count_gradients(parallel) -> int:
    return sum(p.size for p in parallel.model.parameters())


def check_bytes(setting: Setting) -> None:
    k, itemsize, added = setting.accumulate, setting.dtype.itemsize, max(setting.dtype.itemsize, 4)
    for name in ("data", "zero1", "zero2"):
        parallel = Parallel(name, setting)
        P, segments = count_gradients(parallel), padded(parallel, itemsize, name)
        S = sum(segments)
        assert P <= S <= P + PADDING // itemsize * (N * len(segments) + len(list(parallel.model.parameters())))
        for step in range(2):
            sent.clear()
            calls.clear()
            parallel.run_step(step)
            if name == "data":
                expected = {"Iallreduce": S * added + 4}  # and the loss
                assert calls["Iallreduce"] == len(segments) + 1 > 2, "one bucket proves little"
            else:
                times = k if name == "zero2" else 1
                expected = {
                    "Iallreduce": 4 + 4,  # the loss, and the norm
                    "Ireduce_scatter_block": times * S * added,
                    "Iallgather": S * itemsize // N,  # each rank's own part
                }
                assert calls["Ireduce_scatter_block"] == times * len(segments), (name, setting, step, calls, segments)
                assert calls["Iallgather"] == len(segments), (name, calls, segments)
            assert dict(sent) == expected, (name, setting, sent, expected)


def check_memory(dtype, build=None) -> None:
    """Bytes that a rank keeps between steps, and works in, by scheme, for P elements of s bytes and AdamW.

    The optimizer has m bytes for each element: two float32 moments, and a master for a half type. A rank has

        data    P s              parameters,  P s    gradients of the batches before,  P m          for the optimizer
        zero1   P s + P s / n                 P s                                      P m / n
        zero2   P s + P s / n                 P s / n                                  P m / n

    where P s / n is the copy of its own part that the optimizer updates. A program's arena grows at most by the rank's
    part of the gradients, which a reduce-scatter makes beside the whole, and by that of the new parameters.
    """
    s, n = dtype.itemsize, N
    m = 8 + (4 if s < 4 else 0)
    found = {}
    for name in ("data", "zero1", "zero2"):
        parallel = Parallel(name, Setting(dtype=dtype, accumulate=2, compiled=True, build=build))
        parallel.run_step(0)
        optimizer, P = parallel.optimizer, count_gradients(parallel)
        state = [x for p in optimizer.parameters for x in optimizer.state_of(p).values()]
        own = sum(x.size * x.dtype.itemsize for x in state)
        memory = parallel.step.memory[0]
        segments = padded(parallel, s, name)
        if name == "data":
            assert own == P * m
            expected = P * s + P * s + P * m
        else:
            assert sum(world().exchange(own)) == P * m, "every element has one owner"
            assert own <= sum(segments) // n * m
            expected = P * s + P * s // n + (P * s if name == "zero1" else P * s // n) + P * m // n
        # Between parameters, parts, gradients and state, each aligned; a part of each bucket may be larger than others.
        arrays = 4 * len(list(parallel.model.parameters())) + 8
        gap = PADDING * arrays + (sum(segments) - P) * (s + m)
        assert abs(memory.state - expected) <= gap, (name, dtype, memory.state, expected, gap)
        found[name] = memory
    for name in ("zero1", "zero2"):
        more = found[name].arena - found["data"].arena
        assert more <= 2 * (sum(segments) * s // n + PADDING * len(segments)), (name, more)
    sizes = [found[name].state + found[name].arena for name in found]
    assert sizes[0] > sizes[1] > sizes[2], sizes


if __name__ == "__main__":
    if sys.argv[1] == "all":
        for dtype in (ta.float32, ta.bfloat16):
            for compiled, accumulate in ((False, 1), (False, 2), (True, 2)):
                check_bytes(Setting(dtype=dtype, accumulate=accumulate, compiled=compiled, steps=2))
            check_memory(dtype)
    else:  # without C, whose compiler takes long
        check_bytes(Setting(accumulate=1, steps=2))
        check_bytes(Setting(dtype=ta.bfloat16, accumulate=2, compiled=True, build=Interpreter, steps=2))
        check_memory(ta.bfloat16, Interpreter)
    print("costs are those of theory")
