"""Elementwise kernels: a scalar expression in a loop over packs of elements, 128 bits a load and store. Floor 3.

The source depends on the expression, the number of axes left after merging, and how each operand is strided along the
last one (next to each other, all the same, or apart). Sizes and strides are arguments, so one kernel serves all shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .... import views
from ....dtypes import Dtype
from ....ops.typing import Typed, TypedStep
from ....views import Shape
from ..planning.elementwise_source import THREADS, Loop, Varying
from ..planning.registry import Input, Launch, Operand, Output, Scratch, Source
from ..planning.types import packed

# A thread that first computes uniform values in float64 should then serve many elements: 16 blocks for each of an
# H100's 132 multiprocessors.
FEW_BLOCKS = 16 * 132
MOST_BLOCKS = 2**31 - 1

Address = Input | Output | Scratch


def plan(
    name: str, typed: Typed, shape: Shape, inputs: Sequence[tuple[Operand, Address]],
    outputs: Sequence[tuple[Operand, Address]],
) -> list[Launch]:
    """The launch that evaluates an expression over operands broadcast to `shape`; none where that is empty.

    An output may be exactly the memory of an input.
    """
    if 0 in shape:
        return []
    if _is_copy(typed) and inputs[0][0].shape == shape and (transposed := _transposed(inputs[0], outputs[0])):
        return transposed
    loop = lay_out(name, typed, shape, inputs, outputs)
    heavy = any(v.uniform and v.op not in ("input", "constant", "cast", "weak") for v in typed.values)
    blocks = min(-(-views.size(shape) // (loop.pack * THREADS)), FEW_BLOCKS if heavy else MOST_BLOCKS)
    return [Launch(loop.kernel(), f"tinyarr_{name}", (blocks, 1, 1), (THREADS, 1, 1), loop.arguments())]


def lay_out(
    name: str, typed: Typed, shape: Shape, inputs: Sequence[tuple[Operand, Address | None]],
    outputs: Sequence[tuple[Operand, Address | None]],
) -> Loop:
    """An expression over operands broadcast to `shape`, of which those without an address are held in registers."""
    used = {v.value: v for v in typed.values if v.op == "input"}
    uniform = {k: (inputs[k][1], isinstance(inputs[k][0].dtype, str)) for k, v in used.items() if v.uniform}
    varying = [_varying(f"x{k}", inputs[k], shape) for k, v in sorted(used.items()) if not v.uniform]
    results = [_varying(f"y{k}", output, shape) for k, output in enumerate(outputs)]
    axes, strides = views.merge_axes(shape, [x.strides for x in varying + results])
    for x, merged in zip(varying + results, strides):
        x.strides = merged
    farthest = [sum(abs(s) * (n - 1) for s, n in zip(x.strides, axes)) for x in varying + results]
    narrow = max([views.size(shape), *farthest]) < 2**31
    return Loop(name, typed, uniform, varying, results, shape, axes, _pack(axes, varying + results), narrow)


def copy(source: tuple[Operand, Address], target: tuple[Operand, Address]) -> list[Launch]:
    """The launch that copies elements between operands of one shape and dtype, each of any strides."""
    return plan("copy", _identity(source[0].dtype), target[0].shape, [source], [target])


def _transposed(source: tuple[Operand, Address], target: tuple[Operand, Address]) -> list[Launch]:
    """The launch for a source whose last but one axis is contiguous, as the target's last is; none for others."""
    (x, x_at), (y, y_at) = source, target
    axes, (by, to) = views.merge_axes(y.shape, [x.strides, y.strides])
    if not 2 <= len(axes) <= 3 or to[-1] != 1 or by[-2] != 1 or min(axes[-2:]) < 32:
        return []
    (M, N), batch = axes[-2:], axes[0] if len(axes) == 3 else 1
    if batch > 65535 or -(-M // 64) > 65535:
        return []
    text = Source(("types.cuh", "transpose.cu"), (("T", f"uint{8 * x.dtype.itemsize}_t"),))
    batches = (to[0], by[0]) if len(axes) == 3 else (0, 0)
    sizes = [np.int64(n) for n in (M, N, batches[0], to[-2], batches[1], by[-1])]
    return [Launch(text, "transpose", (-(-N // 64), -(-M // 64), batch), (256, 1, 1), (y_at, x_at, *sizes))]


def fill(value: bool | int | float, target: tuple[Operand, Address]) -> list[Launch]:
    """The launch that writes one value everywhere."""
    dtype = target[0].dtype
    values = (TypedStep("constant", (), dtype.compute, value, True),)
    return plan("fill", Typed(values, (0,), (dtype,)), target[0].shape, [], [target])


def cast(source: tuple[Operand, Address], target: tuple[Operand, Address]) -> list[Launch]:
    """The launch that converts elements to the target's dtype."""
    old, new = source[0].dtype, target[0].dtype
    values = [TypedStep("input", (), old, 0, False)]
    for dtype in (old.compute, new.compute):
        if values[-1].dtype is not dtype:
            values.append(TypedStep("cast", (len(values) - 1,), dtype, dtype, False))
    typed = Typed(tuple(values), (len(values) - 1,), (new,))
    return plan(f"cast_{old.name}_{new.name}", typed, target[0].shape, [source], [target])


def _is_copy(typed: Typed) -> bool:
    return len(typed.outputs) == 1 and typed.values[typed.outputs[0]].op == "input"


def _identity(dtype: Dtype) -> Typed:
    return Typed((TypedStep("input", (), dtype, 0, False),), (0,), (dtype,))


def _varying(name: str, placed: tuple[Operand, Address | None], shape: Shape) -> Varying:
    operand, address = placed
    extra = len(shape) - len(operand.shape)
    strides = [0 if n == 1 else s for n, s in zip(operand.shape, operand.strides, strict=True)]
    return Varying(name, operand.dtype, (0,) * extra + tuple(strides), address, operand.aligned, held=address is None)


def _pack(axes: Shape, operands: Sequence[Varying]) -> int:
    """Returns the number of elements that a thread takes at once: those of 16 bytes, where each operand lets it."""
    if any(x.strides[-1] not in (0, 1) or not x.aligned for x in operands):
        return 1
    pack = packed(*(x.dtype for x in operands))
    while pack > 1:
        whole = len(axes) == 1 or axes[-1] % pack == 0
        if whole and all(s % pack == 0 for x in operands if x.strides[-1] for s in x.strides[:-1]):
            return pack
        pack //= 2
    return 1
