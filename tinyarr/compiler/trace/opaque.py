"""Opaque objects: what a trace can't see into, as an iterator, a file or another library's array. Floor 2.

In a trace a stand-in takes their place. As soon as anything is asked of it the trace is given up, before the
object itself was touched, and the function runs as it is.
"""

from __future__ import annotations

import operator
from typing import Any

from .executor import Trace

_OBJECTS = {
    "__class__", "__del__", "__delattr__", "__dict__", "__doc__", "__getattribute__", "__init__", "__init_subclass__",
    "__module__", "__new__", "__setattr__", "__slots__", "__subclasshook__", "__weakref__",
}  # fmt: skip
_PROTOCOLS = """__iter__ __next__ __call__ __len__ __getitem__ __setitem__ __delitem__ __contains__ __enter__ __exit__
    __aenter__ __aiter__ __await__ __bool__ __index__ __int__ __float__ __complex__ __array__ __dlpack__ __fspath__
    __length_hint__ __reversed__ __round__ __bytes__ __copy__ __deepcopy__""".split()


class RunAsItIs(BaseException):
    """Ends a trace of what can't be compiled. No Exception, so that no `except Exception` keeps it."""


class StandIn:
    """Stand-in for an opaque object; for other threads, it is that object."""

    __slots__ = ("_instead_of", "_path", "_trace")

    def __init__(self, trace: Trace, path: str, x: Any):
        for name, part in zip(StandIn.__slots__, (x, path, trace)):
            object.__setattr__(self, name, part)

    __class__ = property(lambda self: type(_object_behind(self)))

    def __getattr__(self, name: str) -> Any:
        return getattr(_object_behind(self), name)

    def __setattr__(self, name: str, x: Any) -> None:
        setattr(_object_behind(self), name, x)


def _object_behind(stand_in: StandIn) -> Any:
    """The object where it is asked for outside of the trace. Inside, ends the trace."""
    x, path, trace = (object.__getattribute__(stand_in, name) for name in StandIn.__slots__)
    if not trace.is_running:
        return x
    trace.as_it_is = f"it uses {path}, a {type(x).__qualname__}, whose state can't be seen"
    raise RunAsItIs


def _method(name: str) -> Any:
    return lambda self, *args, **kwargs: getattr(_object_behind(self), name)(*args, **kwargs)


_operators = {name for name, x in vars(operator).items() if name.startswith("__") and type(x) is type(len)}
for _name in {*dir(object), *_operators, *_PROTOCOLS} - _OBJECTS:
    setattr(StandIn, _name, _method(_name))
