"""Scalar expressions as C functions: the statements of scalar_source.py in loops over fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence

from ... import views
from ...ops.typing import Typed
from ...views import Shape
from ..scalar_source import TYPES, element, statements


def function(
    name: str, typed: Typed, shape: Shape, in_strides: Sequence[Shape | None], out_strides: Sequence[Shape]
) -> str:
    """A C function `void name(void *const *operands)` that evaluates an expression over operands of fixed shape.

    `operands` points to the first element of each input, then of each output. in_strides: for each input its strides
    in elements, broadcast to `shape`; None for 0-d operands and Python scalars, which are passed as int64, float64 or
    bool. An output may be exactly the memory of an input.
    """
    contiguous = views.contiguous_strides(shape)
    is_flat = all(s in (None, contiguous) for s in (*in_strides, *out_strides))
    if is_flat and not any(v.op == "index" for v in typed.values):
        size = views.size(shape)
        shape, contiguous = (size,), (1,)
        in_strides = [None if s is None else (1,) for s in in_strides]
        out_strides = [(1,)] * len(out_strides)
    axes = [f"i{axis}" for axis in range(len(shape))]
    stored = {v.value: v.dtype for v in typed.values if v.op == "input"}
    inputs = [f"x{k}[{element(s, axes)}]" for k, s in enumerate(in_strides)]
    outputs = [f"y{k}[{element(s, axes)}]" for k, s in enumerate(out_strides)]
    hoisted, inside = statements(typed, inputs, outputs, axes, element(contiguous, axes))
    lines = [f"void {name}(void *const *operands)", "{"]
    for k in sorted(stored):
        lines.append(f"    const {TYPES[stored[k]]} *x{k} = operands[{k}];")
    for k, dtype in enumerate(typed.dtypes):
        lines.append(f"    {TYPES[dtype]} *y{k} = operands[{len(in_strides) + k}];")
    lines += ["    " + line for line in hoisted]
    indent = "    "
    for axis, (i, n) in enumerate(zip(axes, shape, strict=True)):
        if axis == len(shape) - 1:
            # No iteration reads what another one writes.
            lines.append("#pragma omp simd")
        lines.append(f"{indent}for (int64_t {i} = 0; {i} < {n}; {i}++) {{")
        indent += "    "
    lines += [indent + line for line in inside]
    for _ in shape:
        indent = indent[4:]
        lines.append(indent + "}")
    return "\n".join([*lines, "}", ""])
