"""Sorting and searching by CuPy's own routines, which work in memory of CuPy's pool. Floor 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .... import dtypes, views
from ....dtypes import Dtype
from ....views import Shape
from ..planning.registry import Input, LaunchPlan, LibraryCall, Operand, Output, Scratch, kernel, library
from . import elementwise


class Sorting(NamedTuple):
    """Request to CuPy: 'argsort' of a tensor along an axis, or 'nonzero' of a flat one with `found` results."""

    operation: str
    shape: Shape
    dtype: Dtype
    axis: int = 0
    descending: bool = False
    found: int = 0


@library("cupy")
def prepare(spec: Sorting) -> Callable[[int, int, int], None]:
    import cupy

    def over(address: int, shape: Shape, dtype: Dtype):
        nbytes = views.size(shape) * dtype.itemsize
        memory = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, nbytes, None), 0)
        return cupy.ndarray(shape, dtype.numpy, memory)

    def argsort(stream: int, source: int, target: int) -> None:
        """Descending, the axis is read backwards, so that equal elements keep their order in the result."""
        with cupy.cuda.ExternalStream(stream):
            x = cupy.moveaxis(over(source, spec.shape, spec.dtype), spec.axis, -1)
            if spec.descending:
                x = x[..., ::-1]
            found = cupy.argsort(cupy.ascontiguousarray(x), axis=-1, kind="stable")
            if spec.descending:
                found = spec.shape[spec.axis] - 1 - found[..., ::-1]
            out = over(target, spec.shape, dtypes.int64)
            cupy.moveaxis(out, spec.axis, -1)[...] = found

    def nonzero(stream: int, source: int, target: int) -> None:
        with cupy.cuda.ExternalStream(stream):
            over(target, (spec.found,), dtypes.int64)[...] = cupy.flatnonzero(over(source, spec.shape, spec.dtype))

    return {"argsort": argsort, "nonzero": nonzero}[spec.operation]


@kernel("argsort", layouts="dense")
def argsort(inputs, outputs, *, axis, descending):
    (x,) = inputs
    if 0 in x.shape:
        return LaunchPlan([])
    kind = x.dtype.compute
    spec = Sorting("argsort", x.shape, kind, axis=axis, descending=descending)
    if kind is x.dtype:
        return LaunchPlan([LibraryCall("cupy", spec, (Input(0), Output(0)))])
    widened = Operand(x.shape, x.strides, kind)
    steps = elementwise.cast((x, Input(0)), (widened, Scratch(0)))
    call = LibraryCall("cupy", spec, (Scratch(0), Output(0)))
    return LaunchPlan([*steps, call], (views.size(x.shape) * kind.itemsize,))


@kernel("nonzero", layouts="dense")
def nonzero(inputs, outputs, *, count):
    (x,) = inputs
    if not count:
        return LaunchPlan([])
    flags = Operand(x.shape, x.strides, dtypes.bool)
    steps = elementwise.cast((x, Input(0)), (flags, Scratch(0)))
    spec = Sorting("nonzero", x.shape, dtypes.bool, found=count)
    return LaunchPlan([*steps, LibraryCall("cupy", spec, (Scratch(0), Output(0)))], (views.size(x.shape),))
