"""Captures what a function may depend on: tensors, generators and Python values, each by the path that leads to it.

A compiled function is traced once for each signature. The walk starts at the function's arguments and at the function
itself, and goes through closures, globals, `self`, classes, containers and attributes. It assumes of an object what its
kind promises, and nothing else:

- a value that can't change (a number, a string, a dtype, a date) is a part of the signature;
- a container, and an object whose class is written in Python, is the sum of its parts, which are walked;
- a function is its code, its closure, its defaults and the globals that its code names;
- of a class or module are looked at the attributes that code names;
- anything else is *opaque*: its state can't be seen, as that of an iterator or of a file. It raises once it is used.

Every part has the names that lead to it (of globals, attributes, variables). A part is *used* by a trace if code that ran names
all of them. What is not used belongs to no program.
"""

from __future__ import annotations

import array
import dataclasses
import enum
import functools
import logging
import re
import sys
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from ..array import Array
from ..device import Device
from ..distributed.group import Group
from ..dtypes import Dtype
from ..errors import TraceError
from ..random import Generator, default_generator
from ..tensor import Tensor
from ..views import Shape
from .code_names import names_of, with_inner
from .holders import Cell, ClassAttributes, Elements, Entries, Holder, Items, Members, Slots, Variable, bytes_of, slots_of

Part = Any  # what is compared of two calls
GRADIENT = "'s gradient"
MANY = 64  # more plain values in a list are one part of the signature, so that a long list costs no path for each

_CONSTANT = (bool, int, str, bytes, type(None), type(...), Dtype, Device, Group, range)
_PLAIN = frozenset((*_CONSTANT, float, complex, slice))
_BUFFERS = (np.ndarray, bytearray, array.array)
_UNCHANGING = (
    types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.CodeType, enum.Enum,
    re.Pattern, re.Match, np.generic, np.dtype, np.ufunc, type(len), type(NotImplemented),
)  # fmt: skip
_LOCKS = ("lock", "RLock")  # of module _thread; who holds one changes no number
_LIBRARIES = frozenset((*(sys.stdlib_module_names - {"__main__"}), "tinyarr", "numpy", "ml_dtypes"))


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
    place: tuple[str, int]


class GradientKind(NamedTuple):
    """What a program depends on of a tensor's part in gradients."""

    type: type
    requires_grad: bool
    grad_dtype: Dtype
    is_leaf: bool
    has_no_grad: bool
    has_no_hooks: bool


class Keys(tuple):
    """The names of an object's attributes, of which those count that code names."""

    __slots__ = ()


class Task(NamedTuple):
    """An object to visit. names: what code must name to come here. slot: the holder and the key under which it is."""

    path: str
    object: Any
    names: tuple[str, ...]
    is_argument: bool = False
    slot: tuple[Holder, Any] | None = None


