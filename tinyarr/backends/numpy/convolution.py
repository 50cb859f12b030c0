"""Windows unfolded, and their sum folded back: a strided copy or addition for each place of the kernel. Floor 2."""

from __future__ import annotations

import functools

import numpy as np

from .registry import kernel


@functools.lru_cache(4096)
def _places(kernel, sizes, positions, stride, dilation, padding) -> list[tuple[tuple, bool, tuple, tuple]]:
    """For each place of a window an index of columns, whether all windows are inside there, which, and what they read.

    Of 3 elements, padded by 1, place 0 of the windows at positions 1 and 2 is inside; with stride 1 they read elements
    0 and 1:

    >>> from tinyarr.backends.numpy.convolution import _places
    >>> _places((2,), (3,), (3,), (1,), (1,), (1,))[0]
    ((slice(None, None, None), 0), False, (Ellipsis, slice(1, 3, None)), (Ellipsis, slice(0, 2, 1)))
    """
    found = []
    for place in np.ndindex(*kernel):
        windows, elements = [], []
        for k, n, m, s, d, p in zip(place, sizes, positions, stride, dilation, padding, strict=True):
            begin = k * d - p  # the element that the first window reads
            first = max(-(begin // s), 0)
            stop = max(min((n - 1 - begin) // s + 1, m), first)
            windows.append(slice(first, stop))
            elements.append(slice(begin + first * s, begin + stop * s, s))
        whole = windows == [slice(0, m) for m in positions]
        found.append(((slice(None), *place), whole, (..., *windows), (..., *elements)))
    return found


@kernel("unfold")
def unfold(x, out, *, kernel, positions, **how):
    x = x.swapaxes(0, 1)
    for place, whole, windows, elements in _places(kernel, x.shape[2:], positions, **how):
        column = out[place]
        if not whole:
            column.fill(0)
        np.copyto(column[windows], x[elements])


def _wide(call):
    """Scratch for half types: the sums in float32."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


@kernel("fold", scratch=_wide)
def fold(columns, out, wide=None, *, sizes, **how):
    total = out if wide is None else wide
    total.fill(0)
    by_channel, axes = total.swapaxes(0, 1), len(sizes)
    kernel, positions = columns.shape[1 : 1 + axes], columns.shape[2 + axes :]
    for place, _, windows, elements in _places(kernel, sizes, positions, **how):
        target = by_channel[elements]
        np.add(target, columns[place][windows], out=target)
    if wide is not None:
        np.copyto(out, wide, casting="unsafe")
