"""DataLoader: shuffled batches of a data set's items, the same in each run and with any number of workers. Floor 5."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..device import Device
from ..errors import ArgumentError, ShapeError, whole_number
from ..random import Generator, use_generator
from ..tensor import Tensor
from ..trees import mapped, sequence_like
from .workers import in_order


class Dataset(Protocol):
    """Items by number, each an array, a number, a string, or a tuple, list or dict of these: a list of them will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TensorDataset:
    """Rows of tensors or arrays of one length: item i is the tuple of their rows i, as NumPy arrays."""

    def __init__(self, *tensors: Any):
        self.arrays = [t.numpy() if isinstance(t, Tensor) else np.asarray(t) for t in tensors]
        lengths = [len(a) for a in self.arrays]
        if len(set(lengths)) != 1:
            raise ShapeError(f"TensorDataset: tensors have {lengths} rows: give one or more, all of one length")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, ...]:
        return tuple(a[index] for a in self.arrays)


class DataLoader:
    """Batches of a data set: `for x, y in DataLoader(dataset, batch_size=32, shuffle=True)`.

    Each pass is an epoch. With `shuffle` its order is a function of `seed` and `epoch`, the number of the pass, alone.
    What an item draws from the default generator is a function of these and its number. The last batch is smaller where
    the batch size doesn't divide the number of items, or with `drop_last` left out. `collate_fn` makes a batch of a
    list of items, and draws as the first of them goes on to; arrays in what it returns become tensors on `device`.

    `num_workers` threads read ahead, or processes if `processes`, for items that take much Python. Batches and their
    order are the same without them: items are made in a context of their own, where the caller's `no_grad` or default
    device don't hold. In processes what an item draws from `random` and `np.random` is a function of seed, epoch and
    number too. A thread ends after the batch that it is making, also where a pass is left.

    Raises ArgumentError for sizes below 1 and a seed outside [0, 2**64). What an item raises is raised with a note that
    says which.

    >>> import tinyarr
    >>> dataset = [(float(i), i % 2) for i in range(5)]
    >>> for x, label in tinyarr.data.DataLoader(dataset, batch_size=2):
    ...     print(x.tolist(), label.tolist())
    [0.0, 1.0] [0, 1]
    [2.0, 3.0] [0, 1]
    [4.0] [0]
    """

    def __init__(
        self, dataset: Dataset, batch_size: int = 1, shuffle: bool = False, *, seed: int = 0, drop_last: bool = False,
        collate_fn: Callable[[list], Any] | None = None, num_workers: int = 0, processes: bool = False,
        device: str | Device | None = None,
    ):  # fmt: skip
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if whole_number("DataLoader", name, value) < least:
                raise ArgumentError(f"DataLoader: {name} is {value}: it must be at least {least}")
        if not 0 <= whole_number("DataLoader", "seed", seed) < 2**64:
            raise ArgumentError(f"DataLoader: seed is {seed}: it must lie in [0, 2**64)")
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"DataLoader: dataset is {type(dataset).__name__}: it must have len() and items by number")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.drop_last, self.collate_fn, self.device = drop_last, collate_fn or collate, device
        self.num_workers, self.processes = num_workers, processes
        self.epoch = self.batch = 0  # the pass, and how many of its batches were given
        self._is_begun = False

    def __len__(self) -> int:
        """The number of batches."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        if self._is_begun:  # and was left
            self.epoch, self.batch = self.epoch + 1, 0
        self._is_begun = True
        key = np.array([self.seed, self.epoch], np.uint64)
        words = np.random.Philox(key=key).random_raw(len(self.dataset))
        order = np.argsort(words, kind="stable") if self.shuffle else np.arange(len(words))
        batches = [order[i * self.batch_size :][: self.batch_size].tolist() for i in range(self.batch, len(self))]
        fetch = _Fetch(self.dataset, self.collate_fn, words, self.processes and self.num_workers > 0)
        with contextlib.closing(in_order(fetch, batches, self.num_workers, self.processes)) as made:
            for batch in made:
                self.batch += 1
                yield mapped(batch, lambda x: _tensor(x, self.device))
        self.epoch, self.batch, self._is_begun = self.epoch + 1, 0, False

    def state_dict(self) -> dict[str, int]:
        """`{"epoch", "batch"}`: the pass, and how many batches of it were given."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next pass go on where another loader was."""
        self.epoch, self.batch, self._is_begun = int(state["epoch"]), int(state["batch"]), False


class _Fetch:
    """Makes a batch of the numbers of its items; workers get it as it is.

    is_alone: it runs in a process of its own, where NumPy's and Python's generators are nobody else's to seed.
    """

    def __init__(self, dataset: Dataset, collate_fn: Callable[[list], Any], words: np.ndarray, is_alone: bool):
        self.dataset, self.collate_fn, self.words, self.is_alone = dataset, collate_fn, words, is_alone

    def __call__(self, numbers: Sequence[int]) -> Any:
        generators = [Generator(int(self.words[i]) >> 1) for i in numbers]
        items = []
        for i, generator in zip(numbers, generators, strict=True):
            try:
                with use_generator(generator):
                    self._seed_others(int(self.words[i]))
                    items.append(self.dataset[i])
            except BaseException as error:
                error.add_note(f"DataLoader: this was raised by item {i} of the dataset")
                raise
        with use_generator(generators[0]):
            return self.collate_fn(items)

    def _seed_others(self, word: int) -> None:
        if self.is_alone:
            random.seed(word)
            np.random.seed([word >> 32, word & 0xFFFFFFFF])


def collate(items: Sequence[Any]) -> Any:
    """Items as one: arrays and numbers stacked, tuples, lists and dicts entry by entry, all else as a list.

    Numbers become int64, float32 if one of them is a float, or bool. Raises ShapeError where arrays differ in shape,
    tuples in length or dicts in their keys.
    """
    first = items[0]
    if isinstance(first, dict):
        if different := sorted({str(key) for item in items for key in item.keys() ^ first.keys()}):
            raise ShapeError(f"collate: not all items have the keys {different}: give them all, or give a collate_fn")
        return {key: collate([item[key] for item in items]) for key in first}
    if isinstance(first, tuple | list):
        if len({len(item) for item in items}) > 1:
            raise ShapeError(f"collate: items have {sorted({len(item) for item in items})} entries: give a collate_fn")
        return sequence_like(first, [collate(entries) for entries in zip(*items, strict=True)])
    if isinstance(first, Tensor):
        return collate([item.numpy() for item in items])
    if not isinstance(first, np.ndarray | np.generic | float | int):
        return list(items)
    weak = (float, int) if any(type(item) is float for item in items) else ()
    arrays = [np.float32(item) if type(item) in weak else np.asarray(item) for item in items]
    if len({a.shape for a in arrays}) > 1:
        found = sorted({a.shape for a in arrays})
        raise ShapeError(f"collate: items have shapes {found}: pad them, or give a collate_fn")
    return np.stack(arrays)


def _tensor(x: Any, device: str | Device | None) -> Any:
    """A tensor of an array of numbers; all else as it is."""
    is_numbers = isinstance(x, np.ndarray) and x.dtype.kind in "biufV"
    return Tensor(x, device=device) if is_numbers else x
