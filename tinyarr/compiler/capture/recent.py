"""The last call of a compiled function, and a quick way to see that the next one is like it. Floor 2.

A walk makes milliseconds of Python for a model. What it found still holds if each holder holds the very same objects,
each tensor the same memory, and the arguments are the same objects or tensors of the same kinds. That is compared here,
a list for each kind of holder, at some 10 to 30 ns for each attribute.
"""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ...random import default_generator
from ...tensor import Tensor
from ..trace.calls import Bound
from .assumptions import HEAP_TYPE
from .captured import GRADIENT, Capture, GradientKind, TensorKind, item_path
from .holders import (
    Attributes,
    Cell,
    ClassAttributes,
    Entries,
    Items,
    Members,
    Variable,
    holds_the_same,
    is_one_key,
)  # fmt: skip

_FIELDS: Sequence[Callable] = tuple(
    map(operator.attrgetter, ("grad", "node", "_hooks", "_requires_grad", "_has_wide_grad"))
)
_FUNCTION = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")
_FACTORY = operator.attrgetter("default_factory")
_BASES = operator.attrgetter("__bases__")
_GATHERED = (Attributes, Entries, Items, Members, ClassAttributes, Cell, Variable)


class Fingerprint:
    """The objects that a capture's holders, tensors and functions hold.

    Those that Python may set are compared by identity: by their addresses, which are the bytes of an array of objects.
    Names, sizes, classes and arrays are compared by a list's `==`, which is faster still and runs nobody's code here.
    """

    def __init__(self, capture: Capture, with_gradients: bool):
        """with_gradients: whether it counts which tensors have gradients, and which."""
        holders = capture.holders.values()
        self._with_gradients = with_gradients
        self._objects = [
            x for x in capture.objects.values() if type(x).__flags__ & HEAP_TYPE and not isinstance(x, Tensor)
        ]
        self._kinds = [h.object for h in holders if type(h) is ClassAttributes]
        dicts = [h.object for h in holders if type(h) is Entries]
        self._keys = [(OrderedDict if isinstance(x, OrderedDict) else dict).keys(x) for x in dicts]
        attributes = [*(h.object for h in holders if type(h) is Attributes), *map(vars, self._kinds)]
        self._names = [x.keys() for x in attributes]
        self._values = [*map(dict.values, dicts), *(x.values() for x in attributes)]
        self._owners = [h.owner for h in holders if type(h) is Attributes]
        self._sequences = [h.object for h in holders if type(h) in (Items, Members)]
        self._cells = [h.object for h in holders if type(h) is Cell]
        self._variables = [(h.object, h.name) for h in holders if type(h) is Variable]
        self._others = [h for h in holders if type(h) not in _GATHERED]
        self._functions = [x for x in capture.objects.values() if type(x) is types.FunctionType]
        self._factories = [x for x in dicts if isinstance(x, defaultdict)]
        self._tensors = [*capture.tensors.values()]
        bare = [x for x in self._tensors if x.node is x._hooks is None and not x._has_wide_grad]
        bare = [x for x in bare if x.grad is None] if with_gradients else bare
        self._leaves = [x for x in bare if x._requires_grad]
        self._buffers = [x for x in bare if not x._requires_grad]
        known = set(map(id, bare))
        self._unusual = [x for x in self._tensors if id(x) not in known]
        self._equals = self._equal()
        self._known = [*chain.from_iterable(self._keys)]
        self._contents = [h.contents() for h in self._others]
        self._held = np.fromiter(self._identical(), object)  # which keeps them, and so their addresses are theirs
        self._addresses = self._held.tobytes()

    def holds(self) -> bool:
        """Returns whether all of it is as it was."""
        return (
            self._equal() == self._equals
            and all(map(is_one_key, chain.from_iterable(self._keys), self._known))
            and self._are_bare()
            and np.fromiter(self._identical(), object, len(self._held)).tobytes() == self._addresses
            and all(map(holds_the_same, self._others, self._contents))
        )

    def _equal(self) -> list[list[Any]]:
        return [
            [*chain.from_iterable(self._names)], [*map(len, self._values)], [*map(len, self._sequences)],
            [x.array for x in self._tensors], [*map(type, self._tensors)], [*map(type, self._objects)],
        ]  # fmt: skip

    def _identical(self) -> Iterator[Any]:
        """Yields the objects that must be the same as then; as many each time, if what is in _equal is the same."""
        return chain(
            chain.from_iterable(self._values), chain.from_iterable(self._sequences),
            [x.__dict__ for x in self._owners], chain.from_iterable(map(_FUNCTION, self._functions)),
            map(_contents_of, self._cells), [names.get(name, _NOTHING) for names, name in self._variables],
            map(_FACTORY, self._factories), map(_BASES, self._kinds),
            *(map(field, self._unusual) for field in _FIELDS[not self._with_gradients :]),
        )  # fmt: skip

    def _are_bare(self) -> bool:
        """Returns whether no tensor without a gradient, history or hook has got one, or another part in gradients."""
        counts = self._with_gradients
        for x in self._leaves:
            if (counts and x.grad is not None) or x.node is not None or x._hooks is not None or x._has_wide_grad:
                return False
            if not x._requires_grad:
                return False
        # History, hooks and a wide gradient come with requires_grad. A generator takes twice as long as the loop.
        for x in self._buffers:  # noqa: SIM110
            if (counts and x.grad is not None) or x._requires_grad:
                return False
        return True


