"""Normalization besides LayerNorm: by the root mean square, over a batch, over groups of channels. Floor 5."""

from __future__ import annotations

import math

from ..dtypes import float32, int64
from ..errors import ArgumentError, ShapeError, describe
from ..ops.create import ones, zeros
from ..ops.elementwise import astype, rsqrt, square
from ..ops.more.in_place import add_, lerp_
from ..ops.norm import layer_norm, rms_norm
from ..ops.reduce import mean
from ..ops.shape import reshape
from ..tape import no_grad
from ..tensor import Tensor, require_tensors
from . import new_parameters
from .module import Module, Parameter


class RMSNorm(Module):
    """Root mean square normalization over the last axis (see tinyarr.rms_norm), with a weight of ones."""

    def __init__(self, features: int, *, eps: float | None = None, dtype=None, device=None):
        self.weight = new_parameters.constant((features,), 1.0, dtype=dtype, device=device)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class _PerChannel(Module):
    """Base of modules with a weight of ones and a bias of zeros for each channel, the second axis: (B, C, ...)."""

    weight: Parameter | None = None
    bias: Parameter | None = None
    ndims: tuple[int, ...] = ()  # how many axes are taken, if not any number

    def __init__(self, channels: int, eps: float, affine: bool, dtype, device):
        self.channels, self.eps = channels, eps
        if affine:
            self.weight = new_parameters.constant((channels,), 1.0, dtype=dtype, device=device)
            self.bias = new_parameters.constant((channels,), 0.0, dtype=dtype, device=device)

    def checked(self, x: Tensor) -> Tensor:
        """x as a floating tensor, once its shape is seen to fit."""
        name = type(self).__name__
        require_tensors(name, x=x)
        if x.ndim < 2 or x.shape[1] != self.channels or (self.ndims and x.ndim not in self.ndims):
            axes = f"{' or '.join(map(str, self.ndims))} axes" if self.ndims else "two axes or more"
            raise ShapeError(f"{name}: {describe('x', x)}: it must have {axes}, of which the second is {self.channels}")
        return x if x.dtype.is_float else astype(x, float32)

    def scaled(self, normalized: Tensor, x: Tensor) -> Tensor:
        """Normalized elements times the weight, plus the bias, in x's dtype."""
        if self.weight is not None and self.bias is not None:
            normalized = normalized * _per_channel(self.weight, x) + _per_channel(self.bias, x)
        return astype(normalized, x.dtype, copy=False)


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    """t (C,) as it broadcasts over x (B, C, ...), in the dtype in which is computed."""
    return astype(reshape(t, (-1,) + (1,) * (x.ndim - 2)), x.dtype.compute, copy=False)


class BatchNorm1d(_PerChannel):
    """(x - mean) / sqrt(var + eps) * weight + bias, each channel by itself: (B, C) or (B, C, T) to the same shape.

    In training mean and variance are those of the batch, and running averages of them are kept, of which the newest is
    the share `momentum`, or all batches with None; else they are these averages, if they are tracked. Raises ShapeError
    in training for a single element a channel, which has no variance.
    Source: Ioffe & Szegedy 2015, "Batch normalization", algorithms 1 and 2. Buffers are named as PyTorch's.

    >>> import tinyarr
    >>> norm = tinyarr.nn.BatchNorm1d(1, eps=0.0)
    >>> norm(tinyarr.Tensor([[1.0], [3.0]])).tolist(), norm.running_mean.tolist()
    ([[-1.0], [1.0]], [0.20000000298023224])
    """

    ndims: tuple[int, ...] = (2, 3)
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype=None,
        device=None,
    ):
        super().__init__(num_features, eps, affine, dtype, device)
        self.momentum = momentum
        buffers: dict[str, Tensor] = {}
        if track_running_stats:
            buffers = {
                "running_mean": zeros((num_features,), dtype=dtype, device=device),
                "running_var": ones((num_features,), dtype=dtype, device=device),
                "num_batches_tracked": zeros((), dtype=int64, device=device),
            }
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, buffers.get(name))

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        wide = astype(x, x.dtype.compute, copy=False)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            centered = wide - _per_channel(self.running_mean, x)
            return self.scaled(centered * rsqrt(_per_channel(self.running_var, x) + self.eps), x)
        axes = (0, *range(2, x.ndim))
        about = mean(wide, axis=axes, keepdims=True)
        centered = wide - about
        var = mean(square(centered), axis=axes, keepdims=True)
        if self.training:
            self._track(about, var, x.size // max(self.channels, 1))
        return self.scaled(centered * rsqrt(var + self.eps), x)

    def _track(self, about: Tensor, var: Tensor, count: int) -> None:
        """Moves the running averages towards the mean and the unbiased variance of a batch, of `count` each channel."""
        if count < 2:
            raise ShapeError(f"{type(self).__name__}: x has {count} elements a channel: training needs more, or eval()")
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with no_grad():
            tracked = add_(self.num_batches_tracked, 1)
            share = 1.0 / astype(tracked, about.dtype) if self.momentum is None else self.momentum
            for running, new in ((self.running_mean, about), (self.running_var, var * (count / (count - 1)))):
                lerp_(running, reshape(new, running.shape), share)


class BatchNorm2d(BatchNorm1d):
    """Batch normalization of images (B, C, H, W), as BatchNorm1d."""

    ndims = (4,)


class GroupNorm(_PerChannel):
    """Layer normalization of the channels of each group with all that is in them, then times weight, plus bias.

    x (B, C, ...), of which `num_groups` must divide C, to the same shape.
    Source: Wu & He 2018, "Group normalization", eq. 7.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, dtype=None, device=None
    ):
        if num_groups < 1 or num_channels % num_groups:
            raise ArgumentError(f"GroupNorm: num_groups is {num_groups}: it must divide num_channels, {num_channels}")
        super().__init__(num_channels, eps, affine, dtype, device)
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.checked(x)
        wide = astype(x, x.dtype.compute, copy=False)
        rows = reshape(wide, (x.shape[0] * self.num_groups, math.prod(x.shape[1:]) // self.num_groups))
        return self.scaled(reshape(layer_norm(rows, eps=self.eps), x.shape), x)
