"""From a Python function to a program: trace, build the graph, run it."""

from .function import Compiled, compile

__all__ = ["Compiled", "compile"]
