"""Windows unfolded, and their sum folded back: a strided copy or addition for each place of the kernel. Floor 2."""

from __future__ import annotations

import numpy as np

from .registry import kernel

Slices = tuple[slice, ...]


def _inside(place, sizes, positions, stride, dilation, padding) -> tuple[Slices, Slices]:
    """Returns the positions whose windows have this place of theirs inside the axes, and what they read there.

    Of an axis of 5 elements, padded by 1, place 0 of the windows at positions 1 to 4 is inside; with stride 1 they read
    elements 0 to 3:

    >>> from tinyarr.backends.numpy.convolution import _inside
    >>> _inside((0,), (5,), (5,), (1,), (1,), (1,))
    ((slice(1, 5, None),), (slice(0, 4, 1),))
    """
    windows, elements = [], []
    for k, n, m, s, d, p in zip(place, sizes, positions, stride, dilation, padding, strict=True):
        begin = k * d - p  # the element that the first window reads
        first = max(-(begin // s), 0)
        stop = max(min((n - 1 - begin) // s + 1, m), first)
        windows.append(slice(first, stop))
        elements.append(slice(begin + first * s, begin + stop * s, s))
    return tuple(windows), tuple(elements)


@kernel("unfold")
def unfold(x, out, *, kernel, positions, stride, dilation, padding):
    x = x.swapaxes(0, 1)
    for place in np.ndindex(*kernel):
        windows, elements = _inside(place, x.shape[2:], positions, stride, dilation, padding)
        column = out[(slice(None), *place)]
        if windows != tuple(slice(0, m) for m in positions):
            column.fill(0)
        np.copyto(column[(..., *windows)], x[(..., *elements)])


def _wide(call):
    """Scratch for half types: the sums in float32."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


@kernel("fold", scratch=_wide)
def fold(columns, out, wide=None, *, sizes, stride, dilation, padding):
    total = out if wide is None else wide
    total.fill(0)
    by_channel, axes = total.swapaxes(0, 1), len(sizes)
    positions = columns.shape[-axes:]
    for place in np.ndindex(*columns.shape[1 : 1 + axes]):
        windows, elements = _inside(place, sizes, positions, stride, dilation, padding)
        target = by_channel[(..., *elements)]
        np.add(target, columns[(slice(None), *place, ..., *windows)], out=target)
    if wide is not None:
        np.copyto(out, wide, casting="unsafe")
