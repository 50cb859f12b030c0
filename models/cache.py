"""The keys and values of the tokens that a model has read: a new token costs one position's work. Floor 1."""

from __future__ import annotations

import tinyarr
from tinyarr import Tensor


class KVCache:
    """For each layer, keys and values (B, H, capacity, D), of which the first `length` positions are filled."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], *, dtype, device):
        self.keys = [tinyarr.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [tinyarr.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.capacity = shape[2]
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values (B, H, T, D) after those it has; returns all of them as views."""
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, T: int) -> None:
        """Counts T new positions, once every layer has written theirs."""
        self.length += T
