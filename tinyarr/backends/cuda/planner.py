"""CudaPlanner: how programs are planned for a GPU, which needn't be there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...program import Graph
from ...program import Plan as ProgramPlan
from . import planning
from .joining import join
from .lowering import Lowering


class CudaPlanner:
    """The questions that a compiler asks of the CUDA backend, answered without CuPy."""

    joins = True
    stops = False
    block = 420 << 20  # logits of 8192 tokens of GPT-2: with fewer, adding up the weight's gradient costs too much
    even = 8  # products of odd sizes are several times slower

    def kernel(self, call: Any) -> Any:
        return planning.planner(call)

    def holds(self, call: Any) -> bool:
        return planning.planner(call) is not None

    def out_layouts(self, call: Any) -> Sequence[str]:
        return planning.out_layouts(call)

    def scratch(self, graph: Graph, plan: ProgramPlan) -> int:
        return join(Lowering(graph, plan), plan).scratch
