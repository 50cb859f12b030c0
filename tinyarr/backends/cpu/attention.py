"""Attention over one group of heads at a time: their weights, at least one head's T x T, are scratch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .registry import kernel

GROUP = 1 << 20  # elements of the weights held at once


def _heads(q: tuple[int, ...], k: tuple[int, ...]) -> int:
    """Heads of k a group: as many as GROUP allows, at least one."""
    return min(max(GROUP // max(q[-2] * k[-2], 1), 1), k[1])


def _groups(q: np.ndarray, k: np.ndarray, heads: int) -> Iterator[tuple[int, slice, slice, bool]]:
    """(batch, heads of q, heads of k that they share, whether they are the first to share them), group by group."""
    shared = q.shape[1] // max(k.shape[1], 1)
    for b in range(q.shape[0]):
        for h in range(0, k.shape[1], max(heads, 1)):
            end = min(h + heads, k.shape[1])
            for r in range(shared):
                yield b, slice(h * shared + r, end * shared, shared), slice(h, end), r == 0


def _scratch(shapes, dtype, weights: int):
    q, k, v = shapes
    h = _heads(q, k)
    specs = [((h, q[-2], k[-2]), dtype.compute.numpy)] * weights + [((h, q[-2]), dtype.compute.numpy)]
    specs.append(((q[-2], k[-2]), np.bool_))
    if dtype.compute is not dtype:  # each head's operands and result in float32
        specs += [((h, *s[-2:]), np.float32) for s in (q, k, v)] + [((h, q[-2], v[-1]), np.float32)]
    return specs


def _widen(arrays, buffers):
    """The arrays themselves, or float32 copies in scratch where there is any."""
    if not buffers:
        return list(arrays)
    for x, w in zip(arrays, buffers, strict=True):
        np.copyto(w[: len(x)], x, casting="unsafe")
    return [w[: len(x)] for x, w in zip(arrays, buffers, strict=True)]


def _mark(hidden: np.ndarray, causal: bool) -> np.ndarray | None:
    """Which keys each query must not see, for causal attention: those later than it, one of the last positions."""
    if not causal:
        return None
    queries, keys = hidden.shape
    return np.greater(np.arange(keys), np.arange(keys - queries, keys)[:, None], out=hidden)


def _scores(q, k, weights, hidden, scale: float) -> None:
    np.matmul(q, k.swapaxes(-1, -2), out=weights)
    np.multiply(weights, scale, weights)
    if hidden is not None:
        np.copyto(weights, -np.inf, where=hidden)


def _layout(call) -> str:
    """Where a matrix has a single row or column, NumPy's product rounds by the strides: then each must be dense."""
    return "matrices" if any(1 in shape[-2:] for shape in call.in_shapes) else "rows"


@kernel(
    "scaled_dot_product_attention",
    layouts=_layout,
    scratch=lambda call: _scratch(call.in_shapes, call.in_dtypes[0], weights=1),
)
def attention(q, k, v, out, lse, weights, row, hidden, *wide, causal, scale):
    hidden = _mark(hidden, causal)
    for b, h, g, _ in _groups(q, k, len(weights)):
        n = g.stop - g.start
        w, r, total = weights[:n], row[:n], lse[b, h]
        qh, kh, vh = _widen((q[b, h], k[b, g], v[b, g]), wide[:3])
        o = wide[3][:n] if wide else out[b, h]
        _scores(qh, kh, w, hidden, scale)
        np.maximum.reduce(w, axis=-1, out=r)
        np.subtract(w, r[..., None], w)
        np.exp(w, w)
        np.add.reduce(w, axis=-1, out=total)
        np.divide(w, total[..., None], w)
        np.log(total, total)
        np.add(total, r, total)
        np.matmul(w, vh, out=o)
        if wide:
            np.copyto(out[b, h], o, casting="unsafe")


def _gradient_scratch(call):
    _, q, k, v, _, _ = call.in_shapes
    dtype = call.in_dtypes[0]
    h = _heads(q, k)
    shared = h if q[1] != k[1] else 0
    more = [((shared, *s[-2:]), dtype.compute.numpy) for s in (k, v)]
    *specs, hidden = _scratch((q, k, v), dtype, weights=2)[:4]
    specs += [hidden, *more]
    if dtype.compute is not dtype:
        specs += [((h, *s[-2:]), np.float32) for s in (q, k, v, (*q[:-1], v[-1]), (*q[:-1], v[-1]), q, k, v)]
    return specs


@kernel("scaled_dot_product_attention_gradient", layouts=_layout, scratch=_gradient_scratch)
def attention_gradient(
    g, q, k, v, out, lse, dq, dk, dv, weights, slope, row, hidden, more_k, more_v, *wide, causal, scale
):
    """With P the weights: dv = P^T g; dS = P (g v^T - rowsum(g out)) scale; dq = dS k; dk = dS^T q.

    Source: Dao et al. 2022, "FlashAttention", appendix B.2.
    """
    hidden = _mark(hidden, causal)
    for b, h, shared, first in _groups(q, k, len(weights)):
        n = shared.stop - shared.start
        w, s, r = weights[:n], slope[:n], row[:n]
        qh, kh, vh, oh, gh = _widen((q[b, h], k[b, shared], v[b, shared], out[b, h], g[b, h]), wide[:5])
        to_q, to_k, to_v = [x[:n] for x in wide[5:]] if wide else (dq[b, h], dk[b, shared], dv[b, shared])
        _scores(qh, kh, w, hidden, scale)
        np.subtract(w, lse[b, h][..., None], w)
        np.exp(w, w)
        _add_product(w.swapaxes(-1, -2), gh, to_v, more_v[:n], first)
        np.matmul(gh, vh.swapaxes(-1, -2), out=s)
        np.einsum("htd,htd->ht", gh, oh, out=r)
        np.subtract(s, r[..., None], s)
        np.multiply(s, w, s)
        np.multiply(s, scale, s)
        np.matmul(s, kh, out=to_q)
        _add_product(s.swapaxes(-1, -2), qh, to_k, more_k[:n], first)
        if wide:
            for target, x in zip((dq[b, h], dk[b, shared], dv[b, shared]), (to_q, to_k, to_v), strict=True):
                np.copyto(target, x, casting="unsafe")


def _add_product(x, y, total, more, first: bool) -> None:
    """total = x @ y, or total + x @ y for all but the first heads that share it."""
    np.matmul(x, y, out=total if first else more)
    if not first:
        np.add(total, more, total)
