"""Activation functions and what only rearranges its input, as modules. Floor 5."""

from __future__ import annotations

import math

from ..errors import ArgumentError
from ..ops.activation import gelu, leaky_relu, relu, sigmoid, silu, softplus
from ..ops.elementwise import tanh
from ..ops.shape import reshape
from ..ops.softmax import log_softmax, softmax
from ..tensor import Tensor
from ..views import normalize_axis
from .from_function import from_function


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def flatten(x: Tensor, start_axis: int = 1, end_axis: int = -1) -> Tensor:
    """x with the axes from `start_axis` to `end_axis` made one: (B, 3, 4) to (B, 12)."""
    start, end = (normalize_axis("flatten", axis, x.ndim) for axis in (start_axis, end_axis))
    if start > end:
        raise ArgumentError(f"flatten: start_axis is {start_axis}, end_axis is {end_axis}: start must not exceed end")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]))


ReLU = from_function("ReLU", relu, inplace=True)
LeakyReLU = from_function("LeakyReLU", leaky_relu, inplace=True)
GELU = from_function("GELU", gelu)
SiLU = from_function("SiLU", silu, inplace=True)
Sigmoid = from_function("Sigmoid", sigmoid)
Softplus = from_function("Softplus", softplus)
Tanh = from_function("Tanh", tanh)
Softmax = from_function("Softmax", softmax)
LogSoftmax = from_function("LogSoftmax", log_softmax)
Identity = from_function("Identity", identity)
Flatten = from_function("Flatten", flatten)
