"""Convolution as one matrix product of unfolded windows, and unfold and fold, the primitives below it. Floor 5.

Windows slide along the spatial axes of x (B, C, *sizes). At its place k along such an axis the window at position i
reads element i * stride + k * dilation - padding, or 0 where that is outside. NumPy and C have kernels; elsewhere, as
on CUDA, the composites run, which pad and slice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ...errors import ArgumentError, DtypeError, ShapeError, describe, whole_number
from ...tensor import Tensor, require_tensors
from ...transforms import vjp
from ..create import zeros
from ..elementwise import astype
from ..matmul import matmul
from ..primitive import Primitive, apply
from ..shape import matrix_transpose, moveaxis, reshape, slice_axes, stack, swapaxes
from .tiling import pad

Sizes = int | Sequence[int]  # one for all spatial axes, or one for each


def _infer_unfold(shapes, types, *, kernel, positions, stride, dilation, padding):
    batch, channels, *_ = shapes[0]
    return [((channels, *kernel, batch, *positions), types[0])]


def _infer_fold(shapes, types, *, sizes, stride, dilation, padding):
    channels, _, (batch, *_) = _parts(shapes[0], len(sizes))
    return [((batch, channels, *sizes), types[0])]


def _parts(shape: tuple[int, ...], axes: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The parts C, kernel and (B, *positions) of the shape of columns."""
    return shape[0], shape[1 : 1 + axes], shape[1 + axes :]


def _slices(x: Tensor, *, kernel, positions, stride, dilation, padding) -> Tensor:
    """The composite of unfold: x padded, or cut, to what the windows read, and of that a slice for each place."""
    widths: list[int] = []
    for n, k, m, s, d, p in zip(x.shape[2:], kernel, positions, stride, dilation, padding, strict=True):
        widths = [p, (m - 1) * s + (k - 1) * d + 1 - p - n, *widths]
    x = swapaxes(pad(x, widths), 0, 1)
    slices = []
    for place in itertools.product(*map(range, kernel)):
        steps = zip(place, positions, stride, dilation, strict=True)
        slices.append(slice_axes(x, [slice(None)] * 2 + [slice(k * d, k * d + m * s, s) for k, m, s, d in steps]))
    return reshape(stack(slices, axis=1), (x.shape[0], *kernel, x.shape[1], *positions))


def _slices_transposed(columns: Tensor, *, sizes, **how) -> Tensor:
    """The composite of fold: the vjp of that of unfold. Sums of half types are made in float32."""
    channels, kernel, (batch, *positions) = _parts(columns.shape, len(sizes))
    x = zeros((batch, channels, *sizes), dtype=columns.dtype.compute, device=columns.device)
    _, pull = vjp(lambda x: _slices(x, kernel=kernel, positions=tuple(positions), **how), x)
    return astype(pull(astype(columns, x.dtype))[0], columns.dtype)


# x (B, C, *sizes) to columns (C, *kernel, B, *positions): seen as a matrix, so that one product is the convolution of
# the whole batch.
_unfold = Primitive("unfold", _infer_unfold, composite=_slices, moves=True, cheap=True)
_fold = Primitive("fold", _infer_fold, inputs=("columns",), composite=_slices_transposed)


@_unfold.gradient
def _unfold_gradient(g, *, stride, dilation, padding, shapes):
    return apply(_fold, g, sizes=shapes[0][2:], stride=stride, dilation=dilation, padding=padding)


@_fold.gradient
def _fold_gradient(g, *, sizes, stride, dilation, padding, shapes):
    _, kernel, (_, *positions) = _parts(shapes[0], len(sizes))
    how = {"stride": stride, "dilation": dilation, "padding": padding}
    return apply(_unfold, g, kernel=kernel, positions=tuple(positions), **how)