class Capture:
    """One walk.

    objects: by path, each of them once. paths: the same by id. tensors: among them. holders: what can be changed, by path.
    parts: what is compared, by path; signature: the same to look a program up by. names: of each part's path what code
    must name to come there. numbers: Python numbers that are inputs instead, by path, with the holder and key where each is
    (None among the arguments). opaque: by path what can't be seen into.
    """

    def __init__(
        self,
        function: Callable,
        arguments: tuple,
        keywords: dict[str, Any],
        varying: Container[str] = (),
        needed: Container[str] = (),
        ran: Container[types.CodeType] = (),
    ):
        """varying: paths of numbers outside of the arguments that are to be inputs. needed: of floats that are not.

        ran: code of installed packages that ran, and whose globals are looked at like those of the user's.
        """
        self.objects: dict[str, Any] = {}
        self.paths: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.generators: dict[str, Generator] = {}
        self.holders: dict[str, Holder] = {}
        self.parts: dict[str, Part] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.numbers: dict[str, Any] = {}
        self.opaque: dict[str, str] = {}
        self.slots: dict[str, tuple[Holder, Any] | None] = {}
        self._varying, self._needed, self._ran = varying, needed, ran
        self._held: set[Any] = set()  # the identities of the holders
        self._storages: dict[int, tuple[str, int]] = {}
        self._attributes: dict[str, None] = {}  # that any code met so far names
        self._open: list[tuple[str, Any, tuple[str, ...], set[str]]] = []  # classes and modules, and what was looked at
        self._stack: list[Task] = []
        name = "" if isinstance(function, types.FunctionType) else "self"
        if not isinstance(function, types.FunctionType | types.MethodType):
            name = type(function).__name__
        self._push([Task(name, function, ()), *_arguments(function, arguments, keywords)])
        while self._stack or self._look_further():
            self._visit(self._stack.pop())
        default = default_generator()
        self._note("the default generator", self.paths.get(id(default), "another"), ())
        self.signature = tuple(self.parts), tuple(self.parts.values())

    def used(self, ran: Container[str] | None, looked_at: Container[str]) -> dict[str, Part]:
        """Returns the parts to which code that names `ran` can come; with None, all.

        looked_at: the paths of the tensors whose shapes, dtypes or elements count.
        """
        verdicts: dict[tuple[str, ...], bool] = {}
        found = {}
        for path, part in self.parts.items():
            names = self.names[path]
            if names not in verdicts:
                verdicts[names] = ran is None or all(name in ran for name in names)
            if verdicts[names] and (type(part) is not TensorKind or path in looked_at):
                is_narrowed = type(part) is Keys and ran is not None
                found[path] = Keys(key for key in part if key in ran) if is_narrowed else part
        return found

    def _note(self, path: str, part: Part, names: tuple[str, ...]) -> None:
        self.parts[path] = part
        self.names[path] = names

    def _push(self, tasks: list[Task]) -> None:
        self._stack += reversed(tasks)

    def _visit(self, task: Task) -> None:
        path, x, names, is_argument, slot = task
        kind: Any = type(x)
        while path in self.parts:  # keys of a dict that print alike
            path += "'"
        if kind in _PLAIN or kind is np.float64:
            is_input = is_argument and kind in (float, np.float64) and path not in self._needed
            if is_input or (path in self._varying and kind in (int, float)):
                self._note(path, f"a {kind.__name__}", names)
                self.numbers[path], self.slots[path] = x, slot
            else:
                self._note(path, exactly(x), names)
            return
        if id(x) in self.paths:
            self._note(path, Same(self.paths[id(x)]), names)
            return
        self.paths[id(x)] = path
        self.objects[path] = x
        task = task._replace(path=path)
        if isinstance(x, Tensor):
            self._tensor(task)
        elif isinstance(x, Generator):
            self.generators[path] = x
            self._note(path, kind, names)
        elif isinstance(x, list | tuple | deque):
            self._sequence(task)
        elif isinstance(x, set | frozenset):
            self._set(task)
        elif isinstance(x, dict):
            self._note(path, (kind, tuple(map(exactly, x))), names)
            self._push(self._entries(task, x, lambda key: item_path(path, key), named=False) + self._fields(task))
        elif isinstance(x, types.FunctionType):
            self._function(task)
        elif isinstance(x, types.MethodType):
            self._note(path, kind, names)
            self._push([Task(f"{path}.__self__", x.__self__, names), Task(f"{path}.__func__", x.__func__, names)])
        elif isinstance(x, functools.partial):
            self._note(path, kind, names)
            held = {"func": x.func, "args": x.args, "keywords": x.keywords}
            self._push([Task(f"{path}.{name}", part, names) for name, part in held.items()] + self._fields(task))
        elif isinstance(x, types.CellType | property | staticmethod | classmethod):
            self._note(path, kind, names)
            found = [getattr(x, name, None) for name in ("fget", "fset", "__func__")]
            self._push([Task(f"{path}.{i}", part, names) for i, part in enumerate(found) if part is not None])
        elif isinstance(x, type | types.ModuleType):
            self._note(path, x, names)
            self._open.append((path, x, names, set()))
        elif isinstance(x, weakref.ref):
            self._note(path, kind, names)
            self._push([Task(f"{path}()", x(), names)])
        elif isinstance(x, _BUFFERS) and getattr(x, "dtype", None) != object:
            self._buffer(task)
        elif isinstance(x, _UNCHANGING) or (kind.__module__ == "_thread" and kind.__name__ in _LOCKS):
            self._note(path, exactly(x), names)
        elif isinstance(x, functools._lru_cache_wrapper):
            self._note(path, kind, names)
            self._push([Task(f"{path}.__wrapped__", x.__wrapped__, names)])
        elif isinstance(x, ContextVar):
            self._note(path, kind, names)
            self._push([Task(f"{path}.get()", x.get(None), names)])
        elif isinstance(x, logging.Logger):
            self._note(path, (Identical(x), x.getEffectiveLevel()), names)
        elif _is_value(x):
            self._note(path, exactly(x), names)
        else:
            self._object(task)

    def _tensor(self, task: Task) -> None:
        path, x, names = task.path, task.object, task.names
        self.tensors[path] = x
        a: Array = x.array
        first, start = self._storages.setdefault(id(a.storage), (path, a.offset))
        self._note(path, TensorKind(a.shape, a.dtype, a.device, a.strides, (first, a.offset - start)), names)
        kept = x.grad is None, x._hooks is None
        self._note(path + GRADIENT, GradientKind(type(x), x._requires_grad, x.grad_dtype, x.is_leaf, *kept), names)
        if x.grad is not None:
            self._push([Task(f"{path}.grad", x.grad, names)])
        if x._hooks is not None:
            self._push([Task(f"{path}'s hooks", x._hooks, names)])

    def _sequence(self, task: Task) -> None:
        path, x, names = task.path, task.object, task.names
        kind: Any = type(x)
        holder = None
        if not isinstance(x, tuple):
            holder = self._hold(path, Items(x))
        whole = (kind, len(x), getattr(x, "maxlen", None))
        if len(x) > MANY and _PLAIN.issuperset(map(type, x)):
            self._note(path, (*whole, _all_exactly(x)), names)
            self._push(self._fields(task))
            return
        self._note(path, whole, names)
        is_argument = task.is_argument and is_rebuilt(x)
        parts = [
            Task(item_path(path, i), part, names, is_argument, None if holder is None else (holder, i))
            for i, part in enumerate(x)
        ]
        self._push(parts + self._fields(task))

    def _set(self, task: Task) -> None:
        path, x, names = task.path, task.object, task.names
        if isinstance(x, set):
            self._hold(path, Members(x))
        if all(type(part) in _PLAIN or type(part) is tuple or _is_value(part) for part in x):
            self._note(path, (type(x), frozenset(map(exactly, x))), names)
            self._push(self._fields(task))
            return
        self._note(path, (type(x), len(x)), names)
        self._push([Task(f"{path}{{{i}}}", part, names) for i, part in enumerate(x)] + self._fields(task))

    def _buffer(self, task: Task) -> None:
        x = task.object
        if task.is_argument and isinstance(x, np.ndarray):
            raise TraceError(f"compile: {task.path} is a NumPy array, which can change unseen: make it a Tensor")
        self._hold(task.path, Elements(x))
        like = (x.dtype, x.shape) if isinstance(x, np.ndarray) else getattr(x, "typecode", None)
        self._note(task.path, (type(x), like, bytes_of(x)), task.names)

    def _object(self, task: Task) -> None:
        """An object of a class that none of the above knows: its attributes, if those are all that it is."""
        path, x, names = task.path, task.object, task.names
        kind: Any = type(x)
        captured = getattr(kind, "captured", None) if _is_library(kind.__module__) else None
        if captured is not None:  # tinyarr's own, whose other attributes are caches
            self._note(path, Identical(x), names)
            self._push([Task(f"{path}.{name}", vars(x)[name], names) for name in captured])
            return
        if _hides_state(kind) and not hasattr(kind, "__get__"):  # a descriptor or function of an extension has none
            self.opaque[path], self.slots[path] = kind.__qualname__, task.slot
            self._note(path, kind, names)
            return
        self._note(path, kind, names)
        self._push([*self._fields(task), *self._class(path, kind, names)])

    def _fields(self, task: Task) -> list[Task]:
        """The attributes of an object, in its `__dict__` and in its slots."""
        x, path = task.object, task.path
        found = []
        if _slot_count(type(x)):
            held = Slots(x)
            found += self._named(task, self._hold(path + "'s slots", held), held.contents())
        try:
            attributes = object.__getattribute__(x, "__dict__")
        except AttributeError:
            return found
        if attributes or not isinstance(x, list | tuple | set | frozenset | dict | deque):
            self._note(f"{path}'s attributes", Keys(attributes), task.names)
            found += self._entries(task, attributes, lambda key: f"{path}.{key}", named=True)
        return found

    def _named(self, task: Task, holder: Holder, contents: dict[str, Any]) -> list[Task]:
        self._note(f"{task.path}'s slots", Keys(contents), task.names)
        return [
            Task(f"{task.path}.{name}", part, (*task.names, name), False, (holder, name))
            for name, part in contents.items()
        ]

    def _entries(self, task: Task, x: dict, path_of: Callable[[Any], str], *, named: bool) -> list[Task]:
        holder = self._hold(path_of("__dict__") if named else task.path, Entries(x))
        is_argument = task.is_argument and is_rebuilt(x) and not named
        found = []
        for key, part in x.items():
            names = (*task.names, key) if named else task.names
            found.append(Task(path_of(key), part, names, is_argument and type(key) in _PLAIN, (holder, key)))
            if not named and not isinstance(key, str) and type(key) not in _PLAIN and not _is_value(key):
                found.append(Task(f"{path_of(key)}'s key", key, names))
        return found

    def _hold(self, path: str, holder: Holder) -> Holder:
        if holder.identity not in self._held:
            self._held.add(holder.identity)
            self.holders[path] = holder
        return holder

    def _class(self, path: str, kind: type, names: tuple[str, ...]) -> list[Task]:
        """The attributes of a class that is not a library's: values that its instances share, and methods."""
        found = []
        for owner in kind.__mro__:
            if id(owner) not in self.paths and not _is_library(owner.__module__):
                self.paths[id(owner)] = owner_path = f"class {owner.__qualname__}"
                self.objects[owner_path] = owner
                held = self._hold(owner_path, ClassAttributes(owner))
                self._note(owner_path, owner, names)
                for name, x in held.contents().items():
                    x = _function_of(x)
                    labels = names if name.startswith("__") else (*names, name)
                    found.append(Task(f"{owner_path}.{name}", x, labels, False, (held, name)))
        return found

    def _function(self, task: Task) -> None:
        """A function: what it closes over, its defaults, and the globals that its code names."""
        path, f, names = task.path, task.object, task.names
        self._note(path, f, names)
        self._note(f"{path}'s code", f.__code__, names)
        if _is_library(f.__module__) or not (_is_users(f.__module__) or f.__code__ in self._ran):
            return
        prefix = f"{path}." if path else ""
        tasks = []
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
            holder = self._hold(f"{prefix}{name}'s cell", Cell(cell))
            contents = holder.contents()
            self._note(f"{prefix}{name}'s cell", bool(contents), (*names, name))
            tasks += [Task(prefix + name, x, (*names, name), False, (holder, 0)) for x in contents.values()]
        for name in ("__defaults__", "__kwdefaults__"):
            tasks.append(Task(f"{prefix}{name}", getattr(f, name), names))
        for code in with_inner(f.__code__):
            for name in names_of(code).attributes:
                self._attributes[name] = None
            for module in names_of(code).imports:
                if module in sys.modules and not _is_library(module):
                    tasks.append(Task(module, sys.modules[module], names))
            for name, attributes, _ in names_of(code).chains:
                tasks += self._global(f.__globals__, name, attributes, names)
        self._push(tasks + self._fields(task))

    def _global(self, module: dict[str, Any], name: str, attributes: tuple[str, ...], names: tuple) -> list[Task]:
        """A global variable; of a class or module that code takes an attribute of, the attribute alone."""
        where = module.get("__name__", "")
        path = name if where in ("__main__", "") else f"{where}.{name}"
        names = (*names, name)
        holder = Variable(module, name)
        if holder.identity in self._held and not attributes:
            return []
        is_new = holder.identity not in self._held
        self._hold(path, holder)
        if name not in module:
            if is_new:
                self._note(path, "nothing", names)
            return []
        x = module[name]
        if attributes and isinstance(x, types.ModuleType | type):
            if is_new:
                self._note(path, x, names)
            return self._attribute(path, x, attributes, names)
        return [Task(path, x, names, False, (holder, name))]

    def _attribute(self, path: str, x: Any, attributes: tuple[str, ...], names: tuple[str, ...]) -> list[Task]:
        """What code takes of a class or module by a chain of names: `settings.model.width`."""
        if _is_library(x.__name__ if isinstance(x, types.ModuleType) else x.__module__):
            return []
        name, *rest = attributes
        names, path = (*names, name), f"{path}.{name}"
        if isinstance(x, type):
            owner = next((owner for owner in x.__mro__ if name in vars(owner)), None)
            if owner is None:
                return []
            held, key = self._hold(f"class {owner.__qualname__}", ClassAttributes(owner)), name
            part = _function_of(vars(owner)[name])
        else:
            held, key = self._hold(path, Variable(vars(x), name)), name
            if name not in vars(x):
                if path not in self.parts:
                    self._note(path, "nothing", names)
                return []
            part = vars(x)[name]
        if rest and isinstance(part, types.ModuleType | type):
            return self._attribute(path, part, tuple(rest), names)
        return [] if path in self.parts else [Task(path, part, names, False, (held, key))]

    def _look_further(self) -> bool:
        """Visits the attributes of classes and modules that no chain leads to, and that some code names. True if any."""
        for path, x, names, done in self._open:
            if _is_library(x.__name__ if isinstance(x, types.ModuleType) else x.__module__):
                continue
            if isinstance(x, types.ModuleType) and not _is_users(x.__name__):
                continue
            tasks = []
            for name in self._attributes:
                if name not in done:
                    done.add(name)
                    tasks += self._attribute(path, x, (name,), names)
            if tasks:
                self._push(tasks)
                return True
        return False


