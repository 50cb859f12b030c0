"""Collectives with one rank, where each gives what came. tests/distributed proves them with several."""

from __future__ import annotations

from hypothesis import strategies as st

import tinyarr
from tests.samples.record import NUMBERS, SAMPLES, SIDE, Case, Operand, Sample, cases_of, exact, refused
from tinyarr import Tensor, distributed, ones
from tinyarr.dtypes import ALL
from tinyarr.errors import ArgumentError, DtypeError, GradientError, ShapeError
from tinyarr.testing import shapes


def cases(min_ndim: int = 0, **params: st.SearchStrategy) -> st.SearchStrategy:
    def build(draw) -> Case:
        return Case((Operand(draw(shapes(min_ndim=min_ndim, max_side=SIDE))),), {k: draw(v) for k, v in params.items()})

    return cases_of(build)


def identity(x, **params):
    return x


def with_gradient(operation, *args) -> None:
    operation(Tensor([1.0], requires_grad=True), *args).sum().backward()


SAMPLES["all_reduce"] = Sample(
    distributed.all_reduce,
    identity,
    cases(op=st.sampled_from(("sum", "max", "min"))),
    takes=NUMBERS,
    refuses=(),
    roundings=exact,
    smooth={"op": "sum"},
    errors=(
        refused(lambda: distributed.all_reduce(ones(2), "prod"), ArgumentError, "all_reduce", "'prod'", "sum, mean"),
        refused(lambda: distributed.all_reduce(ones(2, dtype=tinyarr.bool)), DtypeError, "all_reduce", "bool", "max"),
        refused(lambda: distributed.all_reduce(ones(2, dtype="int8"), "mean"), DtypeError, "int8", "'mean'", "astype"),
        refused(lambda: distributed.all_reduce([1.0]), TypeError, "all_reduce", "x is list"),
        refused(lambda: distributed.all_reduce(ones(2), group=[0]), TypeError, "all_reduce", "group is list"),
        refused(lambda: with_gradient(distributed.all_reduce, "max"), GradientError, "all_reduce", "'max'", "detach"),
    ),
)
SAMPLES["reduce"] = Sample(
    distributed.reduce,
    identity,
    cases(root=st.just(0)),
    takes=NUMBERS,
    roundings=exact,
    errors=(
        refused(lambda: distributed.reduce(ones(2), 1), ArgumentError, "reduce", "root is 1", "ranks 0 to 0"),
        refused(lambda: distributed.reduce(ones(2), 0.0), TypeError, "reduce", "root is float", "rank"),
    ),
)
SAMPLES["broadcast"] = Sample(
    distributed.broadcast,
    identity,
    cases(root=st.just(0)),
    takes=ALL,
    roundings=exact,
    errors=(refused(lambda: distributed.broadcast(ones(2), -1), ArgumentError, "broadcast", "root is -1"),),
)
SAMPLES["reduce_scatter"] = Sample(
    distributed.reduce_scatter,
    identity,
    cases(min_ndim=1, op=st.just("sum")) | cases(min_ndim=1),
    takes=NUMBERS,
    roundings=exact,
    errors=(
        refused(lambda: distributed.reduce_scatter(ones(())), ShapeError, "reduce_scatter", "()", "first axis"),
        refused(lambda: distributed.reduce_scatter(ones(2), "max"), ArgumentError, "reduce_scatter", "'max'", "mean"),
    ),
)
SAMPLES["all_gather"] = Sample(
    distributed.all_gather,
    identity,
    cases(min_ndim=1),
    takes=ALL,
    roundings=exact,
    errors=(refused(lambda: distributed.all_gather(ones(())), ShapeError, "all_gather", "0-d", "reshape"),),
)
