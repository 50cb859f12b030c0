"""CpuBackend: NumPy's kernels in eager mode, and programs written in C. Floor 2."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from ...program import Graph, Lowered
from ..numpy import NumpyBackend, collective, convolution, layouts_of, scan, sort
from ..numpy.registry import KERNELS
from . import compiler, draw, library

# Importing them registers kernels of NumPy's that a first reading leaves out, and C for large draws.
MORE = (collective, convolution, draw, scan, sort)


class CpuBackend(NumpyBackend):
    """Memory, kernels and programs of the device `cpu`."""

    def holds(self, call: Any) -> bool:
        """Returns whether a call has a kernel in C, or, if it has no composite, NumPy's between two sections."""
        return _in_c(call) or (call.primitive.composite is None and call.primitive in KERNELS)

    def in_layouts(self, call: Any) -> Sequence[str]:
        layouts = None if _in_c(call) else layouts_of(KERNELS[call.primitive].layouts)
        return super().in_layouts(call) if layouts is None else layouts(call)

    def out_layouts(self, call: Any) -> Sequence[str]:
        return ("any" if _in_c(call) else "dense",) * len(call.out_shapes)

    def joins_expression(self, first: Any, last: Any, stored: Sequence[int]) -> bool:
        return _in_c(last)

    def program(self, graph: Graph, lowered: Lowered) -> Any | None:
        """The calls as a C library; None, with a warning, where there is no C compiler that works.

        Raises SourceError where the compiler rejects the code.
        """
        try:
            compiler.check_openmp()
            self.pool.give_back()  # a program works in an arena of its own
            return library.Library(graph, lowered, self.pool)
        except compiler.SourceError:
            raise
        except compiler.CCompilerError as error:
            _warn_of_numpy(str(error))
            return None

    def scratch(self, graph: Graph, lowered: Lowered) -> int:
        return library.scratch_of(graph, lowered)


def _in_c(call: Any) -> bool:
    return library.is_written(call.primitive)


@functools.cache
def _warn_of_numpy(why: str) -> None:
    warnings.warn(f"compile: programs run NumPy's kernels, which is slower: {why}", stacklevel=2)
