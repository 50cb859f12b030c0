"""Assumptions: what a walk may take for granted of an object, by its class or module. Floor 2.

A value that can't change stands for itself. An object whose class is written in Python is its attributes and slots. The
instances of a class written in C may hold what nobody sees.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import functools
import re
import sys
import threading
import types
from collections import OrderedDict, deque
from typing import Any

import numpy as np

from ...device import Device
from ...dtypes import Dtype
from ...groups import Group
from ...tensor import Tensor
from .holders import slots_of

_CONSTANT = (bool, int, str, bytes, type(None), type(...), Dtype, Device, Group, range)
PLAIN = frozenset((*_CONSTANT, float, complex, slice))
NUMBERS_AND_TEXTS = (int, float, complex, str, bytes)
BUFFERS = (np.ndarray, bytearray, array.array)
UNCHANGING = (
    types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.CodeType, enum.Enum,
    re.Pattern, re.Match, np.generic, np.dtype, np.ufunc, type(len), type(NotImplemented),
)  # fmt: skip
STREAMS = {("sys", name) for name in ("stdin", "stdout", "stderr", "modules")}  # which a trace refuses, and imports
LOCKS = ("lock", "RLock")  # of module _thread; who holds one changes no number
_LIBRARIES = frozenset((*(sys.stdlib_module_names - {"__main__"}), "tinyarr", "numpy", "ml_dtypes"))


@functools.cache
def is_library(module: str | None) -> bool:
    """Returns whether a module is Python's own, tinyarr or NumPy, whose functions and classes don't change."""
    return (module or "").split(".")[0] in _LIBRARIES


@functools.cache
def is_users(module: str | None) -> bool:
    """Returns whether a module is the user's, so that names in it may change: no library, and not installed."""
    if module == "__main__":  # whose file may be a tool's that runs the user's code: python -m pytest
        return True
    return not is_library(module) and "-packages" not in (
        getattr(sys.modules.get(module or ""), "__file__", None) or ""
    )


@functools.cache
def is_pythons(module: str | None) -> bool:
    """Returns whether a module is one of Python's library."""
    return module != "__main__" and (module or "").split(".")[0] in sys.stdlib_module_names


def is_open(x: types.ModuleType | type) -> bool:
    """Returns whether attributes of a class or module may change: those of Python's modules, of no other library."""
    if isinstance(x, types.ModuleType):
        return is_pythons(x.__name__) or not is_library(x.__name__)
    return not is_library(x.__module__)


_KNOWN = (
    object, list, tuple, dict, set, frozenset, deque, OrderedDict, int, float, str, bytes, BaseException,
    types.SimpleNamespace, functools.partial, threading.local, Tensor, enum.Enum,
)  # fmt: skip


@functools.cache
def hides_state(kind: type) -> bool:
    """Returns whether instances hold more than attributes: a base is written in C and none of those known.

    A class written in Python adds slots, a `__dict__` and a list of weak references to its base, and no other bytes.
    """
    if issubclass(kind, BaseException) or kind in _KNOWN:
        return False
    for owner in kind.__mro__:
        if owner in _KNOWN or owner.__base__ is None:
            continue
        if not owner.__flags__ & HEAP_TYPE:
            return True
        members = [name for name, x in vars(owner).items() if type(x) is types.MemberDescriptorType]
        words = len(members) + ("__weakref__" in vars(owner)) + ("__dict__" in vars(owner))
        if owner.__basicsize__ - owner.__base__.__basicsize__ > words * np.dtype(np.intp).itemsize:
            return True
    return False


HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by a C extension that does as much


@functools.cache
def slot_count(kind: type) -> int:
    return len(slots_of(kind))


def is_value(x: Any) -> bool:
    """Returns whether x is immutable and compared by contents: fractions, dates and paths of Python's library."""
    kind = type(x)
    if kind.__hash__ in (None, object.__hash__) or dataclasses.is_dataclass(kind):
        return False
    if kind.__module__.split(".")[0] not in sys.stdlib_module_names or kind.__module__ == "__main__":
        return False
    try:
        hash(x)
    except TypeError:
        return False
    return True


def is_plain(x: Any) -> bool:
    """Returns whether x is a value that never changes, a buffer, or containers of nothing else."""
    if isinstance(x, dict):
        return all(map(is_plain, (*x, *x.values())))
    if isinstance(x, list | tuple | set | frozenset | deque):
        return all(map(is_plain, x))
    return type(x) in PLAIN or isinstance(x, BUFFERS) or is_value(x)
