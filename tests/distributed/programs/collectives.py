"""Every collective against NumPy, for all dtypes, operations, roots, shapes, layouts and groups, eager and compiled.

Each rank knows what the others bring, since it follows from their numbers.
"""

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

import tinyarr as ta
from tinyarr import Tensor, dtypes
from tinyarr import distributed as d
from tinyarr.distributed import Group, Mesh, world
from tinyarr.dtypes import FLOAT8, Dtype

SHAPES = [(), (0,), (1,), (8, 3), (4,), (8, 0), (4, 2, 5)]
LAID = (ta.bool, ta.bfloat16, ta.float32)  # dtypes that are tried in all shapes and layouts
LARGE = (4, 5000)  # for which MPI has other algorithms


def brought(rank: int, shape, dtype: Dtype, seed: int = 0) -> np.ndarray:
    """What a rank brings: whole numbers whose sum every dtype but float8 holds exactly."""
    rng = np.random.default_rng((rank, len(shape), seed))
    if dtype.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    low, high = (0, 9) if dtype.kind == "unsigned" else (-8, 9)
    return np.asarray(rng.integers(low, high, shape)).astype(dtype.numpy)


def layouts(x: np.ndarray):
    """The same elements as tensors that lie in memory in different ways."""
    yield Tensor(x)
    if x.ndim:
        yield ta.flip(Tensor(np.flip(x).copy()))
        yield Tensor(np.concatenate([x, x, x]))[len(x) : 2 * len(x)]
        yield Tensor(np.repeat(x, 2, axis=-1))[..., ::2]
    if x.ndim > 1:
        yield Tensor(np.ascontiguousarray(x.T)).permute_dims(tuple(range(x.ndim))[::-1])


def total(xs: list[np.ndarray], dtype: Dtype, op: str) -> np.ndarray:
    """The reduction of all: a half type's in float32, rounded once. These numbers have an exact sum."""
    if op in ("max", "min"):
        return {"max": np.maximum, "min": np.minimum}[op].reduce(xs)
    wide = np.add.reduce([x.astype(dtype.compute.numpy) for x in xs])
    return (wide / dtype.compute.numpy.type(len(xs)) if op == "mean" else wide).astype(dtype.numpy)


def operations(dtype: Dtype) -> list[str]:
    if dtype.kind == "bool":
        return ["max", "min"]
    return ["sum", "max", "min", *(["mean"] if dtype.is_float else [])]


def same(found: Tensor, expected: np.ndarray, *what) -> None:
    assert (found.shape, found.numpy().dtype) == (expected.shape, expected.dtype), (what, found, expected)
    assert found.numpy().tobytes() == np.ascontiguousarray(expected).tobytes(), (what, found, expected)


class Case(NamedTuple):
    """What a rank computes of its operand, and what comes out there, by what all ranks bring."""

    title: str
    function: Callable[[Tensor], Tensor]
    expected: Callable[[list[np.ndarray]], np.ndarray]


def cases(group: Group, shape, dtype: Dtype) -> Iterator[Case]:
    """All collectives that take an operand of this shape and dtype."""
    for op in operations(dtype):
        yield Case(
            f"all_reduce {op}",
            lambda x, op=op: d.all_reduce(x, op, group=group),
            lambda xs, op=op: total(xs, dtype, op),
        )
        if len(shape) and shape[0] % group.size == 0 and op in ("sum", "mean"):
            yield Case(
                f"reduce_scatter {op}",
                lambda x, op=op: d.reduce_scatter(x, op, group=group),
                lambda xs, op=op: np.split(total(xs, dtype, op), group.size)[group.rank],
            )
    if len(shape):
        yield Case("all_gather", lambda x: d.all_gather(x, group=group), np.concatenate)
    for root in range(group.size):
        yield Case(
            f"broadcast {root}",
            lambda x, root=root: d.broadcast(x, root, group=group),
            lambda xs, root=root: xs[root],
        )
        if dtype.kind != "bool":
            yield Case(
                f"reduce {root}",
                lambda x, root=root: d.reduce(x, root, group=group),
                lambda xs, root=root: total(xs, dtype, "sum") if group.rank == root else np.zeros_like(xs[0]),
            )


def groups() -> list[Group]:
    """All ranks, all in another order, and those of the axes of a mesh."""
    everyone = world()
    found = [everyone, everyone.subgroup(range(everyone.size)[::-1])]
    if everyone.size == 4:
        mesh = Mesh(data=2, tensor=2)
        found += [mesh["data"], mesh["tensor"]]
    return found


def check_every_collective() -> int:
    count = 0
    for group, dtype in itertools.product(groups(), dtypes.ALL):
        for shape in [*SHAPES, LARGE] if dtype in LAID else SHAPES[::3]:
            xs = [brought(rank, shape, dtype) for rank in group.ranks]
            for title, function, expected in cases(group, shape, dtype):
                for x in layouts(xs[group.rank]) if dtype in LAID and shape != LARGE else [Tensor(xs[group.rank])]:
                    before = x.numpy().tobytes()
                    same(function(x), expected(xs), title, group, dtype, shape)
                    assert x.numpy().tobytes() == before, f"{title} wrote its operand"
                    count += 1
    return count


