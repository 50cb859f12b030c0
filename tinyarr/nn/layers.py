"""Layers: modules around the operations that have parameters or behave differently in training. Floor 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    Parameters are named by position, `0.weight`, or by the keys of a dict of layers, which then are attributes.
    """

    def __init__(self, *layers: Callable[[Tensor], Tensor] | dict[str, Callable[[Tensor], Tensor]]):
        named: dict[str, Any] = {str(i): layer for i, layer in enumerate(layers)}
        if len(layers) == 1 and isinstance(layers[0], dict):
            named = layers[0]
        for name, layer in named.items():
            if not callable(layer):
                advice = f"{layer!r}: it must be a module or a function"
                if isinstance(layer, list | tuple | dict):
                    advice = f"{type(layer).__name__}: give them one by one, as in Sequential(*layers)"
                raise ArgumentError(f"Sequential: layer {name} is {advice}")
            if hasattr(type(self), name):
                raise ArgumentError(f"Sequential: layer {name} has the name of a method: choose another")
            setattr(self, name, layer)
        self._names = tuple(named)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int | slice) -> Callable[[Tensor], Tensor]:
        """A layer, or, for a slice, those layers as a Sequential that shares them."""
        if isinstance(number, slice):
            return Sequential(*map(self.__getitem__, range(len(self))[number]))
        return getattr(self, self._names[number])

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self)):
            x = self[i](x)
        return x


class ModuleDict(dict):
    """A dict of modules, which are its attributes too: `layers.attention`. A Module looks into any list or dict."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"ModuleDict has no key {name!r}")
        return self[name]


ModuleList = list  # of which a Module asks nothing more


class Dropout(Module):
    """Zeroes each element with probability p while training (see tinyarr.dropout)."""

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None):
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, training=self.training, generator=self.generator)
