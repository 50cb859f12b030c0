"""What a function reaches: the tensors, generators and Python values behind its arguments, closure, globals and self.

A compiled function is traced once for each signature, which is all that its program depends on but the elements of
tensors. The same walk finds, at each call, the tensors that the program reads and writes: by their place in it.
"""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..device import Device
from ..distributed.group import Group
from ..dtypes import Dtype
from ..errors import TraceError
from ..random import Generator
from ..tensor import Tensor
from ..views import Shape

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), Dtype, Device, slice, range, Group)
FLOATS = (float, np.float64)
_STANDARD = sys.stdlib_module_names - {"__main__"}


class Leaf(NamedTuple):
    """A tensor or generator, and how it was reached: `model.blocks[0].weight`, `x.grad`."""

    path: str
    object: Any


class TensorKind(NamedTuple):
    """What a program depends on of a tensor. place: which of the storages it lies in, and how far from the first."""

    shape: Shape
    dtype: Dtype
    device: Device
    strides: Shape
    place: tuple[int, int]
    type: type
    requires_grad: bool
    grad_dtype: Dtype
    is_leaf: bool


class Reach:
    """leaves: the tensors and generators, each once, in a fixed order. containers: what can be changed, with its path:
    lists, dicts (those of objects' attributes too), cells of closures, and (globals, name). floats: those among the
    arguments, also in lists, tuples and dicts, by path, less those `needed`. signature: all else, and what tensors are
    apart from their elements; paths: what each part of it belongs to.
    """

    def __init__(self, function: Callable, arguments: tuple, keywords: dict[str, Any], needed: Container[str] = ()):
        self.leaves: list[Leaf] = []
        self.floats: dict[str, float] = {}
        self.containers: list[tuple[str, Any]] = []
        self.paths: list[str] = []
        self._needed = needed
        self._signature: list[Any] = []
        self._seen: dict[int, int] = {}
        self._storages: dict[int, tuple[int, int]] = {}
        self._alive: list[Any] = []  # what an id stands for must not go away meanwhile
        names = {types.FunctionType: "", types.MethodType: "self"}
        self._visit(names.get(type(function), type(function).__name__), function)
        self._visit("arguments", arguments, is_argument=True)
        self._visit("keywords", keywords, is_argument=True)
        self.signature = tuple(self._signature)

    def _note(self, path: str, part: Any) -> None:
        self._signature.append(part)
        self.paths.append(path)

    def _visit(self, path: str, x: Any, is_argument: bool = False) -> None:
        kind: Any = type(x)
        if kind in FLOATS and is_argument and path not in self._needed and path not in self.floats:
            self._note(path, f"a {kind.__name__}")
            self.floats[path] = x
            return
        if is_argument and isinstance(x, np.ndarray):
            raise TraceError(f"compile: {path} is a NumPy array, which can change unseen: make it a Tensor")
        if kind in _PLAIN:
            self._note(path, (kind, repr(x) if kind in (float, complex, slice) else x))
            return
        if id(x) in self._seen:
            self._note(path, self._seen[id(x)])
            return
        self._seen[id(x)] = len(self._seen)
        self._alive.append(x)
        if isinstance(x, Tensor):
            self._tensor(path, x)
        elif isinstance(x, Generator):
            self._note(path, kind)
            self.leaves.append(Leaf(path, x))
        elif isinstance(x, list | tuple | deque):
            self._note(path, (kind, len(x)))
            if not isinstance(x, tuple):
                self.containers.append((path, x))
            is_argument &= is_rebuilt(x)
            for i, part in enumerate(x):
                self._visit(item_path(path, i), part, is_argument)
        elif isinstance(x, set):
            self._note(path, (kind, frozenset(x)))
            self.containers.append((path, x))
        elif isinstance(x, dict):
            self._dict(path, kind, x, lambda key: item_path(path, key), is_argument and is_rebuilt(x))
        elif isinstance(x, types.FunctionType):
            self._function(path, x)
        elif isinstance(x, types.MethodType):
            self._visit(path, x.__self__)
            self._visit(path, x.__func__)
        elif isinstance(x, functools.partial):
            self._note(path, kind)
            for part in (x.func, x.args, x.keywords):
                self._visit(path, part)
        elif not isinstance(x, type | types.ModuleType) and _is_entered(kind):
            wrapped = getattr(x, "__wrapped__", None)
            if isinstance(wrapped, types.FunctionType):
                self._visit(path, wrapped)
            elif hasattr(x, "__dict__"):
                self._dict(path, kind, vars(x), lambda key: f"{path}.{key}")
                self._class(path, kind)
            else:
                self._note(path, kind)
        elif isinstance(x, np.generic):
            self._note(path, (kind, repr(x)))
        else:
            self._note(path, x if isinstance(x, type | types.ModuleType) else (kind, x) if _is_value(x) else kind)

    def _tensor(self, path: str, x: Tensor) -> None:
        a = x.array
        first, start = self._storages.setdefault(id(a.storage), (len(self._storages), a.offset))
        self._alive.append(a.storage)
        place = first, a.offset - start
        gradient = x._requires_grad, x.grad_dtype, x.is_leaf
        self._note(path, TensorKind(a.shape, a.dtype, a.device, a.strides, place, type(x), *gradient))
        self.leaves.append(Leaf(path, x))
        self._visit(f"{path}.grad", x.grad)
        self._visit(f"{path}'s hooks", x._hooks)

    def _dict(
        self, path: str, kind: type, x: dict, name: Callable[[Any], str], is_argument: bool = False
    ) -> None:
        self._note(path, (kind, *(key if isinstance(key, Hashable) else id(key) for key in x)))
        self.containers.append((path, x))
        for key, part in x.items():
            self._visit(name(key), part, is_argument)

    def _function(self, path: str, f: types.FunctionType) -> None:
        """A function of the user's: what it closes over, its defaults, and the globals that its code names."""
        self._note(path or "the function", f)
        if not _is_users(f.__module__):
            return
        self._note(f"{path}'s code", f.__code__)
        prefix = f"{path}." if path else ""
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
            if _is_filled(cell):
                self.containers.append((prefix + name, cell))
                self._visit(prefix + name, cell.cell_contents)
        self._visit(f"{prefix}defaults", f.__defaults__)
        self._visit(f"{prefix}keyword defaults", f.__kwdefaults__)
        names = _names(f.__code__)
        for name in names:
            if name in f.__globals__:
                self._variable(prefix, f.__globals__, name)
                module = f.__globals__[name]
                if isinstance(module, types.ModuleType) and _is_users(module.__name__):
                    for attribute in names:
                        if attribute in vars(module):
                            self._variable(f"{prefix}{name}.", vars(module), attribute)

    def _variable(self, prefix: str, names: dict[str, Any], name: str) -> None:
        self.containers.append((prefix + name, (names, name)))
        self._visit(prefix + name, names[name])

    def _class(self, path: str, kind: type) -> None:
        """The attributes of a user's class: values that instances share, and methods, which name globals too."""
        for owner in kind.__mro__:
            if id(owner) not in self._seen and _is_users(owner.__module__):
                self._seen[id(owner)] = len(self._seen)
                for name, x in vars(owner).items():
                    x = x.fget if isinstance(x, property) else getattr(x, "__func__", x)
                    if not name.startswith("__") or isinstance(x, types.FunctionType):
                        self._visit(f"{path}.{name}", x)


