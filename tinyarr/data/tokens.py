"""Token data sets: llm.c's shards on disk, and batches drawn from them in an order fixed by seed and step. Floor 5.

Shards are memory-mapped: whatever their size, only the windows of a batch are ever copied.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import FileError

HEADER_BYTES = 256 * 4  # 256 int32
FORMATS: dict[int, tuple[int, np.dtype]] = {  # magic: version, and a type for ids up to 65,535, or beyond
    20240520: (1, np.dtype("<u2")),
    20240801: (7, np.dtype("<u4")),
}
FEISTEL_ROUNDS = 8  # with 6, the orders of two to four windows were measurably uneven


def read_shards(pattern: str) -> list[np.ndarray]:
    """Opens every llm.c token shard that `pattern` (a path that may hold `*`, `?`, `[]`) matches, by name.

    Returns read-only memory-mapped arrays of uint16 or uint32, one a file, each of shape (tokens,).
    Raises FileNotFoundError where nothing matches, and ValueError for a file whose header or size is wrong.
    Source: llm.c's `.bin`, little-endian: 256 int32 (magic, version, number of tokens, zeros), the tokens.
    """
    paths = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
    if os.path.isdir(pattern):
        example = os.path.join(pattern, "*.bin")
        raise FileNotFoundError(f"read_shards: {pattern} is a folder: give a pattern for its files, as {example!r}")
    if not paths:
        raise FileNotFoundError(
            f"read_shards: no file matches {pattern!r}: check the path, and quote the "
            "pattern so that the shell does not expand it"
        )
    return [_open_shard(path) for path in paths]


def _open_shard(path: str) -> np.ndarray:
    size = os.path.getsize(path)
    if size < HEADER_BYTES:
        raise ValueError(
            f"read_shards: {path}: the file has {size} bytes, expected a header of "
            f"{HEADER_BYTES}: it is not a token shard, or was cut off; write it again"
        )
    magic, version, count = (int(word) for word in np.fromfile(path, "<i4", 3))
    if magic not in FORMATS:
        raise ValueError(
            f"read_shards: {path}: header magic is {magic}, expected 20240520 (uint16 "
            "tokens) or 20240801 (uint32): give llm.c token shards; write_shard makes them"
        )
    expected_version, dtype = FORMATS[magic]
    if version != expected_version:
        raise ValueError(
            f"read_shards: {path}: header version is {version}, expected {expected_version} for "
            f"magic {magic}: make the shard again with write_shard or a current llm.c"
        )
    if count < 1:
        raise ValueError(
            f"read_shards: {path}: the header announces {count} tokens, expected at least 1: "
            f"leave this file out, or write it again"
        )
    expected_size = HEADER_BYTES + count * dtype.itemsize
    if size != expected_size:
        raise ValueError(
            f"read_shards: {path}: the file has {size} bytes, expected {expected_size} for the "
            f"{count} {dtype.name} tokens of its header: it was cut off; copy it again"
        )
    return np.memmap(path, dtype, mode="r", offset=HEADER_BYTES, shape=(count,))


def write_shard(path: str | os.PathLike, tokens: np.ndarray) -> None:
    """Writes `tokens`, a one-dimensional array of uint16 or uint32, as one llm.c token shard.

    The file appears under its name only once it is complete. Raises ValueError for another dtype or shape,
    no tokens at all, or more than the header's int32 can count.
    """
    magic = next((m for m, (_, dtype) in FORMATS.items() if dtype == tokens.dtype), None)
    if magic is None:
        raise ValueError(
            f"write_shard: tokens are {tokens.dtype}, expected uint16 (ids up to 65,535) or "
            f"uint32: convert them with tokens.astype(np.uint16)"
        )
    if tokens.ndim != 1 or not 1 <= tokens.size < 2**31:
        raise ValueError(
            f"write_shard: tokens have shape {tokens.shape}, expected one dimension of 1 to "
            f"2**31 - 1 tokens: flatten them, or spread them over several shards"
        )
    version, dtype = FORMATS[magic]
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = magic, version, tokens.size
    partial = Path(f"{os.fspath(path)}.partial")
    with partial.open("wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype(dtype, order="C", copy=False).data)
    partial.replace(path)


class Batches:
    """Batches of B windows of T tokens and the tokens that follow them, from one or more arrays of token ids.

    An epoch cuts each array into consecutive windows of T tokens, from an offset drawn anew for each epoch,
    and visits every window once in pseudo-random order: each token is a target once, but for fewer than 2 T
    at the two ends of each array. Windows never cross from one array into the next. The order is a function
    of `seed` and of the number of windows drawn before. So a run can go on at any step without saved state,
    and successive batches, or those of several ranks, are together the one batch of their summed size.

    `arrays`, one array of integers of shape (tokens,) or a sequence of them, may be memory-mapped (see
    `read_shards`) and are never copied as a whole. `vocab_size` bounds the token ids; they are checked as
    they are read, so that opening a large data set stays instant. `seed` is in [0, 2**64).

    Raises ValueError where an argument is out of range, or no array has more than T tokens.
    """

    def __init__(
        self,
        arrays: np.ndarray | Sequence[np.ndarray],
        batch_size: int,
        seq_len: int,
        *,
        vocab_size: int,
        seed: int = 0,
    ) -> None:
        self.arrays = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
        self.batch_size, self.seq_len, self.vocab_size, self.seed = batch_size, seq_len, vocab_size, seed
        for name in ("batch_size", "seq_len", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Batches: {name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"Batches: seed is {seed}, expected 0 to 2**64 - 1: give another")
        for number, array in enumerate(self.arrays):
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(
                    f"Batches: {self._name(number)} has shape {array.shape} and dtype "
                    f"{array.dtype}, expected one dimension of integers: give token ids"
                )
        self._file_sizes = [_file_size(array) for array in self.arrays]
        lengths = np.array([array.size for array in self.arrays], np.int64)
        if not (lengths > seq_len).any():
            raise ValueError(
                f"Batches: the longest of {len(lengths)} token arrays has "
                f"{lengths.max(initial=0)} tokens, expected at least seq_len + 1 = {seq_len + 1}"
                ": give more text or a smaller seq_len"
            )
        # One window fewer than fit leaves room to move all of them by up to T - 1 tokens between epochs.
        windows = np.where(lengths > seq_len, np.maximum(lengths // seq_len - 1, 1), 0)
        self._offsets = np.clip(lengths - windows * seq_len, 1, seq_len).tolist()
        self._ends = windows.cumsum()
        self._ordered_ends = (np.maximum(lengths - 1, 0) // seq_len).cumsum()

    @property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return int(self._ends[-1])

    def batch(self, step: int, *, rank: int = 0, ranks: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The training batch of `step` (0, 1, ...) for `rank` of `ranks`: tokens and targets, int64 (B, T).

        `targets[b, t]` is the token after `tokens[b, t]`. Of the `ranks * B` windows of a step, each rank
        gets its own B. Raises ValueError for a negative step, a rank out of range, or a token id outside the
        vocabulary, FileError for a memory-mapped file that has been cut short.
        """
        if step < 0 or not 0 <= rank < ranks:
            raise ValueError(
                f"Batches.batch: step is {step}, rank {rank} of {ranks}, expected step >= 0 and "
                "0 <= rank < ranks: count both from 0"
            )
        drawn = (step * ranks + rank) * self.batch_size + np.arange(self.batch_size)
        epochs, indices = np.divmod(drawn, self.windows)
        numbers, starts = np.empty_like(indices), np.empty_like(indices)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            numbers[rows], starts[rows] = self._shuffled(int(epoch), indices[rows])
        return self._read(numbers, starts)

    def walk(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every window once, in the order of the text, in batches as from `batch`: for a validation loss.

        The last batch has fewer than B rows where B does not divide the number of windows, so weigh each
        batch's mean loss by `targets.size`. Fewer than T tokens at the end of each array are left out.
        """
        total = int(self._ordered_ends[-1])
        for first in range(0, total, self.batch_size):
            indices = np.arange(first, min(first + self.batch_size, total))
            yield self._read(*self._locate(indices, self._ordered_ends))

    def _shuffled(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Array number and first token of the windows that `epoch` visits at `indices`."""
        key = np.array([self.seed, epoch], np.uint64)
        offset, *round_keys = np.random.Philox(key=key).random_raw(1 + FEISTEL_ROUNDS).tolist()
        numbers, starts = self._locate(_permute(indices, self.windows, round_keys), self._ends)
        return numbers, starts + np.array([offset % choices for choices in self._offsets])[numbers]

    def _locate(self, indices: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Array number and first token of each window, counted through arrays whose windows end at `ends`."""
        numbers = np.searchsorted(ends, indices, side="right")
        first_windows = np.concatenate([[0], ends[:-1]])
        return numbers, (indices - first_windows[numbers]) * self.seq_len

    def _read(self, numbers: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = np.empty((len(starts), self.seq_len + 1), np.int64)
        for window, number, start in zip(windows, numbers, starts):
            # To read a map beyond the end of its file would end the process.
            if _file_size(self.arrays[number]) < self._file_sizes[number]:
                raise FileError(
                    f"Batches: {self._name(number)} has {_file_size(self.arrays[number])} bytes, and had "
                    f"{self._file_sizes[number]}: another program has cut it short; write it again"
                )
            window[:] = self.arrays[number][start : start + self.seq_len + 1]
        wrong = np.argwhere((windows < 0) | (windows >= self.vocab_size))
        if len(wrong):
            row, column = wrong[0]
            raise ValueError(
                f"Batches: {self._name(numbers[row])}: token {starts[row] + column} is "
                f"{windows[row, column]}, expected an id from 0 to {self.vocab_size - 1}: the "
                "data was made with another tokenizer; use that one, or raise vocab_size"
            )
        return windows[:, :-1].copy(), windows[:, 1:].copy()

    def _name(self, number: int) -> str:
        return str(getattr(self.arrays[number], "filename", None) or f"array {number}")


def _file_size(array: np.ndarray) -> int:
    """The bytes that the file of a memory-mapped array has now; 0 for another array."""
    mapped = getattr(array, "_mmap", None)
    return 0 if mapped is None else mapped.size()


def _permute(indices: np.ndarray, size: int, keys: Sequence[int]) -> np.ndarray:
    """The images of `indices` under a pseudo-random permutation of range(size) that is never held in memory.

    A Feistel network, one round a key, permutes the numbers of an even count of bits; what falls outside the
    range is permuted again until it falls inside. Source: Luby & Rackoff 1988 (the network); Black & Rogaway,
    Ciphers with Arbitrary Finite Domains, 2002 (cycle walking).
    """
    half = max(2, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    images = indices.astype(np.uint64)
    outside = np.ones(images.shape, bool)
    while outside.any():
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        images[outside] = left << half | right
        outside = images >= size
    return images.astype(np.int64)


def _mix(words: np.ndarray) -> np.ndarray:
    """Spreads every bit of each uint64 over all 64: the last step of SplitMix64 (Steele, Lea & Flood 2014)."""
    words = (words ^ (words >> 30)) * 0xBF58476D1CE4E5B9
    words = (words ^ (words >> 27)) * 0x94D049BB133111EB
    return words ^ (words >> 31)
