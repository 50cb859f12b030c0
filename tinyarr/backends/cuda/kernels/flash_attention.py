"""Attention by the kernel of our own, in bfloat16 with heads of 64 or 128. Floor 3.

Its floor is 4 B H T S D operations forward, 10 backward (of which it makes 14), half of that where causal, at the rate
of the tensor cores' mma instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .... import dtypes, views
from ..planning.registry import Input, Launch, LaunchPlan, Operand, Output, Scratch, Source


class Tiling(NamedTuple):
    """Warps of a block, bands of 16 rows that a warp owns, and rows of the tiles that the block walks over."""

    warps: int
    bands: int
    tile: int


# By kernel and head size: what leaves the sums in registers, and was the fastest on an H100.
TILINGS = {
    ("attention", 64): Tiling(4, 2, 96), ("attention", 128): Tiling(4, 2, 48),
    ("keys_gradient", 64): Tiling(4, 1, 128), ("keys_gradient", 128): Tiling(4, 1, 64),
    ("queries_gradient", 64): Tiling(4, 2, 64), ("queries_gradient", 128): Tiling(4, 2, 32),
}  # fmt: skip


def plan(inputs: Sequence[Operand], outputs: Sequence[Operand], *, causal: bool, scale: float) -> LaunchPlan | None:
    """Attention (q, k, v -> out, lse) or its gradient (g, q, k, v, out, lse -> dq, dk, dv); None where it can't be.

    The operands' rows begin at multiples of 16 bytes; the outputs, out and lse are dense.
    """
    backward = len(inputs) == 6
    q, k, v = inputs[1:4] if backward else inputs
    D = q.shape[-1]
    if q.dtype is not dtypes.bfloat16 or D not in (64, 128) or v.shape[-1] != D or scale <= 0 or 0 in q.shape:
        return None
    dense = [*outputs, *inputs[4:]] if backward else outputs
    assert all(x.strides == views.contiguous_strides(x.shape) for x in dense), "they are stored and read in rows"
    return (_backward if backward else _forward)(inputs, causal, scale)


def _source(D: int, tiling: Tiling, causal: bool) -> Source:
    sizes = {"D": D, "WARPS": tiling.warps, "BANDS": tiling.bands, "TILE": tiling.tile, "CAUSAL": int(causal)}
    return Source(("types.cuh", "flash_attention.cu"), tuple((name, str(n)) for name, n in sizes.items()))


def _launch(
    function: str, rows: int, heads: int, B: int, D: int, owned_tiles: int, causal: bool, arguments: tuple
) -> Launch:
    tiling = TILINGS[function, D]
    owned = 16 * tiling.bands * tiling.warps
    shared = (owned_tiles * owned + 4 * tiling.tile) * D * 2  # tiles walked over are double, and of two operands
    grid, block = (-(-rows // owned), heads, B), (32 * tiling.warps, 1, 1)
    return Launch(_source(D, tiling, causal), function, grid, block, arguments, shared)


def _strides(x: Operand) -> np.ndarray:
    """The struct Strides: batch, head, row."""
    return np.array(x.strides[:3], np.int64)


def _forward(inputs: Sequence[Operand], causal: bool, scale: float) -> LaunchPlan:
    q, k, v = inputs
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    sizes = (*map(_strides, inputs), np.int32(T), np.int32(S), np.int32(H // G), np.float32(scale))
    arguments = (Output(0), Output(1), *(Input(i) for i in range(3)), *sizes)
    return LaunchPlan([_launch("attention", T, H, B, D, 1, causal, arguments)])


def _backward(inputs: Sequence[Operand], causal: bool, scale: float) -> LaunchPlan:
    g, q, k, v, _, _ = inputs
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    rows, delta = views.size(q.shape[:3]), Scratch(0)
    source = _source(D, TILINGS["queries_gradient", D], causal)
    sums = (delta, Input(0), Input(4), _strides(g), np.int32(T), np.int32(H), np.int64(rows))
    sizes = (*map(_strides, (g, q, k, v)), np.int32(T), np.int32(S), np.int32(H // G), np.float32(scale))
    read = (*(Input(i) for i in range(4)), Input(5), delta, *sizes)
    steps = [
        Launch(source, "row_products", (-(-rows // 8), 1, 1), (256, 1, 1), sums),
        _launch("keys_gradient", S, G, B, D, 2, causal, (Output(1), Output(2), *read)),
        _launch("queries_gradient", T, H, B, D, 2, causal, (Output(0), *read)),
    ]
    return LaunchPlan(steps, (4 * rows,))
