"""Gradients through collectives against one process that computes what every rank returns, and adds it all up.

What a rank computes is a generator: it yields a collective and gets its result. One driver runs it as it is, on each
rank; another runs those of all ranks side by side in one process, where a collective is made of plain operations. All
numbers are whole, or whole multiples of a power of two, and small: every order of additions gives the same bits.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import tinyarr as ta
from tinyarr import Tensor
from tinyarr import distributed as d
from tinyarr.distributed import Mesh, world
from tinyarr.ops.primitive import registry

N, RANK = world().size, world().rank
MESH = Mesh(data=2, tensor=2) if N == 4 else Mesh(data=N, tensor=1)
AXES = {None: [tuple(range(N))], "data": [(0, 2), (1, 3)], "tensor": [(0, 1), (2, 3)]}
if N < 4:
    AXES |= {"data": [tuple(range(N))], "tensor": [(r,) for r in range(N)]}


class Ask(NamedTuple):
    """A collective that a rank calls: its name, operand and parameters; along which axis of the mesh, or none."""

    name: str
    x: Tensor
    axis: str | None = None
    params: dict = {}


def on_this_rank(rank_function: Callable, x: Tensor) -> Tensor:
    """What this rank returns."""
    running, result = rank_function(x, RANK), None
    while True:
        try:
            ask = running.send(result)
        except StopIteration as end:
            return end.value
        group = world() if ask.axis is None else MESH[ask.axis]
        result = getattr(d, ask.name)(ask.x, group=group, **ask.params)


def on_all_ranks(rank_function: Callable, xs: list[Tensor]) -> Tensor:
    """The sum over the ranks of what each returns, by one process."""
    running, results = [rank_function(x, r) for r, x in enumerate(xs)], [None] * N
    while True:
        asked, ended = [], []
        for one, result in zip(running, results):
            try:
                asked.append(one.send(result))
            except StopIteration as end:
                ended.append(end.value)
        if ended:
            return sum(ended[1:], ended[0])
        for ranks in AXES[asked[0].axis]:
            made = plainly(asked[0].name, [asked[r].x for r in ranks], **asked[0].params)
            for r, y in zip(ranks, made):
                results[r] = y


def plainly(name: str, xs: list[Tensor], op: str = "sum", root: int = 0) -> list[Tensor]:
    """The results of a collective on all ranks of a group."""
    n = len(xs)
    if name == "broadcast":
        return [xs[root]] * n
    if name == "all_gather":
        return [ta.concat(xs)] * n
    total = sum(xs[1:], xs[0])
    total = total / n if op == "mean" else total
    if name == "all_reduce":
        return [total] * n
    if name == "reduce":
        return [total if r == root else ta.zeros_like(total) for r in range(n)]
    k = total.shape[0] // n
    return [total[r * k : (r + 1) * k] for r in range(n)]


def weights(r: int, shape) -> Tensor:
    """Whole numbers from -3 to 3, for one rank others than for the others."""
    number = ta.arange(math.prod(shape), dtype=ta.float64)
    return ((number * number + number * (r + 3) + r * r) % 7 - 3).reshape(shape)


def loss(y: Tensor, r: int) -> Tensor:
    return (weights(r, y.shape) * y * y).sum() + (weights(r + 4, y.shape) * y).sum()


def alone(name: str, axis: str | None, **params) -> Callable:
    def rank_function(x, r):
        y = yield Ask(name, x, axis, params)
        return loss(y, r)

    return rank_function


def several(x, r):
    """Results that are operands of the next, and operands that are used twice."""
    y = yield Ask("all_reduce", x)
    z = yield Ask("all_gather", x * y, "data")
    own = yield Ask("reduce_scatter", z * 2, "data", {"op": "mean"})
    both = yield Ask("all_reduce", own - x, "tensor", {"op": "mean"})
    most = yield Ask("reduce", both, None, {"root": N - 1})
    back = yield Ask("broadcast", most + x, None, {"root": N - 1})
    return loss(back, r) + loss(own, r + 1) + (both * x).sum()


def the_same_operand(x, r):
    y = yield Ask("all_reduce", x)
    z = yield Ask("all_reduce", x)
    w = yield Ask("broadcast", y * z)
    return loss(w, r) + (y * z).sum()


def one_rank_alone_returns(x, r):
    y = yield Ask("reduce", x * x, None, {"root": N - 1})
    return (y * weights(9, y.shape)).sum()


def average_of_losses(x, r):
    """Replicated parameters, as of data parallelism."""
    w = yield Ask("broadcast", x)
    mean = yield Ask("all_reduce", loss(w, r), None, {"op": "mean"})
    return mean


def cases() -> Iterator[tuple[str, Callable]]:
    for axis, ranks in AXES.items():
        for op in ("sum", "mean"):
            yield f"all_reduce {op} {axis}", alone("all_reduce", axis, op=op)
            yield f"reduce_scatter {op} {axis}", alone("reduce_scatter", axis, op=op)
        yield f"all_gather {axis}", alone("all_gather", axis)
        for root in range(len(ranks[0])):
            yield f"reduce {root} {axis}", alone("reduce", axis, root=root)
            yield f"broadcast {root} {axis}", alone("broadcast", axis, root=root)
    for function in (several, the_same_operand, one_rank_alone_returns, average_of_losses):
        yield function.__name__, function


def twice(function: Callable[[list[Tensor]], Tensor], seed: int, ranks: list[int]) -> Callable:
    """Of operands the function's value, their gradients, and the gradients of a product with those gradients."""

    def run(*xs):
        value, gradients = first(*xs)

        def product(*xs):
            _, gradients = first(*xs)
            return sum((g * weights(r + seed, g.shape)).sum() for g, r in zip(gradients, ranks))

        again, pull = ta.vjp(product, *xs)
        return value, *gradients, *pull(ta.ones_like(again))

    def first(*xs):
        value, pull = ta.vjp(lambda *xs: function(list(xs)), *xs)
        return value, pull(ta.ones_like(value))

    return run


