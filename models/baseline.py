"""Baseline by counting: a byte n-gram table, the figure that a trained model has to beat. Floor 5."""

from __future__ import annotations

import numpy as np

CONTEXT = 3


def nats_per_byte(train: bytes, validation: bytes, context: int = CONTEXT) -> float:
    """Mean of -log p(byte | the `context` bytes before it) over `validation`, from the counts in `train`.

    Contexts of every length are interpolated as Witten and Bell do, from none (256 equally likely bytes) up:

        p(w | h) = (count(h w) + kinds(h) p(w | h')) / (count(h) + kinds(h))

    where h' is h without its first byte, count(h) how often h is followed by a byte, and kinds(h) by how many
    different ones. A context that `train` does not have leaves p(w | h') as it is. `context` is at most 6.

    Raises ValueError where one of the two texts is empty.
    Source: Witten & Bell 1991, method C, interpolated as by Chen & Goodman 1998.
    """
    if not train or not validation:
        raise ValueError(f"nats_per_byte: {len(train)} bytes to count and {len(validation)} to predict, "
                         f"expected at least one of each: give a longer text")
    p = np.full(len(validation), 1 / 256)
    for length in range(1, min(context + 1, len(train), len(validation)) + 1):
        grams, counts = np.unique(_grams(train, length), return_counts=True)
        contexts, first, kinds = np.unique(grams >> 8, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)

        wanted = _grams(validation, length)
        count = _look_up(wanted, grams, counts)
        kind = _look_up(wanted >> 8, contexts, kinds)
        total = _look_up(wanted >> 8, contexts, totals)
        # The first bytes of the text have fewer before them: they keep what the shorter contexts say.
        shorter = p[length - 1 :]
        np.divide(count + kind * shorter, total + kind, out=shorter, where=total > 0)
    return float(-np.log(p).mean())


def _grams(text: bytes, length: int) -> np.ndarray:
    """Each run of `length` bytes as one integer whose low byte is the last: (bytes - length + 1,) int64."""
    values = np.frombuffer(text, np.uint8).astype(np.int64)
    grams = np.zeros(len(values) - length + 1, np.int64)
    for position in range(length):
        grams = grams << 8 | values[position : position + len(grams)]
    return grams


def _look_up(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value that belongs to each wanted key, 0 for a key that is not among the sorted `keys`."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
