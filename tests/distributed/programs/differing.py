"""Ranks that call different collectives, in programs and outside: all raise before any runs, and they stay together."""

import pytest

import tinyarr as ta
from tinyarr import distributed as d
from tinyarr.distributed import world
from tinyarr.errors import ArgumentError, TraceError

RANK, SIZE = world().rank, world().size


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


@ta.compile
def other_work(x):
    return d.all_reduce(x * (RANK + 1)) + (x.sum() if RANK else 0)


@ta.compile
def other_collectives(x):
    y = d.all_reduce(x * 2)
    return y + d.all_reduce(x, "max") if RANK == 1 else y


def check_calls() -> None:
    for one, others in DIFFERENT:
        with pytest.raises(ArgumentError) as raised:
            (one if RANK == 1 else others)()
        told = str(raised.value)
        assert told.count("\n  rank ") == SIZE, told
        assert len(set(world().exchange(told.partition(": ")[2]))) == 1  # less the operation of this rank
        assert (d.all_reduce(ones(3)).numpy() == SIZE).all()


def check_programs() -> None:
    assert other_work(ones(4))[0].item() == SIZE * (SIZE + 1) / 2 + (4 if RANK else 0)
    with pytest.raises(TraceError, match="compile: other_collectives") as raised:
        other_collectives(ones(4))
    told = str(raised.value)
    assert "rank 1 would run other collectives than rank 0" in told and "number 2 is\n  rank 0: no more\n" in told
    assert f"\n  rank 1: all_reduce(float32[4], group={world()}, op=max)" in told
    assert len(set(world().exchange(told))) == 1


if __name__ == "__main__":
    check_calls()
    check_programs()
    print("differences are found")
