"""Walks through all that a function may depend on: tensors, generators and Python values. Floor 2.

A compiled function is traced once for each signature. The walk starts at the function's arguments and at the function
itself, and goes through closures, globals, `self`, classes, containers and attributes. It assumes of an object what its
kind promises, and nothing else:

- a value that can't change (a number, a string, a dtype, a date) is a part of the signature;
- a container, and an object whose class is written in Python, is the sum of its parts, which are walked;
- a function is its code, its closure, its defaults and the globals that its code names;
- of a class or module are looked at the attributes that code names;
- anything else is *opaque*: its state can't be seen, as that of an iterator or of a file.

Every part has the names that lead to it, of globals, attributes and variables. A part is *used* by a trace if code that
ran names all of them. What is not used belongs to no program.
"""

from __future__ import annotations

import copy
import enum
import functools
import logging
import sys
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from ...array import Array
from ...errors import TraceError
from ...random import Generator, default_generator
from ...tensor import Tensor
from .assumptions import (
    BUFFERS,
    LOCKS,
    NUMBERS_AND_TEXTS,
    PLAIN,
    STREAMS,
    UNCHANGING,
    hides_state,
    is_library,
    is_open,
    is_plain,
    is_pythons,
    is_users,
    is_value,
    slot_count,
)  # fmt: skip
from .captured import (
    GRADIENT,
    Capture,
    GradientKind,
    GradientOf,
    Identical,
    Keys,
    Names,
    Part,
    Same,
    TensorKind,
    all_exactly,
    exactly,
    is_rebuilt,
    item_path,
)  # fmt: skip
from .code_names import Parameters, names_of, with_inner
from .holders import (
    Attributes,
    Cell,
    ClassAttributes,
    DecimalContext,
    Elements,
    Entries,
    Holder,
    Items,
    Members,
    Slots,
    Variable,
    bytes_of,
    layout_of,
)

MANY = 64  # more plain values in a list are one part of the signature, so that a long list costs no path for each
_CALLED = ("__new__", "__init__", "__post_init__", "__call__")  # where a class or its instance is called
_BARE = frozenset((list, tuple, dict, set, frozenset, deque))  # which have no attributes
_NUMBERS = (int, float, np.float64)
_MADE_OF = (
    types.MethodType, functools.partial, types.CellType, property, staticmethod, classmethod,
    functools._lru_cache_wrapper,
)  # fmt: skip
_ATTRIBUTES = ("__self__", "__func__", "func", "args", "keywords", "fget", "fset", "__wrapped__")  # of these
_NO_CODE: Mapping[types.CodeType, dict[str, Any]] = types.MappingProxyType({})


class Visit(NamedTuple):
    """An object to visit. names: what code must name to come here. slot: the holder and the key under which it is."""

    path: str
    object: Any
    names: Names
    is_argument: bool = False
    slot: tuple[Holder, Any] | None = None


