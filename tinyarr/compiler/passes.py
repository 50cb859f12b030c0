"""The passes over a graph, in their order. None changes a bit of a result; the graph as it was traced runs too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..program import Graph
from .fuse import fuse
from .plan import plan
from .recompute import recompute
from .rewrite import add_rows_in_place
from .simplify import common_subexpressions, dead_code

SIMPLIFY = (common_subexpressions, add_rows_in_place, dead_code)
PASSES = (*SIMPLIFY, fuse)


def passes_within(memory_budget: int | None) -> Sequence[Callable[[Graph], Graph]]:
    """The passes, with recomputation where the plan would take more bytes than the budget."""
    if memory_budget is None:
        return PASSES

    def fit(graph: Graph) -> Graph:
        return recompute(graph, memory_budget, lambda g: plan(fuse(g)).arena)

    return (*SIMPLIFY, fit, fuse)  # after common subexpressions, which would undo it
