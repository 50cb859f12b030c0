"""The passes over a graph, in their order; the graph as it was traced runs too.

Three alone change a bit of a result. A -0 to which `add_rows_in_place` adds nothing stays one, where adding 0 to it
would give +0. Where a backend's library works on a product before it stores it (CUDA), `keep_products_wide` and
`product_epilogues` leave out the rounding to a half type of what is then worked on, wherever that stands in the graph;
what recomputation makes again of such a product, a GELU, is of its rounded form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...program import Graph
from ..memory.plan import arena
from .epilogue import product_epilogues
from .fuse import fuse
from .recompute import recompute
from .rewrite import add_rows_in_place, keep_products_wide
from .schedule import lift, overlap, sink
from .simplify import common_subexpressions, dead_code, join_writes

SIMPLIFY = (join_writes, common_subexpressions, add_rows_in_place, keep_products_wide, dead_code)
ARRANGE = (product_epilogues, sink, fuse, lift, overlap)
PASSES = (*SIMPLIFY, *ARRANGE)


def passes_within(memory_budget: int | None) -> Sequence[Callable[[Graph], Graph]]:
    """Returns the passes, with recomputation where the plan would take more bytes than the budget."""
    if memory_budget is None:
        return PASSES

    def fit(graph: Graph) -> Graph:
        arranged: dict[int, tuple[Graph, Graph]] = {}  # by the former's id; what is chosen needs no second time

        def taken(changed: Graph) -> int:
            found = changed
            for change in (dead_code, *ARRANGE):
                found = change(found)
            arranged[id(changed)] = changed, found
            return arena(found)

        _, found = arranged[id(recompute(graph, memory_budget, taken))]
        return found

    return (*SIMPLIFY, fit)  # after common subexpressions, which would undo it
