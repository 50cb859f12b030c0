"""Layers that GPT-2 is made of: linear, embedding, layer normalization, dropout. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ShapeError, describe
from ..ops.index import embedding
from ..ops.matmul import linear
from ..ops.norm import layer_norm
from ..ops.random import dropout
from ..ops.shape import reshape
from ..random import Generator
from ..tensor import Tensor
from ..views import normalize_shape
from . import new_parameters
from .module import Module, Parameter


class Linear(Module):
    """x @ weight.T + bias: (..., in_features) to (..., out_features). weight is (out_features, in_features).

    Weight and bias start uniform on +-1/sqrt(in_features); given `std`, the weight normal and the bias at 0.
    """

    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        std: float | None = None,
        generator: Generator | None = None,
        dtype=None,
        device=None,
    ):
        place = {"generator": generator, "dtype": dtype, "device": device}
        shape, width = (out_features, in_features), (out_features,)
        if std is None:
            bound = 1 / math.sqrt(max(in_features, 1))  # kaiming_uniform with a = sqrt(5), as in PyTorch
            self.weight = new_parameters.uniform(shape, bound, **place)
            self.bias = new_parameters.uniform(width, bound, **place) if bias else None
        else:
            self.weight = new_parameters.normal(shape, std, **place)
            self.bias = new_parameters.constant(width, 0.0, dtype=dtype, device=device) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """Rows of a table by number: (...) integers in [0, num_embeddings) to (..., embedding_dim).

    The table starts normal with standard deviation `std`.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        std: float = 1.0,
        generator: Generator | None = None,
        dtype=None,
        device=None,
    ):
        shape = (num_embeddings, embedding_dim)
        self.weight = new_parameters.normal(shape, std, generator=generator, dtype=dtype, device=device)

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(self.weight, tokens)


class LayerNorm(Module):
    """Layer normalization over the last axis (see tinyarr.layer_norm), with a weight of ones and a bias of zeros.

    Given several sizes, over as many last axes.
    """

    bias: Parameter | None

    def __init__(self, features: int | Sequence[int], *, eps: float = 1e-5, bias: bool = True, dtype=None, device=None):
        shape = normalize_shape("LayerNorm", features)
        self.weight = new_parameters.constant(shape, 1.0, dtype=dtype, device=device)
        self.bias = new_parameters.constant(shape, 0.0, dtype=dtype, device=device) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        n, shape = self.weight.ndim, self.weight.shape
        if n == 1:
            return layer_norm(x, self.weight, self.bias, eps=self.eps)
        if x.shape[-n:] != shape:
            raise ShapeError(f"LayerNorm: {describe('x', x)}: its last axes must be {shape}")
        bias = self.bias if self.bias is None else reshape(self.bias, -1)
        rows = layer_norm(reshape(x, (*x.shape[:-n], -1)), reshape(self.weight, -1), bias, eps=self.eps)
        return reshape(rows, x.shape)


class Dropout(Module):
    """Zeroes each element with probability p while training (see tinyarr.dropout)."""

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=self.training, generator=self.generator)
