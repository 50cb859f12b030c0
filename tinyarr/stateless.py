"""functional_call: a module as a function of its parameters, for grad, vmap and jacobian. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ArgumentError, ShapeError
from .nn.module import Module
from .tensor import Tensor, require_tensors
from .trees import sequence_like


def functional_call(module: Module, state: Mapping[str, Tensor], args: Any = (), kwargs: Any = None) -> Any:
    """`module(*args, **kwargs)` with tensors of `state` in the place of its parameters and buffers of these names.

    Those that state does not name stay. args is a tuple, or the one argument. A tensor that the module has in several
    places is replaced in all. The module is as before afterwards; meanwhile no other thread may use it.
    Raises ArgumentError for unknown names, ShapeError for another shape. Source: torch.func.functional_call.

    Each example's own gradient with respect to the parameters of a model:

    >>> import tinyarr
    >>> model = tinyarr.nn.Linear(2, 1)
    >>> loss = lambda state, x: tinyarr.functional_call(model, state, x).sum()
    >>> gradients = tinyarr.vmap(tinyarr.grad(loss), in_axes=(None, 0))
    >>> found = gradients(model.state_dict(), tinyarr.Tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> found["weight"].tolist()
    [[[1.0, 2.0]], [[3.0, 4.0]]]
    """
    own = dict(module.named_tensors())
    require_tensors("functional_call", **{str(name): x for name, x in state.items()})
    if unknown := sorted(state.keys() - own.keys()):
        raise ArgumentError(f"functional_call: state names {unknown}: the module has {', '.join(own) or 'no tensors'}")
    for name, x in state.items():
        if x.shape != own[name].shape:
            raise ShapeError(f"functional_call: {name} has shape {x.shape}, the module's {own[name].shape}")
    undo: list[tuple[Any, Any, Any]] = []
    try:
        _replace(module, {id(own[name]): x for name, x in state.items()}, undo, set())
        return module(*(args if isinstance(args, tuple) else (args,)), **(kwargs or {}))
    finally:
        for place, key, old in undo:
            place[key] = old


def _replace(value: Any, new: dict[int, Tensor], undo: list[tuple[Any, Any, Any]], seen: set[int]) -> Any:
    """Puts new tensors, by the old ones' ids, in their places at and below a value; returns what is to replace it."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, tuple):
        parts = [_replace(part, new, undo, seen) for part in value]
        if all(part is old for part, old in zip(parts, value, strict=True)):
            return value
        return sequence_like(value, parts)
    place: Any = vars(value) if isinstance(value, Module) else value
    if isinstance(place, dict | list) and id(place) not in seen:
        seen.add(id(place))
        for key, old in list(place.items() if isinstance(place, dict) else enumerate(place)):
            found = _replace(old, new, undo, seen)
            if found is not old:
                undo.append((place, key, old))
                place[key] = found
    return value
