"""Holders: whatever holds Python values and can be changed, read and written in one way. Floor 2.

A list, a dict, the attributes of an object in its `__dict__` or its slots, those of a class, the cell of a closure, one
name among globals, the elements of a NumPy array. `contents` gives what is held, by key and in order; `put` makes that
what is held. What a trace changes is found by comparing contents before and after, put back, and put anew at each call.
"""

from __future__ import annotations

import array
import sys
import types
from collections import OrderedDict, deque
from typing import Any

import numpy as np

from ...tensor import Tensor

GONE: Any = type("Gone", (), {"__repr__": lambda self: "nothing"})()


class Holder:
    """Holder of Python values. object: the list, dict, ... itself, by which two holders are equal."""

    __slots__ = ("object",)

    def __init__(self, x: Any):
        self.object = x

    @property
    def identity(self) -> Any:
        return id(self.object)

    def contents(self) -> dict[Any, Any]:
        raise AssertionError("each kind of holder has its own")

    def put(self, new: dict[Any, Any]) -> None:
        raise AssertionError("each kind of holder has its own")


class Items(Holder):
    """A list or deque, by position."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        return dict(enumerate(self.object))

    def put(self, new: dict[Any, Any]) -> None:
        kind = deque if isinstance(self.object, deque) else list
        kind.clear(self.object)
        kind.extend(self.object, new.values())


class Members(Holder):
    """A set, in the order in which it gives its members."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        return dict(enumerate(self.object))

    def put(self, new: dict[Any, Any]) -> None:
        set.clear(self.object)
        set.update(self.object, new.values())


class Entries(Holder):
    """A dict, among them an object's attributes: in the order in which the keys came."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        return dict(self.object)

    def put(self, new: dict[Any, Any]) -> None:
        held = self.object
        kind: Any = OrderedDict if isinstance(held, OrderedDict) else dict  # past what a Counter makes of update
        for key in [key for key in held if key not in new]:
            kind.__delitem__(held, key)
        if list(new)[: len(held)] != list(held):
            kind.clear(held)
        for key, x in new.items():
            kind.__setitem__(held, key, x)


class Attributes(Entries):
    """An object's `__dict__`, as long as that is the one."""

    __slots__ = ("owner",)

    def __init__(self, owner: Any, x: dict[str, Any]):
        self.owner, self.object = owner, x


class Cell(Holder):
    """The variable of a closure."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        try:
            return {0: self.object.cell_contents}
        except ValueError:
            return {}

    def put(self, new: dict[Any, Any]) -> None:
        if new:
            self.object.cell_contents = new[0]
        elif self.contents():
            del self.object.cell_contents


class Variable(Holder):
    """One name in a module."""

    __slots__ = ("name",)

    def __init__(self, names: dict[str, Any], name: str):
        super().__init__(names)
        self.name = name

    @property
    def identity(self) -> Any:
        return id(self.object), self.name

    def contents(self) -> dict[Any, Any]:
        return {self.name: self.object[self.name]} if self.name in self.object else {}

    def put(self, new: dict[Any, Any]) -> None:
        if new:
            self.object.update(new)
        else:
            self.object.pop(self.name, None)


class Slots(Holder):
    """An object's slots."""

    __slots__ = ()

    @property
    def identity(self) -> Any:
        return id(self.object), "slots"

    def contents(self) -> dict[Any, Any]:
        found = {}
        for name, slot in slots_of(type(self.object)).items():
            try:
                found[name] = slot.__get__(self.object)
            except AttributeError:  # it holds nothing
                continue
        return found

    def put(self, new: dict[Any, Any]) -> None:
        old = self.contents()
        for name, slot in slots_of(type(self.object)).items():
            if name in new:
                slot.__set__(self.object, new[name])
            elif name in old:
                slot.__delete__(self.object)


def slots_of(kind: type) -> dict[str, Any]:
    """Returns the descriptors of the slots of a class and its bases, by name; but for those of a tensor."""
    owners = [owner for owner in reversed(kind.__mro__) if "__slots__" in vars(owner) and owner is not Tensor]
    return {
        name: x for owner in owners for name, x in vars(owner).items() if type(x) is types.MemberDescriptorType
    }


