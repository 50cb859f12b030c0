"""From a Python function to a program: trace, build the graph, plan its memory, run it.

A call goes through these rooms, of which each imports only those before it, as far as its state goes:

    code_names     names that the bytecode of a function reads and writes
    holders        what holds Python values and can be changed: a list, an object's attributes, a closure's variable
    assumptions    what may be taken for granted of an object by its class
    capture        what a walk found, by path, and how two calls are compared
    walk           finds it, from the function, or from a given state
    symbolic_numbers, opaque    stand in a trace for numbers that each call brings, and for what can't be seen into
    recent         a quick look whether all is as at the last call: then there is no walk, which takes 70 times as long
    observed       watches what code runs in a trace, and whether it asks what differs from call to call
    constants      with a given state, what the code that ran reads beside it
    templates      what the function returns or keeps, to be made anew at each call
    side_effects   what it changes, put back after the trace and done again at each call
    output         what it prints, logs and warns of
    traced         one trace: all of these in order
    function       signatures, programs, calls
"""

from .compiled import Compiled, compile
from .interpret import Interpreter
from .passes.order import PASSES

__all__ = ["PASSES", "Compiled", "Interpreter", "compile"]