class Same(NamedTuple):
    """Stands in the signature for an object that an earlier path leads to."""

    path: str


def _arguments(function: Callable, arguments: tuple, keywords: dict[str, Any]) -> list[Task]:
    """The arguments, less those that the function's code never reads."""
    read: Callable[[str], bool] = lambda name: True
    names: list[str] = []
    code = getattr(function, "__code__", None)
    if isinstance(function, types.FunctionType | types.MethodType) and isinstance(code, types.CodeType):
        inner = [names_of(c) for c in with_inner(code)]
        if not any(n.all & {"locals", "vars", "eval", "exec", "dir"} for n in inner):
            read = lambda name: any(name in n.locals for n in inner)
            names = list(code.co_varnames[isinstance(function, types.MethodType) : code.co_argcount])
    tasks = [
        Task(f"arguments[{i}]", x, (), True)
        for i, x in enumerate(arguments)
        if i >= len(names) or read(names[i])
    ]
    return tasks + [
        Task(item_path("keywords", key), x, (), True)
        for key, x in keywords.items()
        if code is None or key not in code.co_varnames or read(key)
    ]


def exactly(x: Any) -> Part:
    """What tells a value from all others, 1 from 1.0 and True, and 0.0 from -0.0."""
    kind = type(x)
    if kind in (float, complex, slice) or isinstance(x, np.generic):
        return kind, repr(x)
    if kind is tuple:
        return kind, tuple(map(exactly, x))
    if kind in _PLAIN or isinstance(x, enum.Enum) or _is_value(x):
        return kind, x
    return kind, Identical(x)