_NOTHING = object()


def _contents_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _NOTHING


_TENSOR, _NUMBER, _UNREAD, _SAME = range(4)  # what may come as an argument: another tensor or number of its kind, ...


class Recent:
    """The last call: its capture, less the tensors among its arguments, and its program.

    It must be made before the program runs, which may change what was captured.
    """

    def __init__(self, capture: Capture, program: Any, mode: tuple, args: tuple, kwargs: dict[str, Any]):
        self.program = program
        self._mode = mode
        self._default = default_generator()
        self._capture = capture
        self._keywords = [*kwargs]
        paths = [*(f"arguments[{i}]" for i in range(len(args))), *(item_path("keywords", key) for key in kwargs)]
        self._given = [self._expected(path, x) for path, x in zip(paths, (*args, *kwargs.values()))]
        self._passing = {path for path, how, _ in self._given if how == _TENSOR}
        for path in self._passing:
            del capture.objects[path], capture.tensors[path]
        with_gradients = program.asks_for_gradients
        if not with_gradients:  # those of before the call may go
            for path in [path for path in capture.tensors if program.ignores(path, capture)]:
                del capture.objects[path], capture.tensors[path]
        self._bound = Bound(program, capture)
        self._fingerprint = Fingerprint(capture, with_gradients)

    def again(self, mode: tuple, args: tuple, kwargs: dict[str, Any]) -> Bound | None:
        """Returns the inputs of a call that is like the last one, or None for another."""
        if mode != self._mode or default_generator() is not self._default or not self._capture.is_lasting:
            return None
        bound = self.bound(args, kwargs)
        return bound if bound is not None and self._fingerprint.holds() else None

    def bound(self, args: tuple, kwargs: dict[str, Any]) -> Bound | None:
        """Returns the inputs of a call with these arguments, if they are like those of the last one."""
        if len(args) + len(kwargs) != len(self._given) or [*kwargs] != self._keywords:
            return None
        others: dict[str, Any] = {}
        for (path, how, like), x in zip(self._given, (*args, *kwargs.values()) if kwargs else args):
            if how == _TENSOR:
                if not (isinstance(x, Tensor) and self._is_like(like, x, others)):
                    return None
            elif how == _NUMBER:
                if type(x) is not like:
                    return None
            elif how == _UNREAD or x is like:
                continue
            else:
                return None
            others[path] = x
        return self._bound.with_others(others) if others else self._bound

    def _expected(self, path: str, x: Any) -> tuple[str, int, Any]:
        """Returns how an argument may differ at the next call, and the value that it is compared with."""
        parts, numbers, shared = self._capture.parts, self._capture.numbers, self._capture.shared
        if path in numbers:
            return path, _NUMBER, type(x)
        if path not in parts:
            return path, _UNREAD, None
        part, gradient = parts[path], parts.get(path + GRADIENT)
        is_alone = type(part) is TensorKind and path not in shared and self._capture.objects.get(path) is x
        if not is_alone or gradient is None or gradient.has_grad or gradient.has_hooks:
            return path, _SAME, x
        return path, _TENSOR, ((part.shape, part.dtype, part.device, part.strides), gradient)

    def _is_like(self, like: Any, x: Tensor, others: dict[str, Any]) -> bool:
        """Returns whether a tensor is of the same kind and shares nothing with what was captured or comes with it."""
        a, known = x.array, self._capture
        if (a.shape, a.dtype, a.device, a.strides) != like[0] or GradientKind.of(x) != like[1]:
            return False
        if any(isinstance(y, Tensor) and y.array.storage is a.storage for y in others.values()):
            return False
        # The last call's own have gone, and others may now have their ids.
        path, place = known.paths.get(id(x)), known.storages.get(id(a.storage))
        return (path is None or path in self._passing) and (place is None or place[0] in self._passing)
