"""Copies on the host of what lies on a GPU, begun before someone asks for the elements."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ...array import Array, Storage


class HostCopy(NamedTuple):
    """`values` are there once `event` has come to pass."""

    event: Any
    values: np.ndarray


class HostCopies:
    """For each storage the copies of its elements as they are now; older ones go when the next is kept."""

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[Storage, tuple[int, dict[tuple, HostCopy]]] = WeakKeyDictionary()

    def find(self, array: Array) -> HostCopy | None:
        """The copy of an array, unless it was written since."""
        version, copies = self._copies.get(array.storage, (-1, {}))
        return copies.get((array.view, array.dtype)) if version == array.storage.version else None

    def keep(self, array: Array, copy: HostCopy) -> None:
        version, copies = self._copies.get(array.storage, (-1, {}))
        if version != array.storage.version:
            copies = {}
            self._copies[array.storage] = array.storage.version, copies
        copies[array.view, array.dtype] = copy