class ClassAttributes(Holder):
    """The attributes of a class of the user's, but for what Python itself keeps there."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        return {name: x for name, x in vars(self.object).items() if not _is_pythons(name, x)}

    def put(self, new: dict[Any, Any]) -> None:
        old = self.contents()
        for name in old.keys() - new.keys():
            _past_python(self.object, "__delattr__")(name)
        for name, x in new.items():
            if x is not old.get(name, GONE):
                _past_python(self.object, "__setattr__")(name, x)


def _past_python(kind: type, name: str) -> Any:
    """A method of a class's metaclass that is written in C: an Enum's own, in Python, would refuse."""
    for metaclass in type.mro(type(kind)):
        method = vars(metaclass).get(name)
        if method is not None and not isinstance(method, types.FunctionType):
            return method.__get__(kind)
    raise AssertionError("type has it")


def _is_pythons(name: str, x: Any) -> bool:
    if type(x) in (types.MemberDescriptorType, types.GetSetDescriptorType):
        return True
    return name.startswith("__") and name.endswith("__") and type(x) is not types.FunctionType


class Elements(Holder):
    """Elements of a NumPy array, a bytearray or an array.array: one value, whose key is their shape and dtype."""

    __slots__ = ()

    def contents(self) -> dict[Any, Any]:
        return {layout_of(self.object): bytes_of(self.object)}

    def put(self, new: dict[Any, Any]) -> None:
        x = self.object
        ((layout, elements),) = new.items()
        if isinstance(x, np.ndarray):
            if layout_of(x) != layout:
                whole: Any = x
                whole.dtype, whole.shape = layout
            x[...] = np.frombuffer(elements, x.dtype).reshape(x.shape)
        elif isinstance(x, array.array):
            x[:] = array.array(x.typecode, elements)
        else:
            x[:] = elements


class DecimalContext(Holder):
    """The settings of Python's decimal arithmetic in this thread, as one value."""

    __slots__ = ()
    _NAMES = "prec", "rounding", "Emin", "Emax", "capitals", "clamp"
    _known: dict[tuple, tuple] = {}  # so that equal settings are one object

    def __init__(self) -> None:
        super().__init__(sys.modules["decimal"])

    def contents(self) -> dict[Any, Any]:
        context = self.object.getcontext()
        traps = tuple(signal for signal, is_set in context.traps.items() if is_set)
        found = *(getattr(context, name) for name in self._NAMES), traps
        return {0: self._known.setdefault(found, found)}

    def put(self, new: dict[Any, Any]) -> None:
        context, (*settings, traps) = self.object.getcontext(), new[0]
        for name, x in zip(self._NAMES, settings):
            setattr(context, name, x)
        for signal in context.traps:
            context.traps[signal] = signal in traps


def layout_of(x: Any) -> Any:
    """Returns the dtype and shape of a NumPy array, and the type code of an array.array."""
    return (x.dtype, x.shape) if isinstance(x, np.ndarray) else getattr(x, "typecode", None)


def bytes_of(x: Any) -> bytes:
    """Returns a copy of the elements of a NumPy array, bytearray or array.array."""
    return bytes(x) if isinstance(x, bytearray) else x.tobytes()


def holds_the_same(holder: Holder, contents: dict[Any, Any]) -> bool:
    """Returns whether a holder holds the very objects of earlier contents, under the same keys in the same order."""
    new = holder.contents()
    if isinstance(holder, Elements):
        return new == contents
    pairs = zip(new.items(), contents.items(), strict=False)
    return len(new) == len(contents) and all(x is y and is_one_key(a, b) for (a, x), (b, y) in pairs)


def is_one_key(a: Any, b: Any) -> bool:
    """Returns whether two keys are one object, or texts or ints that are equal."""
    return a is b or (type(a) is type(b) and type(a) in (str, int) and a == b)
