"""Layers: modules around the operations that have parameters or behave differently in training."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ArgumentError
from ..ops.index import embedding
from ..ops.matmul import linear
from ..ops.norm import layer_norm, rms_norm
from ..ops.random import dropout
from ..random import Generator
from ..tensor import Tensor
from . import init
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
            self.weight = init.kaiming_uniform(shape, in_features, **place)
            self.bias = init.kaiming_uniform(width, in_features, **place) if bias else None
        else:
            self.weight = init.normal(shape, std, **place)
            self.bias = init.constant(width, 0.0, dtype=dtype, device=device) if bias else None

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
        self.weight = init.normal(shape, std, generator=generator, dtype=dtype, device=device)

    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(self.weight, tokens)


class LayerNorm(Module):
    """Layer normalization over the last axis (see tinyarr.layer_norm), with a weight of ones and a bias of zeros."""

    bias: Parameter | None

    def __init__(self, features: int, *, eps: float = 1e-5, bias: bool = True, dtype=None, device=None):
        self.weight = init.constant((features,), 1.0, dtype=dtype, device=device)
        self.bias = init.constant((features,), 0.0, dtype=dtype, device=device) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """Root mean square normalization over the last axis (see tinyarr.rms_norm), with a weight of ones."""

    def __init__(self, features: int, *, eps: float | None = None, dtype=None, device=None):
        self.weight = init.constant((features,), 1.0, dtype=dtype, device=device)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)


class Sequential(Module):
    """Modules and functions, each called with what the one before it returned: `Sequential(Linear(2, 3), relu)`.

    Parameters are named by position: `0.weight`.
    """

    def __init__(self, *layers: Callable[[Tensor], Tensor]):
        for i, layer in enumerate(layers):
            if not callable(layer):
                advice = f"{layer!r}: it must be a module or a function"
                if isinstance(layer, list | tuple | dict):
                    values = "layers.values()" if isinstance(layer, dict) else "layers"
                    advice = f"{type(layer).__name__}: give them one by one, as in Sequential(*{values})"
                raise ArgumentError(f"Sequential: layer {i} is {advice}")
            setattr(self, str(i), layer)
        self._length = len(layers)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int | slice) -> Callable[[Tensor], Tensor]:
        """A layer, or, for a slice, those layers as a Sequential that shares them."""
        if isinstance(number, slice):
            return Sequential(*(self[i] for i in range(len(self))[number]))
        return getattr(self, str(range(len(self))[number]))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self)):
            x = self[i](x)
        return x


class Dropout(Module):
    """Zeroes each element with probability p while training (see tinyarr.dropout)."""

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=self.training, generator=self.generator)
