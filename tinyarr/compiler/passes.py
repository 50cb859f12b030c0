"""The passes over a graph, in their order; the graph as it was traced runs too.

Two alone change a bit of a result. A -0 to which `add_rows_in_place` adds nothing stays one, where adding 0 to it would
give +0. `keep_products_wide`, where a backend has kernels for it (CUDA, by its library's epilogue), leaves out the
rounding to a half type of a product that is then converted to float32: wherever that stands in the graph, never because
of memory or timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..program import Graph
from .fuse import fuse
from .plan import plan
from .recompute import recompute
from .rewrite import add_rows_in_place, keep_products_wide
from .schedule import lift, sink
from .simplify import common_subexpressions, dead_code

SIMPLIFY = (common_subexpressions, add_rows_in_place, keep_products_wide, dead_code)
ARRANGE = (sink, fuse, lift)
PASSES = (*SIMPLIFY, *ARRANGE)


def passes_within(memory_budget: int | None) -> Sequence[Callable[[Graph], Graph]]:
    """The passes, with recomputation where the plan would take more bytes than the budget."""
    if memory_budget is None:
        return PASSES

    def taken(graph: Graph) -> int:
        for change in (dead_code, *ARRANGE):
            graph = change(graph)
        return plan(graph).arena

    def fit(graph: Graph) -> Graph:
        return recompute(graph, memory_budget, taken)

    return (*SIMPLIFY, fit, dead_code, *ARRANGE)  # after common subexpressions, which would undo it
