"""Downloads: copies of arrays from a GPU to the host, begun before the elements are asked for. Floor 3."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from ....array import Array, Storage


class Download(NamedTuple):
    """`values` are there once `event` has come to pass."""

    event: Any
    values: np.ndarray


class Downloads:
    """Downloads of each storage's elements as they are now; older ones go when the next is kept.

    There are none of memory that other libraries see, for no version counts what they write.
    """

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[Storage, tuple[int, dict[tuple, Download]]] = WeakKeyDictionary()
        self._shared: WeakSet[Storage] = WeakSet()

    def share(self, storage: Storage) -> None:
        """Forgets the downloads of a storage, and keeps none from now on: other libraries see it."""
        self._shared.add(storage)
        self._copies.pop(storage, None)

    def wants(self, array: Array) -> bool:
        """Returns whether a copy of an array may be kept, and there is none."""
        return array.storage not in self._shared and self.find(array) is None

    def find(self, array: Array) -> Download | None:
        """The copy of an array, unless it was written since."""
        version, copies = self._copies.get(array.storage, (-1, {}))
        return copies.get((array.view, array.dtype)) if version == array.storage.version else None

    def keep(self, array: Array, copy: Download) -> None:
        version, copies = self._copies.get(array.storage, (-1, {}))
        if version != array.storage.version:
            copies = {}
            self._copies[array.storage] = array.storage.version, copies
        copies[array.view, array.dtype] = copy
