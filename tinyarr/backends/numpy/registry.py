"""The table of CPU kernels: one record a primitive, filled by the `@kernel` decorator in the family files. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.primitive import Primitive, defined

Layouts = tuple[str, ...] | str | Callable[[Any], str] | None


@dataclass(frozen=True)
class NumpyKernel:
    """function(*inputs, *outputs, *scratch, **params); scratch(call) lists the (shape, np dtype) that it works in."""

    function: Callable
    layouts: Layouts
    scratch: Callable[[Any], Sequence[tuple[tuple[int, ...], Any]]] | None
    takes_lists: bool


KERNELS: dict[Primitive, NumpyKernel] = {}


def kernel(
    primitive: Primitive | str,
    *,
    layouts: Layouts = None,
    scratch: Callable[[Any], Sequence[tuple[tuple[int, ...], Any]]] | None = None,
    takes_lists: bool = False,
) -> Callable[[Callable], Callable]:
    """Decorator: the function is the NumPy kernel of a primitive, which is given itself or by its name.

    It receives the inputs, then the outputs, then the scratch arrays, as np.ndarrays, and the call's parameters by
    keyword. It writes every element of every output and allocates nothing that grows with the operands. With
    `takes_lists` it receives one list of inputs and one of outputs (for primitives with any number of them). `layouts`
    names the layout of each operand (eager.fit), or one for all, or how it follows from the call.
    """

    def register(function: Callable) -> Callable:
        KERNELS[defined(primitive)] = NumpyKernel(function, layouts, scratch, takes_lists)
        return function

    return register


def plan_scratch(specs: Sequence[tuple[tuple[int, ...], Any]]) -> tuple[int, list[tuple[tuple[int, ...], Any, int]]]:
    """The bytes of a block that holds arrays of the given shapes and dtypes, and each one with its aligned offset."""
    pieces, offset = [], 0
    for shape, dtype in specs:
        pieces.append((shape, dtype, offset))
        offset += -(-math.prod(shape) * np.dtype(dtype).itemsize // 128) * 128
    return offset, pieces
