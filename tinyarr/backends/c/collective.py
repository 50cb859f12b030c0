"""Collectives of a program: they begin and end between two sections of its C code, and last while C runs. Floor 2."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import views
from ...ops.collective import wait
from ...views import Shape
from ..numpy.collective import begin, widened
from ..numpy.registry import plan_scratch


@dataclass(frozen=True)
class CollectiveStep:
    """A collective that begins, or, of `wait`, ends.

    read, made: of the operand and the result the number of the buffer and the byte where they begin. held: where its
    scratch begins, which nothing else uses.
    """

    call: Any
    read: tuple[int, int]
    made: tuple[int, int]
    held: int

    @property
    def nbytes(self) -> int:
        """Bytes of scratch."""
        return plan_scratch(widened(self.call))[0]

    def run(self, addresses: Sequence[int], scratch: int, begun: dict[int, Callable[[], None]]) -> None:
        """Begins or ends it. addresses: of buffers. scratch: of all collectives. begun: what ends each, by ticket."""
        call, ticket = self.call, self.call.params.get("ticket")
        if call.primitive is wait:
            begun.pop(ticket)()
            return
        x = _array(addresses[self.read[0]] + self.read[1], call.in_shapes[0], call.in_dtypes[0].numpy)
        out = _array(addresses[self.made[0]] + self.made[1], call.out_shapes[0], call.out_dtypes[0].numpy)
        _, pieces = plan_scratch(widened(call))
        wide = [_array(scratch + self.held + offset, shape, dtype) for shape, dtype, offset in pieces]
        finish = begin(call.primitive, x, out, wide, call.params)
        if ticket is None:
            finish()
        else:
            begun[ticket] = finish


def _array(address: int, shape: Shape, dtype: Any) -> np.ndarray:
    nbytes = views.size(shape) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, (ctypes.c_char * nbytes).from_address(address))
