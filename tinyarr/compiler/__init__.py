"""Compiler: from a Python function to a program, in the order in which a first call goes through it. Floor 2.

    capture/    the state that a function reaches, and whether the next call's is like it
        code_names     names that the bytecode of a function reads and writes
        holders        what can be changed and holds Python values: a list, an object's attributes, a closure's variable
        assumptions    what may be taken for granted of an object by its class
        captured       parts by path, and how two calls are compared
        walk           finds them, from the function, or from a given state
        constants      with a given state, what the code that ran reads beside it
        recent         compares the last walk's objects by identity, which takes a 70th of a walk: later calls stop here
    trace/      one run of the function on tensors without elements
        symbolic_numbers, opaque    stand-ins for numbers that each call brings, and for what can't be seen into
        observed       the code that runs, and whether it asks what differs from call to call
        templates, side_effects, outputs    what is returned, changed and printed, to be made anew at each call
        executor, traced    the calls noted, and all of the above in order
        differentiate, pullback, traced_tape    backward of a call that is itself differentiated
        graph          the graph of the calls noted
        calls          later: a call's tensors in the places of a program's inputs
    passes/     rewrites of the graph, each of which can be left out; order.py lists them
    memory/     layouts, aliases, lifetimes, and offsets in one arena; report.py prints them
    lower       steps become kernel calls, which C prints, CUDA binds, and interpret runs with NumPy
    compiled    signatures, programs, calls

docs/compiler.md follows one training step through all of it.
"""

from .compiled import Compiled, compile
from .interpret import Interpreter
from .passes.order import PASSES

__all__ = ["PASSES", "Compiled", "Interpreter", "compile"]
