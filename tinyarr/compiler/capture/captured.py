"""Capture: what a walk found of all that a function may depend on, each by the path that leads to it. Floor 2.

Of each object a *part* is noted, by which two calls are compared: that of `model.scale` is (int, 2). All of them are
the signature of a call; those that a trace used are what its program depends on.
"""
from __future__ import annotations

import array
import enum
import functools
import types
from collections.abc import Container, Iterable
from typing import Any, NamedTuple

import numpy as np

from ...device import Device
from ...dtypes import Dtype
from ...random import Generator
from ...tensor import Tensor
from ...views import Shape
from .assumptions import PLAIN, is_value
from .holders import Holder

Part = Any
Names = tuple[str, ...]
GRADIENT = "'s gradient"  # ends the path of a tensor's GradientKind


class TensorKind(NamedTuple):
    """Part of the signature of a tensor. storage: the path of the first one over it. apart: how far from that."""

    shape: Shape
    dtype: Dtype
    device: Device
    strides: Shape
    storage: str
    apart: int


class GradientKind(NamedTuple):
    """Part of the signature of a tensor's part in gradients."""

    type: type
    requires_grad: bool
    grad_dtype: Dtype
    is_leaf: bool
    has_grad: bool
    has_hooks: bool

    @classmethod
    def of(cls, x: Tensor) -> GradientKind:
        has_grad, has_hooks = x.grad is not None, x._hooks is not None
        if x._has_wide_grad or x.node is not None:
            return cls(type(x), x._requires_grad, x.grad_dtype, x.is_leaf, has_grad, has_hooks)
        kind: Any = type(x)
        return _usual(kind, x._requires_grad, x.array.dtype, True, has_grad, has_hooks)


@functools.cache
def _usual(*fields: Any) -> GradientKind:
    """Returns one object for all tensors of one kind: Python compares it with itself without a look at its fields."""
    return GradientKind(*fields)


class GradientOf(str):
    """Among the names that lead to a part: it is come to where a tensor's gradient is asked for.

    Example: `w's gradient`, which is no name in code.
    """

    __slots__ = ()

    @classmethod
    def tensor(cls, path: str) -> GradientOf:
        return cls(path + GRADIENT)


class AnyName(frozenset):
    """All names that code can have, and of GradientOf those given."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return type(name) is not GradientOf or super().__contains__(name)


class Keys(tuple):
    """The names of an object's attributes, of which those count that code names."""

    __slots__ = ()


class Same(NamedTuple):
    """Part of the signature of an object that an earlier path leads to."""

    path: str


def exactly(x: Any) -> Part:
    """Returns a key that tells a value from all others, 1 from 1.0 and True, and 0.0 from -0.0."""
    kind = type(x)
    if kind in (float, complex, slice) or isinstance(x, np.generic):
        return kind, repr(x)  # which tells -0.0 from 0.0, and is equal for two NaNs, that are no reason to trace again
    if kind is tuple:
        return kind, tuple(map(exactly, x))
    if kind in PLAIN or (isinstance(x, enum.Enum) and kind.__hash__ is not None) or is_value(x):
        return kind, x
    return kind, Identical(x)


class Identical:
    """Equal to another of the same object alone."""

    __slots__ = ("object",)

    def __init__(self, x: Any):
        self.object = x  # held, so that no later object gets its id

    def __hash__(self) -> int:
        return id(self.object)

    def __eq__(self, other: Any) -> bool:
        return type(other) is Identical and self.object is other.object

    def __repr__(self) -> str:
        return f"{type(self.object).__name__} at {id(self.object):#x}"


def all_exactly(x: Iterable[Any]) -> Part:
    """Returns a key for many values, equal where `exactly` of each is; those of one kind need no loop over them."""
    kinds = set(map(type, x))
    if kinds == {float}:
        return float, array.array("d", x).tobytes()  # 10,000 floats in one comparison; the bytes tell -0.0 from 0.0
    if len(kinds) == 1 and not kinds & {complex, slice}:
        return *kinds, tuple(x)
    return tuple(map(exactly, x))



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


def is_rebuilt(x: Any) -> bool:
    """Returns whether x is a list, dict, tuple or named tuple, which can be made anew of other parts."""
    return type(x) in (list, tuple, dict) or (isinstance(x, tuple) and hasattr(x, "_fields"))


def item_path(path: str, key: Any) -> str:
    return f"{path}[{key!r}]" if type(key) in PLAIN or is_value(key) else f"{path}[{type(key).__name__}]"


class Leaf(NamedTuple):
    """A tensor or generator, and how it was reached: `model.blocks[0].weight`, `x.grad`."""

    path: str
    object: Any


class Capture:
    """Objects and parts that one walk found. All but `paths` and `storages` is by path.

    objects: each of them once; tensors and generators: those among them. holders: what can be changed. parts: what is
    compared; signature: the same, to look a program up by. names: what code must name to come to each part; aliases:
    of some of these others that lead to the same object, and so to what begins with them. numbers:
    Python numbers that are inputs of a program. opaque: the class of what can't be seen into. slots: of these two the
    holder and the key where each is, None for a part of a tuple. paths: by id. storages: by id, path and offset of the
    first tensor over each. shared: of objects that another path leads to, and tensors that share memory. code: of the
    functions met. is_lasting: whether a Fingerprint tells that all is as it was. again: of this, what each call finds.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.paths: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.generators: dict[str, Generator] = {}
        self.holders: dict[str, Holder] = {}
        self.parts: dict[str, Part] = {}
        self.names: dict[str, Names] = {}
        self.aliases: dict[Names, tuple[Names, ...]] = {}
        self.numbers: dict[str, Any] = {}
        self.opaque: dict[str, str] = {}
        self.slots: dict[str, tuple[Holder, Any] | None] = {}
        self.is_lasting = True
        self.code: set[types.CodeType] = set()
        self.storages: dict[int, tuple[str, int]] = {}
        self.shared: set[str] = set()
        self.again = self
        self.signature: tuple = ()

    def used(self, ran: Container[str], looked_at: Container[str]) -> dict[str, Part]:
        """Returns the parts to which code that names `ran` can come.

        looked_at: the paths of the tensors whose shapes, dtypes or elements count.
        """
        verdicts: dict[Names, bool] = {}
        found = {}
        for path, part in self.parts.items():
            names = self.names[path]
            if names not in verdicts:
                verdicts[names] = self.leads(names, ran)
            if not verdicts[names] or (type(part) is TensorKind and path not in looked_at):
                continue
            if type(part) is Keys:
                part = Keys(key for key in part if key in ran)
            elif type(part) is GradientKind and part.has_grad and GradientOf(path) not in ran:
                part = _usual(*part._replace(has_grad=False))
            found[path] = part
        return found

    def leads(self, names: Names, ran: Container[str], but: tuple[Names, ...] = ()) -> bool:
        """Returns whether code that names `ran` can come to a part, by these names or by aliases of the first of them.

        Example: trainer.cfg is model.config, too. Code that never names cfg comes to (trainer, cfg, scale) by
        (trainer, model, config) and scale. but: names that are being looked at.
        """
        if all(map(ran.__contains__, names)):
            return True
        for i in range(len(names), -1, -1):
            if not self.aliases or (i < len(names) and names[i] not in ran):
                break
            for other in self.aliases.get(names[:i], ()):
                if other not in but and self.leads(other, ran, (*but, other)):
                    return True
        return False
