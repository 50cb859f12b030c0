"""CudaPlanner: how programs are planned and lowered for a GPU, which needn't be there. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....program import Graph, Lowered
from ...base import ProgramRules
from ..program.lowering import Binding
from . import plans


class CudaPlanner(ProgramRules):
    """The questions that a compiler asks of the CUDA backend, answered without CuPy."""

    stops = False
    block = 420 << 20  # logits of 8192 tokens of GPT-2: with fewer, adding up the weight's gradient costs too much
    even = 8  # products of odd sizes are several times slower

    def kernel(self, call: Any) -> Any:
        return plans.planner(call)

    def holds(self, call: Any) -> bool:
        return plans.planner(call) is not None

    def in_layouts(self, call: Any) -> Sequence[str]:
        layouts = plans.layouts(call)
        return super().in_layouts(call) if layouts is None else layouts(call)

    def out_layouts(self, call: Any) -> Sequence[str]:
        return plans.out_layouts(call)

    def joins_expression(self, first: Any, last: Any, stored: Sequence[int]) -> bool:
        return plans.takes_expression(last) is not None

    def scratch(self, graph: Graph, lowered: Lowered) -> int:
        return Binding(lowered).scratch