def expected(some: list[tuple[str, Callable]]) -> list[tuple[Tensor, ...]]:
    """Of each case the sum of what the ranks return, this rank's gradient and its second one, by one process."""
    found = []
    for _, rank_function in some:
        total, *gradients = twice(lambda xs, f=rank_function: on_all_ranks(f, xs), 30, list(range(N)))(*GIVEN)
        found.append((total, gradients[RANK], gradients[N + RANK]))
    return found


def computed(some: list[tuple[str, Callable]], compiled: bool = False) -> list[tuple[Tensor, ...]]:
    """The same by the ranks together, the value by each. compiled: all cases by one program."""
    functions = [twice(lambda xs, f=rank_function: on_this_rank(f, xs[0]), 30, [RANK]) for _, rank_function in some]

    def run(x):
        return [function(x) for function in functions]

    return (ta.compile(run) if compiled else run)(GIVEN[RANK])


def wrong_cases(some, found, right) -> list[str]:
    """The names of those whose value, gradient or second gradient is wrong on some rank."""
    wrong = []
    for (name, _), (value, *gradients), (total, *others) in zip(some, found, right, strict=True):
        same = sum(world().exchange(value.item())) == total.item()
        same &= all(np.array_equal(x.numpy(), y.numpy()) for x, y in zip(gradients, others, strict=True))
        if not all(world().exchange(same)):
            wrong.append(name)
    return wrong


GIVEN = [weights(r + 20, (4, 3)) for r in range(N)]

FAULTS = {  # by what is wrong, the primitive and its gradient rule
    "all_reduce: own gradient alone": ("all_reduce", lambda g, *, group, op: g),
    "all_reduce: n times": ("all_reduce", lambda g, *, group, op: d.all_reduce(g, op, group=group) * group.size),
    "all_reduce: the mean's is a sum": ("all_reduce", lambda g, *, group, op: d.all_reduce(g, group=group)),
    "all_reduce: the sum's is a mean": ("all_reduce", lambda g, *, group, op: d.all_reduce(g, "mean", group=group)),
    "reduce: the wrong root": ("reduce", lambda g, *, group, root: d.broadcast(g, group=group)),
    "reduce: no broadcast": ("reduce", lambda g, *, group, root: g),
    "broadcast: the wrong root": ("broadcast", lambda g, *, group, root: d.reduce(g, group=group)),
    "broadcast: all get the sum": ("broadcast", lambda g, *, group, root: d.all_reduce(g, group=group)),
    "reduce_scatter: the mean's is n times too large": (
        "reduce_scatter", lambda g, *, group, op: d.all_gather(g, group=group)),
    "reduce_scatter: the sum's is n times too small": (
        "reduce_scatter", lambda g, *, group, op: d.all_gather(g, group=group) / group.size),
    "all_gather: a mean": ("all_gather", lambda g, *, group: d.reduce_scatter(g, "mean", group=group)),
    "all_gather: own gradient alone": ("all_gather", lambda g, *, group: (
        g.reshape((group.size, -1, *g.shape[1:]))[group.rank])),
    "all_gather: the first part": ("all_gather", lambda g, *, group: g[: g.shape[0] // group.size]),
}  # fmt: skip


@contextlib.contextmanager
def fault(name: str, rule: Callable) -> Iterator[None]:
    """The primitive's gradient rule exchanged."""
    primitive = registry[name]
    right = primitive._backward
    try:
        primitive.gradient(rule)
        primitive._calls.clear()
        yield
    finally:
        primitive._backward = right
        primitive._calls.clear()


def check_faults_are_caught(some: list[tuple[str, Callable]], right: list[tuple[Tensor, ...]]) -> None:
    for title, (name, rule) in FAULTS.items():
        numbers = [i for i, (case, _) in enumerate(some) if case.startswith(f"{name} ")]
        mine = [some[i] for i in numbers]
        with fault(name, rule):
            assert wrong_cases(mine, computed(mine), [right[i] for i in numbers]), f"not caught: {title}"


if __name__ == "__main__":
    some = list(cases())
    right = expected(some)
    for compiled in (False, True):
        assert wrong_cases(some, computed(some, compiled), right) == []
    if N > 1:
        check_faults_are_caught(some, right)
    print(f"{len(some)} functions have the gradients of one process")