class Identical:
    """Equal to another of the same object alone."""

    __slots__ = ("object",)

    def __init__(self, x: Any):
        self.object = x

    def __hash__(self) -> int:
        return id(self.object)

    def __eq__(self, other: Any) -> bool:
        return type(other) is Identical and self.object is other.object

    def __repr__(self) -> str:
        return f"{type(self.object).__name__} at {id(self.object):#x}"


def _all_exactly(x: Iterable[Any]) -> Part:
    """As `exactly` of each, made fast for many of one kind."""
    kinds = set(map(type, x))
    if kinds == {float}:
        return float, array.array("d", x).tobytes()
    if len(kinds) == 1 and not kinds & {complex, slice}:
        return *kinds, tuple(x)
    return tuple(map(exactly, x))


def _function_of(x: Any) -> Any:
    """The function of a static or class method; anything else as it is."""
    return x.__func__ if type(x) in (staticmethod, classmethod) else x


def is_rebuilt(x: Any) -> bool:
    """Whether x is a list, dict, tuple or named tuple, which can be made anew of other parts."""
    return type(x) in (list, tuple, dict) or (isinstance(x, tuple) and hasattr(x, "_fields"))


def item_path(path: str, key: Any) -> str:
    return f"{path}[{key!r}]" if type(key) in _PLAIN or _is_value(key) else f"{path}[{type(key).__name__}]"


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module is Python's own, tinyarr or NumPy, whose functions and classes don't change."""
    return (module or "").split(".")[0] in _LIBRARIES


@functools.cache
def _is_users(module: str | None) -> bool:
    """Whether a module is the user's, so that what its code names may change: no library, and not installed."""
    if module == "__main__":  # whose file may be a tool's that runs the user's code: python -m pytest
        return True
    return not _is_library(module) and "-packages" not in (
        getattr(sys.modules.get(module or ""), "__file__", None) or ""
    )


