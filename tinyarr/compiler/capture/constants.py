"""Constants of a function with a given state: all that its code reads beside the state and the arguments. Floor 2.

A name stands for what it held when the function was first traced. So that this is never wrong, what it held must be
something that can't change itself. Only the name may come to hold something else, which calls don't look at and the
next trace refuses.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import weakref
from collections.abc import Container, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np

from ...errors import TraceError
from .assumptions import LOCKS, PLAIN, UNCHANGING, is_library, is_open, is_users, is_value
from .captured import Capture, Part, exactly
from .code_names import names_of

_EMPTY = types.CellType()


def constants_of(capture: Capture, function: Any, ran: Mapping[types.CodeType, dict[str, Any]]) -> dict[Any, Part]:
    """Returns what code that ran names beside the state and the arguments, by place and name.

    ran: that code, and its globals. Raises TraceError for what may change.
    """
    found: dict[Any, Part] = {}
    for place, name, x in _named(capture, function, ran) if capture.again is not capture else ():
        if not _is_constant(x, capture.again.paths):
            raise TraceError(
                f"compile: {name} is read, of type {type(x).__qualname__}, which may change and is neither in state "
                "nor an argument: put it in state, or pass it"
            )
        found[place, name] = exactly(x)
    return found


def _named(
    capture: Capture, function: Any, ran: Mapping[types.CodeType, dict[str, Any]]
) -> Iterator[tuple[Any, str, Any]]:
    """Variables of closures and modules, attributes of modules and classes, and defaults of parameters."""
    if not isinstance(function, types.FunctionType):
        yield None, "self", function
    for f in capture.objects.values():
        if isinstance(f, types.FunctionType) and f.__code__ in ran:
            for variable, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
                if cell != _EMPTY:
                    yield f, variable, cell.cell_contents
            for parts in (f.__defaults__ or (), (f.__kwdefaults__ or {}).values()):
                yield from ((f, f"default {i} of {f.__qualname__}", x) for i, x in enumerate(parts))
    for code, variables in ran.items():
        if not is_users(variables.get("__name__", "")):
            continue
        for chain in names_of(code).chains:
            if chain.name in variables:
                path, x = chain.name, variables[chain.name]
                for attribute in chain.attributes:
                    if not (isinstance(x, types.ModuleType | type) and is_open(x)):
                        break
                    path, x = f"{path}.{attribute}", inspect.getattr_static(x, attribute, None)
                yield variables.get("__name__"), path, x


def _is_constant(x: Any, state: Container[int]) -> bool:
    """Returns whether x is in the state, by its id, or can't change itself, nor anything in it."""
    kind: Any = type(x)
    if id(x) in state or kind in PLAIN or isinstance(x, types.ModuleType | type | functools._lru_cache_wrapper):
        return True
    if isinstance(x, weakref.ref | ContextVar):
        return False
    if isinstance(x, UNCHANGING):
        return not isinstance(x, np.void)  # a view of an array's elements
    if isinstance(x, tuple | frozenset):
        parts: Any = x
    elif isinstance(x, types.FunctionType):
        parts = vars(x).values()
    elif isinstance(x, types.MethodType):
        parts = x.__self__, x.__func__
    elif isinstance(x, functools.partial):
        parts = x.func, *x.args, *x.keywords.values()
    elif isinstance(x, property | staticmethod | classmethod):
        parts = ()
    elif is_library(kind.__module__) and hasattr(kind, "captured"):
        parts = [vars(x)[name] for name in kind.captured]
    elif dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen:  # noqa: B009
        parts = [getattr(x, field.name) for field in dataclasses.fields(kind)]
    else:
        return is_value(x) or (kind.__module__ == "_thread" and kind.__name__ in LOCKS)
    return all(_is_constant(part, state) for part in parts)
