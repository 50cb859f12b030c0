"""The passes over a graph, in their order. None changes a bit of a result; the graph as it was traced runs too."""

from .fuse import fuse
from .simplify import common_subexpressions, dead_code

PASSES = (common_subexpressions, dead_code, fuse)