def is_rebuilt(x: Any) -> bool:
    """Whether x is a list, dict, tuple or named tuple, which can be made anew of other parts."""
    return type(x) in (list, tuple, dict) or (isinstance(x, tuple) and hasattr(x, "_fields"))


def item_path(path: str, key: Any) -> str:
    return f"{path}[{key!r}]"


@functools.cache
def _is_users(module: str | None) -> bool:
    """Whether code or a class is the user's, so that what it names may change: neither installed nor Python's own."""
    if module == "__main__":  # whose file may be a tool's that runs the user's code: python -m pytest
        return True
    if (module or "").split(".")[0] in {*_STANDARD, "tinyarr"}:
        return False
    return "-packages" not in (getattr(sys.modules.get(module or ""), "__file__", None) or "")


@functools.cache
def _is_entered(kind: type) -> bool:
    """Whether the attributes of a class's instances are looked at: a user's, or one built on tinyarr's."""
    return any(c.__module__.split(".")[0] == "tinyarr" or _is_users(c.__module__) for c in kind.__mro__[:-1])


@functools.cache
def _names(code: types.CodeType) -> Sequence[str]:
    """The globals and attributes that code names, and the functions defined in it."""
    inner = [n for c in code.co_consts if isinstance(c, types.CodeType) for n in _names(c)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_value(x: Any) -> bool:
    """Whether x is equal to what has equal contents, as fractions, dates and paths are, and never changes."""
    if type(x).__hash__ in (None, object.__hash__):
        return False
    try:
        hash(x)
    except TypeError:  # a weak reference, say, to what is gone
        return False
    return True


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def difference(new: Reach, signature: tuple, paths: Sequence[str]) -> list[str]:
    """What is different in a signature, by path."""
    now = dict(zip(new.paths, new.signature))
    then = dict(zip(paths, signature))
    found = []
    for path in [*then, *(path for path in now if path not in then)]:
        a, b = then.get(path, "nothing"), now.get(path, "nothing")
        if a != b:
            found.append(f"{path}: {_shown(a, b)}, then {_shown(b, a)}")
    return found


def _shown(part: Any, other: Any) -> str:
    if isinstance(part, TensorKind):
        if not isinstance(other, TensorKind):
            return f"a tensor of shape {part.shape}"
        return ", ".join(f"{k} {v}" for k, v, w in zip(part._fields, part, other) if v != w)
    if isinstance(part, tuple) and len(part) == 2 and (part[0] in _PLAIN or isinstance(part[1], part[0])):
        return str(part[1])
    return str(part)
