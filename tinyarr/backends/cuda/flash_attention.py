"""Attention by the kernel of our own, in bfloat16 with heads of 64 or 128.

Its floor is 4 B H T S D operations forward, 10 backward (of which it makes 14), half of that where causal, at the rate
of the tensor cores' mma instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import dtypes, views
from .registry import Input, Launch, Operand, Output, Plan, Scratch, Source

OWNED, THREADS = 128, 256  # rows of the tile that a block owns, and its threads (flash_attention.cu)
FORWARD_TILE = 64  # rows of the tiles that a block walks over
BACKWARD_TILE = {64: 64, 128: 32}  # by head size: what leaves the sums in registers


def plan(inputs: Sequence[Operand], outputs: Sequence[Operand], *, causal: bool, scale: float) -> Plan | None:
    """Attention (q, k, v -> out, lse) or its gradient (g, q, k, v, out, lse -> dq, dk, dv); None where it can't be.

    The operands' rows begin at multiples of 16 bytes; the outputs, out and lse are dense.
    """
    backward = len(inputs) == 6
    q, k, v = inputs[1:4] if backward else inputs
    D = q.shape[-1]
    if q.dtype is not dtypes.bfloat16 or D not in (64, 128) or v.shape[-1] != D or scale <= 0 or 0 in q.shape:
        return None
    return (_backward if backward else _forward)(inputs, causal, scale)


def _launch(
    function: str, rows: int, heads: int, B: int, D: int, tile: int, owned_tiles: int, causal: bool, arguments: tuple
) -> Launch:
    macros = (("D", str(D)), ("TILE", str(tile)), ("CAUSAL", str(int(causal))))
    shared = (owned_tiles * OWNED + 4 * tile) * D * 2  # tiles that are walked over are double, and of two operands
    source = Source(("types.cuh", "flash_attention.cu"), macros)
    return Launch(source, function, (-(-rows // OWNED), heads, B), (THREADS, 1, 1), arguments, shared)


def _strides(x: Operand) -> np.ndarray:
    """The struct Strides: batch, head, row."""
    return np.array(x.strides[:3], np.int64)


def _forward(inputs: Sequence[Operand], causal: bool, scale: float) -> Plan:
    q, k, v = inputs
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    sizes = (*map(_strides, inputs), np.int32(T), np.int32(S), np.int32(H // G), np.float32(scale))
    arguments = (Output(0), Output(1), *(Input(i) for i in range(3)), *sizes)
    return Plan([_launch("attention", T, H, B, D, FORWARD_TILE, 1, causal, arguments)])


def _backward(inputs: Sequence[Operand], causal: bool, scale: float) -> Plan:
    g, q, k, v, _, _ = inputs
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    rows, delta = views.size(q.shape[:3]), Scratch(0)
    source = Source(("types.cuh", "flash_attention.cu"), (("D", str(D)), ("TILE", "64"), ("CAUSAL", "0")))
    sums = (delta, Input(0), Input(4), _strides(g), np.int32(T), np.int32(H), np.int64(rows))
    sizes = (*map(_strides, (g, q, k, v)), np.int32(T), np.int32(S), np.int32(H // G), np.float32(scale))
    read = (*(Input(i) for i in range(4)), Input(5), delta, *sizes)
    tile = BACKWARD_TILE[D]
    steps = [
        Launch(source, "row_products", (-(-rows // 8), 1, 1), (256, 1, 1), sums),
        _launch("keys_gradient", S, G, B, D, tile, 2, causal, (Output(1), Output(2), *read)),
        _launch("queries_gradient", T, H, B, D, tile, 2, causal, (Output(0), *read)),
    ]
    return Plan(steps, (4 * rows,))
