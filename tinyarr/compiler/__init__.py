"""From a Python function to a program: trace, build the graph, plan its memory, run it."""

from .function import Compiled, compile
from .interpret import Interpreter
from .passes import PASSES

__all__ = ["PASSES", "Compiled", "Interpreter", "compile"]
