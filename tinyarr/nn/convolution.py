"""Convolutions and pooling as modules, with PyTorch's arguments, initial values and names of parameters. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import ArgumentError
from ..ops.more.convolution import Sizes, conv1d, conv2d, conv_transpose2d, for_each_axis
from ..ops.more.pooling import avg_pool2d, max_pool2d
from ..random import Generator
from ..tensor import Tensor
from . import new_parameters
from .from_function import from_function
from .module import Module, Parameter


class _Convolution(Module):
    """A weight, a bias, and the options with which `function`, an operation on `axes` spatial axes, is called."""

    axes: int
    function: Callable[..., Tensor]
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        generator: Generator | None = None,
        dtype=None,
        device=None,
    ):
        place = {"generator": generator, "dtype": dtype, "device": device}
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        self._start(out_channels, in_channels, kernel_size, out_channels if bias else 0, place, options)

    def _start(self, rows: int, columns: int, kernel_size: Sizes, biases: int, place: dict, options: dict) -> None:
        """Makes the weight, (rows, columns / groups, *kernel_size), and the bias, of so many elements, if any."""
        operation, groups = type(self).__name__, options["groups"]
        if groups < 1 or rows % groups or columns % groups:
            raise ArgumentError(f"{operation}: groups is {groups}: it must divide the channels, {rows} and {columns}")
        shape = (rows, columns // groups, *for_each_axis(operation, "kernel_size", kernel_size, self.axes))
        bound = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        self.weight = new_parameters.uniform(shape, bound, **place)
        self.bias = new_parameters.uniform((biases,), bound, **place) if biases else None
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return type(self).function(x, self.weight, self.bias, **self.options)


class Conv1d(_Convolution):
    """tinyarr.conv1d with a weight (out_channels, in_channels / groups, K) of its own; initial values as in Conv2d."""

    axes, function = 1, staticmethod(conv1d)


class Conv2d(_Convolution):
    """tinyarr.conv2d with a weight (out_channels, in_channels / groups, kH, kW) of its own.

    Weight and bias start uniform on +-1/sqrt(fan), where fan is the number of weights of one output.
    """

    axes, function = 2, staticmethod(conv2d)


class ConvTranspose2d(_Convolution):
    """tinyarr.conv_transpose2d with a weight (in_channels, out_channels / groups, kH, kW) of its own.

    Weight and bias start uniform on +-1/sqrt(fan), where fan is the number of weights of one input, as in PyTorch.
    """

    axes, function = 2, staticmethod(conv_transpose2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        *,
        generator: Generator | None = None,
        dtype=None,
        device=None,
    ):
        place = {"generator": generator, "dtype": dtype, "device": device}
        options = {"stride": stride, "padding": padding, "output_padding": output_padding, "groups": groups}
        options["dilation"] = dilation
        self._start(in_channels, out_channels, kernel_size, out_channels if bias else 0, place, options)


MaxPool2d = from_function("MaxPool2d", max_pool2d)
AvgPool2d = from_function("AvgPool2d", avg_pool2d)
