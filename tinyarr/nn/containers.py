"""Containers of modules: Sequential, ModuleList, ModuleDict. Floor 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ArgumentError
from ..tensor import Tensor
from .module import Module, Parameter


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


def _parameters(self: Any) -> Iterator[Parameter]:
    """Every Parameter of the modules, each once."""
    holder = Module()
    holder.held = self
    return holder.parameters()


class ModuleList(list):
    """A list of modules. A Module looks into any list or dict."""

    __slots__ = ()
    parameters = _parameters


class ModuleDict(dict):
    """A dict of modules, which are its attributes too: `layers.attention`. A Module looks into any list or dict."""

    __setattr__ = dict.__setitem__
    parameters = _parameters

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"ModuleDict has no key {name!r}")
        return self[name]
