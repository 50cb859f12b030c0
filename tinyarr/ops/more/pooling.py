"""Pooling: the largest, or the mean, of each sliding window. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ... import dtypes
from ...errors import ArgumentError, DtypeError
from ...tensor import Tensor
from ..primitive import apply
from ..reduce import max, mean
from ..shape import reshape, swapaxes
from .convolution import Sizes, _unfold, for_each_axis, require_spatial, windows
from .tiling import pad


def max_pool2d(
    x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1
) -> Tensor:
    """The largest element of each window of x (B, C, H, W), NaN if there is one: (B, C, H', W'), sizes as for conv2d.

    The stride is the kernel_size, unless given. What is padded is never the largest. Ties split the gradient evenly, as
    in max (PyTorch gives it to the first). Raises ArgumentError for padding above half of the kernel_size, DtypeError
    unless x is floating of 16 bits or more.

    >>> import tinyarr
    >>> tinyarr.max_pool2d(tinyarr.Tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), (1, 2)).tolist()
    [[[[2.0, 4.0]]]]
    """
    require_spatial("max_pool2d", x, 2)
    if not x.dtype.is_float or x.dtype in dtypes.FLOAT8:
        raise DtypeError(f"max_pool2d: x has dtype {x.dtype.name}: it must be floating of 16 bits or more, use astype")
    stride = kernel_size if stride is None else stride
    sides = _padding("max_pool2d", padding, kernel_size)
    if any(sides):
        x = pad(x, [p for p in reversed(sides) for _ in range(2)], value=-math.inf)
    return _of_windows(max, x, windows("max_pool2d", x.shape[2:], kernel_size, stride, 0, dilation))


def avg_pool2d(x: Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> Tensor:
    """The mean of each window of x (B, C, H, W), zeros that are padded included: (B, C, H', W'), sizes as for conv2d.

    The stride is the kernel_size, unless given. Raises ArgumentError for padding above half of the kernel_size.
    Of one window a channel it is mean(x, axis=(2, 3)). Source: PyTorch's avg_pool2d.

    >>> import tinyarr
    >>> tinyarr.avg_pool2d(tinyarr.Tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), (1, 2)).tolist()
    [[[[1.5, 3.5]]]]
    """
    require_spatial("avg_pool2d", x, 2)
    stride = kernel_size if stride is None else stride
    sides = _padding("avg_pool2d", padding, kernel_size)
    return _of_windows(mean, x, windows("avg_pool2d", x.shape[2:], kernel_size, stride, sides, 1))


def _of_windows(reduction: Callable[..., Tensor], x: Tensor, how: dict[str, Any]) -> Tensor:
    """A reduction of each window to one element."""
    batch, channels, *_ = x.shape
    columns = apply(_unfold, swapaxes(x, 0, 1), **how)
    # Positions of all channels on one axis: kernels reduce long rows at once, and a row of an image may be short.
    columns = reshape(columns, (batch, math.prod(how["kernel"]), channels * math.prod(how["positions"])))
    return reshape(reduction(columns, axis=1), (batch, channels, *how["positions"]))


def _padding(operation: str, padding: Sizes, kernel_size: Sizes) -> tuple[int, ...]:
    """The padding of each axis. Raises ArgumentError where windows could lie in it alone."""
    sides = for_each_axis(operation, "padding", padding, 2, least=0)
    if any(2 * p > k for p, k in zip(sides, for_each_axis(operation, "kernel_size", kernel_size, 2), strict=True)):
        raise ArgumentError(f"{operation}: padding is {padding}: it must be at most half of kernel_size, {kernel_size}")
    return sides
