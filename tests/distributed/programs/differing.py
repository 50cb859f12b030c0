"""Ranks that call different collectives outside programs: all of them raise before anything runs, and stay together."""

import tinyarr as ta
from tinyarr import distributed as d
from tinyarr.distributed import world
from tinyarr.errors import ArgumentError

RANK = world().rank


def ones(*shape, dtype=ta.float32):
    return ta.ones(shape, dtype=dtype)


# What rank 1 calls, and what the others do.
DIFFERENT = [
    (lambda: d.all_reduce(ones(3)), lambda: d.all_reduce(ones(4))),
    (lambda: d.all_reduce(ones(2, 3)), lambda: d.all_reduce(ones(3, 2))),
    (lambda: d.all_gather(ones(3)), lambda: d.all_gather(ones(3, dtype=ta.int32))),
    (lambda: d.all_reduce(ones(3), "max"), lambda: d.all_reduce(ones(3))),
    (lambda: d.broadcast(ones(3), 1), lambda: d.broadcast(ones(3))),
    (lambda: d.reduce(ones(3)), lambda: d.all_reduce(ones(3))),
]

if __name__ == "__main__":
    for one, others in DIFFERENT:
        try:
            (one if RANK == 1 else others)()
            told = "nothing"
        except ArgumentError as error:
            told = str(error)
        assert told.count("\n  rank ") == world().size, told
        assert len(set(world().exchange(told.partition(": ")[2]))) == 1
        assert (d.all_reduce(ones(3)).numpy() == world().size).all()
    print(f"{len(DIFFERENT)} differences are found")