def for_each_axis(operation: str, name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """An argument as one int for each spatial axis. Raises ArgumentError for too few, too many or too small ones."""
    given = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * axes
    sizes = tuple(whole_number(operation, name, n) for n in given)
    if len(sizes) != axes or min(sizes) < least:
        advice = f"give an int, or one for each of {axes} axes, of {least} or more"
        raise ArgumentError(f"{operation}: {name} is {value!r}: {advice}")
    return sizes


def windows(
    operation: str, sizes: Sequence[int], kernel: Sizes, stride: Sizes, padding: Sizes | str, dilation: Sizes
) -> dict[str, Any]:
    """The parameters with which unfold is applied to spatial axes of these sizes.

    Raises ShapeError where no window fits into the padded axes.
    """
    axes = len(sizes)
    kernel = for_each_axis(operation, "kernel_size", kernel, axes)
    stride = for_each_axis(operation, "stride", stride, axes)
    dilation = for_each_axis(operation, "dilation", dilation, axes)
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]  # from a window's first element to its last
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ArgumentError(f"{operation}: padding is 'same', stride is {stride}: it must be 1")
        before, positions = tuple(r // 2 for r in reach), tuple(sizes)
    else:
        before = for_each_axis(operation, "padding", 0 if padding == "valid" else padding, axes, least=0)
        ends = [n + 2 * p - r for n, p, r in zip(sizes, before, reach, strict=True)]
        positions = tuple(-(-end // s) for end, s in zip(ends, stride, strict=True))
    if min(positions) < 1:
        given = f"the spatial axes are {tuple(sizes)}, padding is {before}"
        raise ShapeError(f"{operation}: {given}: a window reaches over {tuple(r + 1 for r in reach)}: pad more")
    return {"kernel": kernel, "positions": positions, "stride": stride, "dilation": dilation, "padding": before}


def unfold(x: Tensor, kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1) -> Tensor:
    """The sliding windows of x (B, C, *sizes) as columns (B, C * places, positions), PyTorch's unfold.

    A window has as many places as its kernel_size says; padding adds zeros at both ends of each spatial axis, of which
    there may be any number. The gradient is fold. Raises ShapeError where no window fits.

    >>> import tinyarr
    >>> tinyarr.unfold(tinyarr.Tensor([[[1, 2, 3, 4]]]), 2).tolist()
    [[[1, 2, 3], [2, 3, 4]]]
    """
    require_spatial("unfold", x)
    how = windows("unfold", x.shape[2:], kernel_size, stride, padding, dilation)
    columns = moveaxis(apply(_unfold, x, **how), x.ndim - 1, 0)
    return reshape(columns, (*x.shape[:1], x.shape[1] * math.prod(how["kernel"]), math.prod(how["positions"])))


def fold(
    x: Tensor,
    output_size: Sizes,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    padding: Sizes = 0,
    stride: Sizes = 1,
) -> Tensor:
    """The sum of columns x (B, C * places, positions) at the windows that unfold reads: (B, C, *output_size).

    An int output_size is that of two axes. Half types are added up in float32. Raises ShapeError where x isn't what
    unfold makes of that size, DtypeError where it isn't floating. Source: PyTorch's fold.

    >>> import tinyarr
    >>> tinyarr.fold(tinyarr.Tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]]), (4,), 2).tolist()
    [[[1.0, 12.0, 23.0, 30.0]]]
    """
    require_tensors("fold", x=x)
    axes = (len(output_size) or 1) if isinstance(output_size, Sequence) else 2
    sizes = for_each_axis("fold", "output_size", output_size, axes, least=0)
    how = windows("fold", sizes, kernel_size, stride, padding, dilation)
    kernel, positions = how.pop("kernel"), how.pop("positions")
    places, count = math.prod(kernel), math.prod(positions)
    if x.ndim != 3 or x.shape[1] % places or x.shape[2] != count:
        raise ShapeError(f"fold: x has shape {x.shape}: it must be (B, C * {places}, {count}), as unfold makes it")
    if not x.dtype.is_float:
        raise DtypeError(f"fold: x has dtype {x.dtype.name}: it must be floating, use astype")
    columns = moveaxis(reshape(x, (x.shape[0], x.shape[1] // places, *kernel, *positions)), 0, 1 + len(kernel))
    return apply(_fold, columns, sizes=sizes, **how)


def require_spatial(operation: str, x: Tensor, axes: int | None = None) -> None:
    """Raises ShapeError unless x is (B, C, *sizes) with so many spatial axes, or at least one."""
    require_tensors(operation, x=x)
    if x.ndim < 3 or axes not in (None, x.ndim - 2):
        wanted = {1: "(B, C, L)", 2: "(B, C, H, W)"}.get(axes or 0, "(B, C, ...)")
        raise ShapeError(f"{operation}: x has shape {x.shape}: it must be {wanted}; expand_dims adds an axis")


def _convolution(
    operation: str,
    axes: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    require_spatial(operation, x, axes)
    require_tensors(operation, weight=weight)
    batch, channels, *sizes = x.shape
    if weight.ndim != x.ndim or groups < 1 or weight.shape[1] * groups != channels or weight.shape[0] % groups:
        given = f"{describe('x', x)}, {describe('weight', weight)}, groups is {groups}"
        raise ShapeError(f"{operation}: {given}: weight must be (out, C / groups, ...), out a multiple of groups")
    how = windows(operation, sizes, weight.shape[2:], stride, padding, dilation)
    features, depth = weight.shape[0], math.prod(weight.shape[1:])
    columns = reshape(apply(_unfold, x, **how), (groups, depth, batch * math.prod(how["positions"])))
    y = matmul(reshape(weight, (groups, features // groups, depth)), columns)
    return _plus(operation, swapaxes(reshape(y, (features, batch, *how["positions"])), 0, 1), bias)


def _plus(operation: str, y: Tensor, bias: Tensor | None) -> Tensor:
    """y (B, C, *sizes) + bias (C,)."""
    if bias is None:
        return y
    require_tensors(operation, bias=bias)
    if bias.shape != y.shape[1:2]:
        raise ShapeError(f"{operation}: bias has shape {bias.shape}: it must be {y.shape[1:2]}, one for each output")
    return y + reshape(bias, (*bias.shape, *[1] * (y.ndim - 2)))


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """The 1-d convolution (cross-correlation) of x (B, C, L) with weight (out, C / groups, K): (B, out, positions).

    padding: zeros at both ends; 'same' keeps L, 'valid' is 0. The rest as for conv2d.
    """
    return _convolution("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """The 2-d convolution (cross-correlation) of x (B, C, H, W) with weight (out, C / groups, kH, kW), plus a bias.

    The result is (B, out, H', W') with H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1; bias is (out,).
    Stride, padding and dilation are one int for both axes, or one for each. padding: zeros at both ends; 'same' gives
    H' = H, 'valid' is 0. With groups, each part of the outputs sees its part of the channels alone. Raises ShapeError
    where shapes don't fit.

    It is one product of weight with the windows of the whole batch (see unfold), which are kept for backward.
    Source: PyTorch's conv2d; Chellapilla et al. 2006, "High performance convolutional neural networks", section 3.1.

    >>> import tinyarr
    >>> image, edge = tinyarr.Tensor([[[[1.0, 1.0, 5.0, 5.0]]]]), tinyarr.Tensor([[[[-1.0, 1.0]]]])
    >>> tinyarr.conv2d(image, edge).tolist()
    [[[[0.0, 4.0, 0.0]]]]
    """
    return _convolution("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The transpose of conv2d, its gradient as a layer: each element of x (B, C, H, W) adds a kernel to the result.

    weight is (C, out / groups, kH, kW) and the result (B, out, H', W') with
    H' = (H - 1) stride - 2 padding + dilation (kH - 1) + 1 + output_padding, where output_padding, less than stride or
    dilation, says which of the sizes that conv2d makes H of is meant. Raises ShapeError where shapes don't fit.
    Source: PyTorch's conv_transpose2d.

    >>> import tinyarr
    >>> pixels, stamp = tinyarr.Tensor([[[[1.0, 2.0]]]]), tinyarr.Tensor([[[[1.0, 10.0]]]])
    >>> tinyarr.conv_transpose2d(pixels, stamp, stride=2).tolist()
    [[[[1.0, 10.0, 2.0, 20.0]]]]
    """
    operation = "conv_transpose2d"
    require_spatial(operation, x, 2)
    require_tensors(operation, weight=weight)
    batch, channels, *positions = x.shape
    if weight.ndim != x.ndim or groups < 1 or weight.shape[0] != channels or channels % groups:
        given = f"{describe('x', x)}, {describe('weight', weight)}, groups is {groups}"
        raise ShapeError(f"{operation}: {given}: weight must be (C, out / groups, ...), C a multiple of groups")
    kernel, features = weight.shape[2:], weight.shape[1] * groups
    stride, dilation = for_each_axis(operation, "stride", stride, 2), for_each_axis(operation, "dilation", dilation, 2)
    padding = for_each_axis(operation, "padding", padding, 2, least=0)
    more = for_each_axis(operation, "output_padding", output_padding, 2, least=0)
    if any(o >= max(s, d) for o, s, d in zip(more, stride, dilation, strict=True)):
        raise ArgumentError(f"{operation}: output_padding is {more}: it must be less than stride or dilation")
    sizes = [
        (m - 1) * s - 2 * p + (k - 1) * d + 1 + o
        for m, s, p, k, d, o in zip(positions, stride, padding, kernel, dilation, more, strict=True)
    ]
    if min(sizes) < 1:
        raise ShapeError(f"{operation}: x has shape {x.shape}: nothing is left of axes {tuple(sizes)}: pad less")
    rows = reshape(swapaxes(x, 0, 1), (groups, channels // groups, batch * math.prod(positions)))
    matrix = reshape(weight, (groups, channels // groups, features // groups * math.prod(kernel)))
    columns = reshape(matmul(matrix_transpose(matrix), rows), (features, *kernel, batch, *positions))
    y = apply(_fold, columns, sizes=tuple(sizes), stride=stride, dilation=dilation, padding=padding)
    return _plus(operation, y, bias)
