"""The passes over a graph, in their order. Any can be left out: the traced graph is their oracle. Floor 2.

    pass                     example                                           bits that change
    join_writes              g[:4] = a, g[4:] = b: g is concat(a, b)           none
    common_subexpressions    exp(x), exp(x): one exp                           none
    add_rows_in_place        y + take_gradient(g, i): index_add(y, g, i)       -0 in a row that i leaves out: (1)
    keep_products_wide       astype(x @ y, float32): matmul_wide(x, y)         CUDA, half types: (2)
    dead_code                results that nothing needs are not made           none
    recompute                exp(x), read late: exp(x) again                   CUDA, half types: (3); memory_budget only
    product_epilogues        gelu(x @ y + b): one call of the library          CUDA, half types: (2)
    sink, lift, overlap      nodes change places                               none
    fuse                     add, exp: one loop that rounds as two would       none

(1) The row keeps its -0, where adding the gradient's 0 would give +0; both are equal to 0.
(2) The product is not rounded to the half type before it is worked on: one rounding less, which is nearer to the exact
    result. The library does so at no cost, while rounding in between would take a pass over memory.
(3) A GELU that product_epilogues took over, made again, is that of the rounded product: the wide one was never stored.
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