def check_compiled(tried: Sequence[Dtype]) -> None:
    """One program of all collectives of an operand, so that many are under way at a time."""
    for group, dtype in itertools.product(groups(), tried):
        for shape in ((), (8, 3)):
            found = list(cases(group, shape, dtype))

            def program(x, found=found):
                y = ta.copy(x)
                return [function(y if i % 2 else x) for i, (_, function, _) in enumerate(found)]

            compiled = ta.compile(program)
            for seed in range(2):
                xs = [brought(rank, shape, dtype, seed) for rank in group.ranks]
                for (title, _, expected), result in zip(found, compiled(Tensor(xs[group.rank])), strict=True):
                    same(result, expected(xs), "compiled", title, group, dtype, shape)


def check_overlapping_sequences() -> None:
    """Groups that share ranks take turns, and a result is the operand of the next."""
    if world().size < 4:
        return
    mesh = Mesh(data=2, tensor=2)
    everyone, data, tensor = world(), mesh["data"], mesh["tensor"]

    def sequence(x):
        for _ in range(3):
            y = d.all_reduce(x, group=data)
            z = d.all_reduce(x * 2, group=tensor)
            x = d.reduce_scatter(d.all_gather(y - z, group=tensor), "mean", group=data) / 4
            x = d.all_reduce(x, "max", group=everyone) + d.broadcast(x, 1, group=tensor) + y[: len(x)]
        return x

    def in_numpy(xs):
        for _ in range(3):
            columns, rows = ((0, 2), (1, 3)), ((0, 1), (2, 3))
            y = [sum(xs[q] for q in g) for r in range(4) for g in columns if r in g]
            z = [2 * sum(xs[q] for q in g) for r in range(4) for g in rows if r in g]
            gathered = [np.concatenate([y[q] - z[q] for q in g]) for r in range(4) for g in rows if r in g]
            k = len(xs[0])
            xs = [
                np.mean([gathered[q] for q in g], axis=0)[g.index(r) * k : (g.index(r) + 1) * k] / 4
                for r in range(4) for g in columns if r in g
            ]  # fmt: skip
            most = np.maximum.reduce(xs)
            xs = [most + xs[g[1]] + y[r] for r in range(4) for g in rows if r in g]
        return xs

    given = [brought(rank, (8, 3), ta.float64) for rank in range(4)]
    expected = in_numpy(given)[world().rank]  # sums of few small multiples of powers of two: exact
    for run in (sequence, ta.compile(sequence)):
        same(run(Tensor(given[world().rank])), expected, "sequence")


def check_half_types_round_once() -> None:
    """Each pair of summands rounds in float32; a sum that was rounded to the half type on the way would be 0."""
    n = world().size
    if n == 1:
        return
    for dtype in (ta.float16, ta.bfloat16, *FLOAT8):
        epsilon = float(ta.finfo(dtype).eps)
        values = [1.0] + [epsilon / 4] * (n - 2) + [-1.0]  # 1 + epsilon/4 is 1 in the half type
        x = ta.full((4,), values[world().rank], dtype=ta.float32).astype(dtype)
        assert (x.astype(ta.float32).numpy() == values[world().rank]).all(), dtype
        for function in (d.all_reduce, d.reduce_scatter, lambda x: d.broadcast(d.reduce(x, 1), 1)):
            for run in (function, ta.compile(function)):
                assert (run(x).astype(ta.float32).numpy() == epsilon / 4 * (n - 2)).all(), dtype
        if dtype is not ta.bfloat16:  # float32 holds the sum, which is out of the half type's range
            large = ta.full((4,), float(ta.finfo(dtype).max), dtype=ta.float32).astype(dtype)
            assert (d.all_reduce(large, "mean").numpy() == large.numpy()).all(), dtype


def check_nan_goes_through() -> None:
    """As in NumPy's max and min, wherever it comes from."""
    floats = [dtype for dtype in dtypes.ALL if dtype.is_float]
    for dtype, position in itertools.product(floats, range(world().size)):
        x = ta.full((5,), float("nan") if world().rank == position else 1.0, dtype=dtype)
        for found in (each_operation(x), ta.compile(each_operation)(x)):
            assert all(np.isnan(y.astype(ta.float32).numpy()).all() for y in found), (dtype, position)


def each_operation(x: Tensor) -> list[Tensor]:
    return [d.all_reduce(x, op) for op in operations(x.dtype)]


def check_all_ranks_hold_the_same_bits() -> None:
    """Of sums that depend on their order."""
    for shape in ((7,), (1000,), (100_000,)):
        x = np.random.default_rng(world().rank).standard_normal(shape).astype(np.float32)
        found = [d.all_reduce(Tensor(x)).numpy().tobytes() for _ in range(3)]
        assert len(set(found)) == 1
        assert len(set(world().exchange(hash_of(found[0])))) == 1


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    count = check_every_collective()
    check_compiled(dtypes.ALL if sys.argv[1] == "all" else LAID)
    check_overlapping_sequences()
    check_half_types_round_once()
    check_nan_goes_through()
    check_all_ranks_hold_the_same_bits()
    print(f"{count} results are NumPy's")
