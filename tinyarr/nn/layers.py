"""Layers that GPT-2 is made of: linear, embedding, layer normalization, dropout. Floor 1."""

from __future__ import annotations

import math

from ..ops.index import embedding
from ..ops.matmul import linear
from ..ops.norm import layer_norm
from ..ops.random import dropout
from ..random import Generator
from ..tensor import Tensor
from . import initial
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
            self.weight = initial.uniform(shape, bound, **place)
            self.bias = initial.uniform(width, bound, **place) if bias else None
        else:
            self.weight = initial.normal(shape, std, **place)
            self.bias = initial.constant(width, 0.0, dtype=dtype, device=device) if bias else None

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
        self.weight = initial.normal(shape, std, generator=generator, dtype=dtype, device=device)

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(self.weight, tokens)


class LayerNorm(Module):
    """Layer normalization over the last axis (see tinyarr.layer_norm), with a weight of ones and a bias of zeros."""

    bias: Parameter | None

    def __init__(self, features: int, *, eps: float = 1e-5, bias: bool = True, dtype=None, device=None):
        self.weight = initial.constant((features,), 1.0, dtype=dtype, device=device)
        self.bias = initial.constant((features,), 0.0, dtype=dtype, device=device) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Zeroes each element with probability p while training (see tinyarr.dropout)."""

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=self.training, generator=self.generator)
