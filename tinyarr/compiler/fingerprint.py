"""Fingerprint: whether all that a walk found is still as it was, without walking again."""

from __future__ import annotations

import operator
import types
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from .capture import Capture
from .holders import Attributes, ClassAttributes, Entries, Holder, Items, Members

_FIELDS: Sequence[Callable] = tuple(
    map(operator.attrgetter, ("array", "grad", "node", "_hooks", "_requires_grad", "_has_wide_grad"))
)
_FUNCTION = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")
_FACTORY = operator.attrgetter("default_factory")
_DICT = operator.attrgetter("__dict__")
_BASES = operator.attrgetter("__bases__")
_LONG = 1000  # elements of a list that is compared by itself


class Fingerprint:
    """The objects that a capture's holders, tensors and functions hold, in a few lists that are compared at once."""

    def __init__(self, capture: Capture):
        self._dicts = [h.object for h in capture.holders.values() if isinstance(h, Entries)]
        self._owners = [h.owner for h in capture.holders.values() if type(h) is Attributes]
        sequences = [h.object for h in capture.holders.values() if type(h) in (Items, Members)]
        self._sequences = [x for x in sequences if len(x) < _LONG]
        self._long = [(x, tuple(x)) for x in sequences if len(x) >= _LONG]
        self._kinds = [h.object for h in capture.holders.values() if type(h) is ClassAttributes]
        self._classes = list(map(vars, self._kinds))
        gathered = (Attributes, Entries, Items, Members, ClassAttributes)
        self._others: list[Holder] = [h for h in capture.holders.values() if type(h) not in gathered]
        self._tensors = list(capture.tensors.values())
        self._functions = [x for x in capture.objects.values() if type(x) is types.FunctionType]
        self._objects = list(capture.objects.values())
        self._factories = [x for x in self._objects if isinstance(x, defaultdict)]
        self._values, self._keys, self._contents = self._look()

    def _look(self) -> tuple[list[Any], list[Any], list[Any]]:
        values = [
            *chain.from_iterable(map(dict.values, self._dicts)), *chain.from_iterable(self._sequences),
            *chain.from_iterable(held.values() for held in self._classes),
            *chain.from_iterable(map(field, self._tensors) for field in _FIELDS),
            *chain.from_iterable(map(_FUNCTION, self._functions)), *map(type, self._objects),
            *map(_FACTORY, self._factories), *map(_DICT, self._owners), *map(_BASES, self._kinds),
        ]  # fmt: skip
        keys = [
            *map(len, self._sequences), *map(len, self._dicts), *chain.from_iterable(self._dicts),
            *map(len, self._classes), *chain.from_iterable(self._classes),
        ]  # fmt: skip
        return values, keys, [h.contents() for h in self._others]

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        values, keys, contents = self._look()
        return (
            len(values) == len(self._values)
            and all(map(operator.is_, values, self._values))
            and len(keys) == len(self._keys)
            and all(map(_is_one_key, keys, self._keys))
            and all(map(_are_one, contents, self._contents))
            and all(len(x) == len(then) and all(map(operator.is_, x, then)) for x, then in self._long)
        )


def _is_one_key(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and type(a) in (str, int) and a == b)


def _are_one(now: dict[Any, Any], then: dict[Any, Any]) -> bool:
    """Whether two contents of a holder are the same objects, or equal bytes of a buffer."""
    return now.keys() == then.keys() and all(
        x is then[key] or (type(x) is bytes and type(then[key]) is bytes and x == then[key]) for key, x in now.items()
    )
