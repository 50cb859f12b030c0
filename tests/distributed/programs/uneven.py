"""Programs that are not the same on all ranks, which yet call the same collectives in the same order."""

import numpy as np

import tinyarr as ta
from tinyarr import Tensor
from tinyarr import distributed as d
from tinyarr.distributed import world

N, RANK = world().size, world().rank


def total_that_one_rank_uses(x):
    total = d.reduce(x * 2, N - 1)
    return total + x if RANK == N - 1 else x


def operands_that_are_one_on_some_ranks(x):
    other = x if RANK == 0 else x + RANK
    return d.all_reduce(x), d.all_reduce(other)


def operands_that_are_there_early_or_late(x):
    late = x
    for _ in range(3):
        late = late @ x
    early = x if RANK == 0 else late
    first = d.all_reduce(early)
    second = d.all_reduce((x @ x)[:1])
    return first, second


def operands_of_nothing(x):
    y = x @ x @ x
    first = ta.zeros(x.shape) if RANK == 0 else y @ x
    return d.all_reduce(first), d.all_reduce(y[:1]), d.all_gather(ta.ones((2, 2)) if RANK else y[:2, :2])


PROGRAMS = (
    total_that_one_rank_uses,
    operands_that_are_one_on_some_ranks,
    operands_that_are_there_early_or_late,
    operands_of_nothing,
)

if __name__ == "__main__":
    x = Tensor(np.random.default_rng(RANK).integers(-2, 3, (4, 4)).astype(np.float32))
    for program in PROGRAMS:
        compiled = ta.compile(program)
        for _ in range(2):
            eager, found = program(x), compiled(x)
            pairs = zip(eager, found) if isinstance(eager, tuple) else [(eager, found)]
            assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs), program.__name__
    print(f"{len(PROGRAMS)} programs agree")
