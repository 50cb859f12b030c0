"""Modules without parameters, each made of a function and the options with which it is called. Floor 5."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..tensor import Tensor
from .module import Module


class FunctionModule(Module):
    """Base of modules that call a function: `Softmax(axis=0)(x)` is `softmax(x, axis=0)`.

    Options, which `names` lists, are attributes and may be set; tensors among them are buffers.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    __signature__: inspect.Signature

    def __init__(self, *values: Any, **options: Any):
        name, signature = type(self).__name__, self.__signature__
        try:
            bound = signature.bind(*values, **options)
        except TypeError as error:
            raise TypeError(f"{name}: {error}: use {name}{signature}") from None
        bound.apply_defaults()
        for key in self.names:
            value = bound.arguments[key]
            if isinstance(value, Tensor):
                self.register_buffer(key, value)
            else:
                setattr(self, key, value)

    def forward(self, *operands: Tensor) -> Tensor:
        return self.function(*operands, **{key: getattr(self, key) for key in self.names})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={getattr(self, key)!r}' for key in self.names)})"


def from_function(
    name: str, function: Callable[..., Any], *, operands: int = 1, inplace: bool = False
) -> type[FunctionModule]:
    """Returns the class of modules that call `function`; what it takes after its `operands` are options of the module.

    inplace: such modules also take PyTorch's `inplace`, which changes nothing: a result is always a new tensor.
    """
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(function).parameters.values()][operands:]
    names = tuple(p.name for p in parameters)
    if inplace:
        parameters.append(inspect.Parameter("inplace", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False))
    members: dict[str, Any] = {
        "function": staticmethod(function),
        "names": names,
        "__signature__": inspect.Signature(parameters),
        "__doc__": f"{inspect.getdoc(function)}\n\nThe function {function.__name__} as a module.",
        "__module__": __package__,
    }
    return type(name, (FunctionModule,), members)