_KNOWN = (
    object, list, tuple, dict, set, frozenset, deque, OrderedDict, int, float, str, bytes, BaseException,
    types.SimpleNamespace, functools.partial, threading.local, Tensor, enum.Enum,
)  # fmt: skip


@functools.cache
def _hides_state(kind: type) -> bool:
    """Whether instances hold more than attributes: some class among its bases is written in C and none of those known.

    A class written in Python adds slots, a `__dict__` and a list of weak references to its base, and no other bytes.
    """
    if issubclass(kind, BaseException) or kind in _KNOWN:
        return False
    for owner in kind.__mro__:
        if owner in _KNOWN or owner.__base__ is None:
            continue
        if not owner.__flags__ & _HEAP_TYPE:
            return True
        members = [name for name, x in vars(owner).items() if type(x) is types.MemberDescriptorType]
        words = len(members) + ("__weakref__" in vars(owner)) + ("__dict__" in vars(owner))
        if owner.__basicsize__ - owner.__base__.__basicsize__ > words * np.dtype(np.intp).itemsize:
            return True
    return False


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by a C extension that does as much


@functools.cache
def _slot_count(kind: type) -> int:
    return len(slots_of(kind))


def _is_value(x: Any) -> bool:
    """Whether x never changes and equals what has equal contents: fractions, dates and paths of Python's library."""
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


def difference(now: dict[str, Part], then: dict[str, Part]) -> list[str]:
    """Returns what is different between the parts of two signatures, by path."""
    found = []
    for path in [*then, *(path for path in now if path not in then)]:
        a, b = then.get(path, "nothing"), now.get(path, "nothing")
        if a != b:
            found.append(f"{path.removesuffix(GRADIENT)}: {_shown(a, b)}, then {_shown(b, a)}")
    return found


def _shown(part: Part, other: Part) -> str:
    if isinstance(part, TensorKind | GradientKind):
        if type(other) is not type(part):
            return f"a tensor of shape {part.shape}" if isinstance(part, TensorKind) else "a tensor"
        return ", ".join(f"{k} {v}" for k, v, w in zip(part._fields, part, other) if v != w)
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], type):
        return str(part[1])[:80]
    return str(part)[:80]
