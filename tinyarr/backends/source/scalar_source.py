"""Scalar expressions printed as statements that are C and CUDA C++ alike. Floor 2.

A typed expression becomes one statement a value, `float v3 = v1 * v2;`. Uniform values (0-d operands, Python scalars
and what depends on them alone) come before the loop, the others inside. `scalar.h` defines the operations that C
lacks; arithmetic relies on the flags that each backend compiles with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ... import dtypes
from ...dtypes import Dtype
from ...ops.typing import Typed, TypedStep
from ...views import Shape

HEADER = Path(__file__).with_name("scalar.h")

TYPES = {d: f"{d.name}_t" for d in dtypes.ALL if d.kind in ("signed", "unsigned")}
TYPES |= {dtypes.float32: "float", dtypes.float64: "double", dtypes.float16: "uint16_t", dtypes.bfloat16: "uint16_t"}
TYPES |= {dtypes.bool: "uint8_t", dtypes.float8_e4m3fn: "uint8_t", dtypes.float8_e5m2: "uint8_t"}

_ALL_DTYPES = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "divide": "{} / {}",
    "negative": "-{}",
    "equal": "{} == {}",
    "not_equal": "{} != {}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
    "greater": "{} > {}",
    "greater_equal": "{} >= {}",
    "isnan": "isnan({})",
    "isinf": "!!isinf({})",
    "isfinite": "isfinite({})",
    "bitwise_and": "{} & {}",
    "bitwise_or": "{} | {}",
    "bitwise_xor": "{} ^ {}",
    "where": "{} ? {} : {}",
}
_BOOL = {"bitwise_invert": "!{}"}
_INTEGERS = {
    "abs": "{0} < 0 ? -{0} : {0}",
    "sign": "({0} > 0) - ({0} < 0)",
    "maximum": "{0} > {1} ? {0} : {1}",
    "minimum": "{0} < {1} ? {0} : {1}",
    "bitwise_invert": "~{}",
    "floor": "{}",
    "ceil": "{}",
    "trunc": "{}",
    "round": "{}",
}
_LIBM = {
    name: name
    for name in (
        "sqrt floor ceil trunc expm1 log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh asinh acosh "
        "atanh hypot copysign nextafter"
    ).split()
} | {"abs": "fabs", "round": "rint"}


def identifier(name: str) -> str:
    """The name of an operation as a part of names in C: a lambda's, or one with letters of any script, has others."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def constant(value: bool | int | float, dtype: Dtype) -> str:
    """A C literal for exactly the value that a Python scalar has in `dtype`."""
    if dtype.is_float:
        with np.errstate(over="ignore"):  # what is too large is infinite
            x = dtype.numpy.type(value)
        if not math.isfinite(x):
            literal = "NAN" if math.isnan(x) else "INFINITY" if x > 0 else "-INFINITY"
        else:
            # NumPy prints the shortest decimal that reads back as the same number.
            literal = str(x) + ("f" if dtype is dtypes.float32 else "")
    elif dtype.itemsize < 8:
        literal = str(int(value)) + ("u" if dtype is dtypes.uint32 else "")
    elif value == -(2**63):
        literal = "INT64_MIN"  # C has no negative literals, and 2**63 does not fit
    else:
        literal = f"{int(value)}{'ull' if dtype is dtypes.uint64 else 'll'}"
    return f"({literal})" if literal.startswith("-") else literal


def cast(x: str, source: Dtype, target: Dtype) -> str:
    """The C expression `x` of one dtype converted to another."""
    if source is target:
        return x
    if source.compute is not source:
        return cast(f"float32_from_{source.name}({x})", dtypes.float32, target)
    if target is dtypes.bool:
        return f"{x} != 0"
    if target.compute is not target and not source.is_float:
        return cast(f"(float){x}", dtypes.float32, target)
    if target.compute is not target or (source.is_float and not target.is_float):
        return f"{target.name}_from_{source.name}({x})"
    return f"({TYPES[target]}){x}"


def _operation(value: TypedStep, arguments: list[str], dtype: Dtype) -> str:
    """The C expression of an operation on arguments of `dtype`."""
    op = value.op
    if op == "cast":
        return cast(arguments[0], dtype, value.dtype)
    if op == "bitcast":
        return f"BITCAST({TYPES[dtype]}, {TYPES[value.dtype]}, {arguments[0]})"
    special = {} if dtype.is_float else _INTEGERS | _BOOL if dtype is dtypes.bool else _INTEGERS
    template = _ALL_DTYPES.get(op) or special.get(op)
    if template:
        return template.format(*arguments)
    if dtype.is_float and op in _LIBM:
        return f"{_LIBM[op]}{'f' if dtype is dtypes.float32 else ''}({', '.join(arguments)})"
    return f"{op}_{dtype.name}({', '.join(arguments)})"


def named(number: int, value: TypedStep) -> str:
    """Returns the name by which `statements` refers to a value: a constant is written out."""
    return constant(value.value, value.dtype) if value.op == "constant" else f"v{number}"


def statement(typed: Typed, number: int, inputs: Sequence[str], index: Sequence[str], position: str) -> str:
    """The declaration of a value that is no constant, as `statements` makes them."""
    v = typed.values[number]
    arguments = [named(a, typed.values[a]) for a in v.args]
    if v.op == "input":
        result = inputs[v.value]
    elif v.op == "index":
        result = index[v.value]
    elif v.op == "random_bits":
        result = f"random_bits({', '.join(arguments)}, {v.value}, {position})"
    else:
        result = _operation(v, arguments, typed.values[v.args[-1]].dtype)
    return f"{TYPES[v.dtype]} v{number} = {result};"


def stored(typed: Typed, output: int) -> str:
    """The C value of an output, in the dtype in which it is stored."""
    n = typed.outputs[output]
    return cast(named(n, typed.values[n]), typed.values[n].dtype, typed.dtypes[output])


def statements(
    typed: Typed, inputs: Sequence[str], outputs: Sequence[str], index: Sequence[str], position: str
) -> tuple[list[str], list[str]]:
    """The statements before the loop and those inside it, stores included.

    inputs, outputs: C lvalues of the operands' elements, in their stored dtypes. index: for each axis the C variable
    of the element's position along it. position: the element's row-major number, for random bits.
    """
    hoisted: list[str] = []
    inside: list[str] = []
    for number, v in enumerate(typed.values):
        if v.op != "constant":
            (hoisted if v.uniform else inside).append(statement(typed, number, inputs, index, position))
    inside += [f"{target} = {stored(typed, i)};" for i, target in enumerate(outputs)]
    return hoisted, inside


def element(strides: Shape | None, axes: Sequence[str]) -> str:
    """Returns the offset of an element, as a C expression of the positions along the axes."""
    terms = [i if s == 1 else f"{s} * {i}" for s, i in zip(strides or (), axes, strict=False) if s]
    return " + ".join(terms) or "0"


def unravel(number: str, shape: Shape, strides: Shape) -> str:
    """The offset of the element with a row-major number, as a C expression."""
    terms = []
    inner = 1
    for axis in reversed(range(len(shape))):
        if strides[axis] and shape[axis] > 1:
            i = number if inner == 1 else f"{number} / {inner}"
            if axis:
                i = f"{i} % {shape[axis]}"
            if strides[axis] != 1:
                i = f"({i}) * {strides[axis]}" if " " in i else f"{i} * {strides[axis]}"
            terms.append(i)
        inner *= shape[axis]
    return " + ".join(reversed(terms)) or "0"