class Walk(Capture):
    """One walk over the state that a function reaches, and the capture that it found."""

    def __init__(
        self,
        function: Callable,
        arguments: tuple,
        keywords: dict[str, Any],
        varying: Container[str] = (),
        needed: Container[str] = (),
        more_code: Mapping[types.CodeType, dict[str, Any]] = _NO_CODE,
        state: tuple | None = None,
    ):
        """varying: paths of numbers outside of the arguments that are to be inputs. needed: of those that are not.

        more_code: code that is known to run although no walk comes to it, and its globals. state: where given, the walk
        starts there instead of at the function, and enters no code.
        """
        super().__init__()
        self._varying, self._needed, self._more_code = varying, needed, more_code
        self._classes: dict[type, Names] = {}  # of which all attributes were met, and the names that led there
        self._held: set[Any] = set()  # the identities of the holders
        self._variables: dict[Any, Names] = {}  # the names that led to a global, by the identity of its holder
        self._attributes = dict.fromkeys(_CALLED)  # that any code met so far names
        self._open: list[tuple[str, Any, Names, set[str]]] = []  # classes and modules, and what was looked at
        self._stack: list[Visit] = []
        self._has_decimals = False
        self._is_shallow = state is not None
        self._deferred: list[Visit] = []  # functions that a shallow walk came to
        takes = Parameters.of(function)
        given = [
            Visit(f"arguments[{i}]", x, (), True)
            for i, x in enumerate(arguments)
            if i >= len(takes.names) or takes.names[i] not in takes.unread
        ]
        given += [
            Visit(item_path("keywords", key), x, (), True)
            for key, x in keywords.items()
            if key not in takes.unread_keywords
        ]
        if state is None:
            self._enter_code(function, given)
        else:
            self._push([*(Visit(f"state[{i}]", x, ()) for i, x in enumerate(state)), *given])
            self._walk()
        if self._has_decimals or (state is not None and "decimal" in sys.modules):  # as code may use it
            context = DecimalContext()
            self._hold("decimal's context", context)
            self._note("decimal's context", context.contents()[0], ())
        default = default_generator()
        if takes.any_keyword and len(keywords) > 1:
            self._note("the order of the keywords", tuple(keywords), ())
        self._note("the default generator", self.paths.get(id(default), "another"), ())
        self.signature = tuple(self.parts), tuple(self.parts.values())

    def _enter_code(self, function: Callable, given: Sequence[Visit] = ()) -> None:
        name = "" if isinstance(function, types.FunctionType) else "self"
        if not isinstance(function, types.FunctionType | types.MethodType):
            name = type(function).__name__
        self._push([Visit(name, function, ()), *given])
        for code, variables in self._more_code.items():
            self._push(self._globals(code, variables, ()))
        self._walk()

    def _walk(self) -> None:
        while self._stack or (not self._is_shallow and self._look_further()):
            self._visit(self._stack.pop())

    def deepened(self, function: Callable) -> Walk:
        """Returns what a walk of the state and then of the function finds, for a trace. Its `again` is this capture."""
        deep = copy.copy(self)
        vars(deep).update({name: copy.copy(x) for name, x in vars(self).items() if isinstance(x, dict | set | list)})
        deep._is_shallow = False
        for task in self._deferred:
            deep._function(task)
        deep._enter_code(function)
        return deep

    def _note(self, path: str, part: Part, names: Names) -> None:
        self.parts[path] = part
        self.names[path] = names

    def _also(self, known: Names, names: Names) -> None:
        """Notes that names lead to what was visited by the known ones."""
        if not set(known) <= set(names) and names not in self.aliases.get(known, ()):
            self.aliases[known] = (*self.aliases.get(known, ()), names)

    def _push(self, tasks: list[Visit]) -> None:
        self._stack += reversed(tasks)

    def _visit(self, task: Visit) -> None:
        path, x, names, _, slot = task
        kind: Any = type(x)
        if path in self.parts:
            path = _fresh(path, self.parts)
            task = task._replace(path=path)
        if kind in _NUMBERS and self._is_input(task, kind):
            self._note(path, "an int" if kind is int else f"a {kind.__name__}", names)
            self.numbers[path], self.slots[path] = x, slot
        elif kind in PLAIN:
            self._note(path, exactly(x), names)
        elif id(x) in self.paths:
            first = self.paths[id(x)]
            self.shared.add(first)
            self._note(path, Same(first), names)
            self._also(self.names[first], names)
            if first in self.opaque:
                self.opaque[path], self.slots[path], self.objects[path] = self.opaque[first], slot, x
        else:
            self.paths[id(x)] = path
            self.objects[path] = x
            self._enter(task)

    def _is_input(self, task: Visit, kind: type) -> bool:
        if task.path in self._needed:
            return False
        if task.is_argument:
            return True
        is_replaceable = task.slot is not None  # and not a part of a tuple that others hold too
        return task.path in self._varying and kind is not np.float64 and is_replaceable

    def _enter(self, task: Visit) -> None:
        """Notes the kind of an object, met for the first time, and pushes its parts."""
        path, x, names, is_argument, slot = task
        kind: Any = type(x)
        self._has_decimals |= getattr(x, "__module__", None) == "decimal"
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
            made = [Visit(f"{path}'s default", x.default_factory, names)] if isinstance(x, defaultdict) else []
            entries = self._entries(task, x, lambda key: item_path(path, key), named=False)
            self._push(made + entries + self._fields(task))
        elif isinstance(x, types.FunctionType):
            self._function(task)
        elif isinstance(x, _MADE_OF):
            self._note(path, kind, names)
            parts = [(name, getattr(x, name, None)) for name in _ATTRIBUTES]
            found = [Visit(f"{path}.{name}", part, names) for name, part in parts if part is not None]
            self._push(found + (self._fields(task) if isinstance(x, functools.partial) else []))
        elif isinstance(x, type | types.ModuleType):
            self._note(path, x, names)
            self._open.append((path, x, names, set(_CALLED) if isinstance(x, types.ModuleType) else set()))
        elif isinstance(x, weakref.ref | ContextVar):
            self.is_lasting = False
            self._note(path, kind, names)
            self._push([Visit(f"{path}()", x() if isinstance(x, weakref.ref) else x.get(None), names)])
        elif isinstance(x, BUFFERS) and not (isinstance(x, np.ndarray) and x.dtype.hasobject):
            self._buffer(task)
        elif isinstance(x, UNCHANGING) or (kind.__module__ == "_thread" and kind.__name__ in LOCKS):
            self._note(path, exactly(x), names)
            if isinstance(x, enum.Enum):
                self._push(self._fields(task))
            elif isinstance(x, np.void):  # a view of an array's elements
                self.is_lasting = False
        elif isinstance(x, logging.Logger):
            self.is_lasting = False
            self._note(path, (Identical(x), x.getEffectiveLevel()), names)
        elif is_value(x):
            self._note(path, exactly(x), names)
        else:
            self._object(task)

    def _tensor(self, task: Visit) -> None:
        path, x, names = task.path, task.object, task.names
        self.tensors[path] = x
        a: Array = x.array
        first, start = self.storages.setdefault(id(a.storage), (path, a.offset))
        if first != path:
            self.shared |= {first, path}
        self._note(path, TensorKind(a.shape, a.dtype, a.device, a.strides, first, a.offset - start), names)
        self._note(path + GRADIENT, GradientKind.of(x), names)
        if x.grad is not None:
            self._push([Visit(f"{path}.grad", x.grad, (*names, GradientOf.tensor(path)))])
        if x._hooks is not None:
            self._push([Visit(f"{path}'s hooks", x._hooks, names)])
        if not is_library(type(x).__module__):
            self._push(self._fields(task))

    def _sequence(self, task: Visit) -> None:
        path, x, names = task.path, task.object, task.names
        kind: Any = type(x)
        holder = None
        if not isinstance(x, tuple):
            holder = self._hold(path, Items(x))
        whole = (kind, len(x), getattr(x, "maxlen", None))
        if len(x) > MANY and PLAIN.issuperset(map(type, x)):
            self._note(path, (*whole, all_exactly(x)), names)
            self._push(self._fields(task))
            return
        self._note(path, whole, names)
        is_argument = task.is_argument and is_rebuilt(x)
        parts = [
            Visit(item_path(path, i), part, names, is_argument, None if holder is None else (holder, i))
            for i, part in enumerate(x)
        ]
        self._push(parts + self._fields(task))

    def _set(self, task: Visit) -> None:
        path, x, names = task.path, task.object, task.names
        if isinstance(x, set):
            self._hold(path, Members(x))
        if all(type(part) in PLAIN or type(part) is tuple or is_value(part) for part in x):
            self._note(path, (type(x), frozenset(map(exactly, x))), names)
            self._push(self._fields(task))
            return
        self._note(path, (type(x), len(x)), names)
        self._push([Visit(f"{path}{{{i}}}", part, names) for i, part in enumerate(x)] + self._fields(task))

    def _buffer(self, task: Visit) -> None:
        x = task.object
        if task.is_argument and isinstance(x, np.ndarray):
            raise TraceError(f"compile: {task.path} is a NumPy array, which can change unseen: make it a Tensor")
        self._hold(task.path, Elements(x))
        self._note(task.path, (type(x), layout_of(x), bytes_of(x)), task.names)
        self._push(self._fields(task))

    def _object(self, task: Visit) -> None:
        """An object of a class that none of the above knows: its attributes, if those are all that it is."""
        path, x, names = task.path, task.object, task.names
        kind: Any = type(x)
        captured = getattr(kind, "captured", None) if is_library(kind.__module__) else None
        if captured is not None:  # tinyarr's own, whose other attributes are caches
            self._note(path, Identical(x), names)
            self._push([Visit(f"{path}.{name}", vars(x)[name], names) for name in captured])
            return
        if hides_state(kind) and not hasattr(kind, "__get__"):  # a descriptor or function of an extension has none
            self.opaque[path], self.slots[path] = kind.__qualname__, task.slot
            self._note(path, kind, names)
            return
        part: Part = kind
        if isinstance(x, NUMBERS_AND_TEXTS):
            own = next(base for base in NUMBERS_AND_TEXTS if isinstance(x, base))
            part = kind, exactly(getattr(own, f"__{own.__name__}__")(x))
        self._note(path, part, names)
        fields = self._fields(task)
        if isinstance(x, BaseException):
            self.is_lasting = False
            fields.insert(0, Visit(f"{path}.args", x.args, names))
        self._push(fields)

    def _fields(self, task: Visit) -> list[Visit]:
        """The attributes of an object, in its `__dict__`, its slots and its class."""
        x, path = task.object, task.path
        kind: Any = type(x)
        if kind in _BARE:
            return []
        found = self._class(kind, task.names)
        if slot_count(kind):
            held = Slots(x)
            found += self._named(task, self._hold(path + "'s slots", held), held.contents())
        try:
            attributes = (threading.local if isinstance(x, threading.local) else object).__getattribute__(x, "__dict__")
        except AttributeError:
            return found
        self._note(f"{path}'s attributes", Keys(attributes), task.names)
        return found + self._entries(task, attributes, lambda key: f"{path}.{key}", named=True)

    def _named(self, task: Visit, holder: Holder, contents: dict[str, Any]) -> list[Visit]:
        self._note(f"{task.path}'s slots", Keys(contents), task.names)
        return [
            Visit(f"{task.path}.{name}", part, (*task.names, name), False, (holder, name))
            for name, part in contents.items()
        ]

    def _entries(self, task: Visit, x: dict, path_of: Callable[[Any], str], *, named: bool) -> list[Visit]:
        held = Attributes(task.object, x) if named else Entries(x)
        holder = self._hold(path_of("__dict__") if named else task.path, held)
        is_argument = task.is_argument and is_rebuilt(x) and not named
        compares_all = isinstance(task.object, types.SimpleNamespace)  # == and repr name no attribute
        found = []
        for key, part in x.items():
            names = (*task.names, key) if named and not compares_all else task.names
            found.append(Visit(path_of(key), part, names, is_argument and type(key) in PLAIN, (holder, key)))
            if not named and not isinstance(key, str) and type(key) not in PLAIN and not is_value(key):
                found.append(Visit(f"{path_of(key)}'s key", key, names))
        return found

    def _hold(self, path: str, holder: Holder) -> Holder:
        if holder.identity not in self._held:
            self._held.add(holder.identity)
            self.holders[path if path not in self.holders else _fresh(path, self.holders)] = holder
        return holder

    def _class(self, kind: type, names: Names) -> list[Visit]:
        """The attributes of a class that is not a library's: values that its instances share, and methods."""
        found = []
        for owner in kind.__mro__:
            if owner in self._classes:
                self._also(self._classes[owner], names)
            elif not is_library(owner.__module__):
                self._classes[owner] = names
                owner_path = _fresh(f"class {owner.__qualname__}", self.parts)
                if id(owner) not in self.paths:  # as that of a global, of which code may take an attribute
                    self.paths[id(owner)], self.objects[owner_path] = owner_path, owner
                held = self._hold(owner_path, ClassAttributes(owner))
                self._note(owner_path, owner, names)
                for name, x in held.contents().items():
                    x = _function_of(x)
                    labels = names if name.startswith("__") else (*names, name)
                    found.append(Visit(f"{owner_path}.{name}", x, labels, False, (held, name)))
        return found

    def _function(self, task: Visit) -> None:
        """Visits a function: its closure, its defaults, and the globals that its code names."""
        path, f, names = task.path, task.object, task.names
        self._note(path, f, names)
        self._note(f"{path}'s code", f.__code__, names)
        if self._is_shallow:
            self._deferred.append(task)
            return
        closes = f.__closure__ and (is_pythons(f.__module__) or f.__code__ in self._more_code)
        if not (is_users(f.__module__) or closes):
            return
        prefix = f"{path}." if path else ""
        tasks = []
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
            holder = self._hold(f"{prefix}{name}'s cell", Cell(cell))
            contents = holder.contents()
            self._note(f"{prefix}{name}'s cell", bool(contents), (*names, name))
            tasks += [Visit(prefix + name, x, (*names, name), False, (holder, 0)) for x in contents.values()]
        for name in ("__defaults__", "__kwdefaults__"):
            tasks.append(Visit(f"{prefix}{name}", getattr(f, name), names))
        for code in with_inner(f.__code__) if is_users(f.__module__) else ():
            tasks += self._globals(code, f.__globals__, names)
        self._push(tasks + self._fields(task))

    def _globals(self, code: types.CodeType, variables: dict[str, Any], names: Names) -> list[Visit]:
        """Returns visits to the globals, closure variables and attributes that code names."""
        self.code.add(code)
        tasks = []
        found = names_of(code)
        self._attributes |= dict.fromkeys(found.attributes)
        for module in found.imports:
            if module in sys.modules and not is_library(module):
                self.is_lasting = False
                tasks.append(Visit(module, sys.modules[module], names))
            elif is_pythons(module):
                owners = dict.fromkeys((module, module.split(".")[0]))  # as both are named by `import os.path`
                tasks += [Visit(name, sys.modules[name], names) for name in owners if name in sys.modules]
        for name, attributes, _ in found.chains:
            tasks += self._global(variables, name, attributes, names)
        return tasks

    def _global(self, module: dict[str, Any], name: str, attributes: tuple[str, ...], names: Names) -> list[Visit]:
        """A global variable; of a class or module that code takes an attribute of, the attribute alone."""
        where = module.get("__name__", "")
        path = name if where in ("__main__", "") else f"{where}.{name}"
        names = (*names, name)
        holder = Variable(module, name)
        self._also(self._variables.setdefault(holder.identity, names), names)
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
        return [Visit(path, x, names, False, (holder, name))]

    def _attribute(self, path: str, x: Any, attributes: tuple[str, ...], names: Names) -> list[Visit]:
        """Returns visits to what code takes of a class or module by a chain of names: `settings.model.width`."""
        name, *rest = attributes
        is_of_python = isinstance(x, types.ModuleType) and is_pythons(x.__name__)
        if is_of_python:
            self._has_decimals |= x.__name__ == "decimal"
        if not is_open(x) or (is_of_python and (name not in vars(x) or (x.__name__, name) in STREAMS)):
            return []
        names, path = names if name in _CALLED else (*names, name), f"{path}.{name}"
        if isinstance(x, type):
            kinds: Any = x, type(x)
            owners = [owner for kind in kinds for owner in kind.__mro__ if not is_library(owner.__module__)]
            having = [owner for owner in owners if name in vars(owner)]
            for owner in owners[: owners.index(having[0]) + 1 if having else None]:  # any may come to have it
                held, key = self._hold(f"class {owner.__qualname__}", ClassAttributes(owner)), name
            if not having:
                return []
            part = _function_of(vars(having[0])[name])
        else:
            held, key = self._hold(path, Variable(vars(x), name)), name
            if name not in vars(x):
                if path not in self.parts:
                    self._note(path, "nothing", names)
                return []
            part = vars(x)[name]
        if rest and isinstance(part, types.ModuleType | type):
            return self._attribute(path, part, tuple(rest), names)
        if path in self.parts:
            self._also(self.names[path], names)
            return []
        if is_of_python and not is_plain(part):  # a function, a class, or what nobody should find replaced meanwhile
            self._note(path, Identical(part), names)
            return []
        return [Visit(path, part, names, False, (held, key))]

    def _look_further(self) -> bool:
        """Visits attributes of classes and modules that no chain leads to, but that some code names. True if any."""
        for path, x, names, done in self._open:
            is_installed = isinstance(x, types.ModuleType) and not (is_users(x.__name__) or is_pythons(x.__name__))
            if is_installed or not is_open(x):
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


def _fresh(path: str, known: Container[str]) -> str:
    """The path, or one like it that is none of the known: keys of a dict, and names of classes, may print alike."""
    while path in known:
        path += "'"
    return path


def _function_of(x: Any) -> Any:
    """The function of a static or class method; anything else as it is."""
    return x.__func__ if type(x) in (staticmethod, classmethod) else x
