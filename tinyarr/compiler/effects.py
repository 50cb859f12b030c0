"""What a function changes in Python's memory: noticed after its trace, put back, and done again at each call."""

from __future__ import annotations

import types
from collections import deque
from typing import Any, NamedTuple

from ..errors import TraceError
from ..tensor import Tensor
from .reach import Reach
from .trace import is_traced


class Place(NamedTuple):
    """Where a result of the program stands in what is returned or kept."""

    number: int


class Old(NamedTuple):
    """What a container held under a key before the call."""

    key: Any


def numbered(x: Any, tensors: list[Tensor]) -> Any:
    """x with a Place for each tensor in it; those join the list."""
    if isinstance(x, Tensor):
        tensors.append(x)
        return Place(len(tensors) - 1)
    return _rebuilt(x, lambda part: numbered(part, tensors))


def filled(x: Any, results: list[Tensor]) -> Any:
    """x with the results in their places."""
    return results[x.number] if isinstance(x, Place) else _rebuilt(x, lambda part: filled(part, results))


def _rebuilt(x: Any, change: Any) -> Any:
    if type(x) is dict:
        return {key: change(part) for key, part in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(change, x))
    return type(x)(map(change, x)) if type(x) in (list, tuple) else x


class Before:
    """What containers and gradients hold before a trace."""

    def __init__(self, reach: Reach):
        self._reach = reach
        self._contents = [contents(x) for _, x in reach.containers]
        self._tensors = [
            (i, x, x.grad, x.array, x._requires_grad) for i, (_, x) in enumerate(reach.leaves) if isinstance(x, Tensor)
        ]

    def changes(self, tensors: list[Tensor]) -> Changes:
        """What is different now; tensors of the trace that are kept join the list."""
        gradients: dict[int, Any] = {}
        for i, x, gradient, array, requires_grad in self._tensors:
            path = self._reach.leaves[i].path
            if x.array is not array or x._requires_grad is not requires_grad:
                raise TraceError(f"compile: {path} was moved, or its requires_grad set: do that outside of it")
            if x.grad is not gradient:
                if x.grad is not None and not is_traced(x.grad):
                    raise TraceError(f"compile: {path}.grad was set to a tensor from outside: copy it")
                gradients[i] = numbered(x.grad, tensors)
        changed: dict[int, dict[Any, Any]] = {}
        for i, ((path, x), old) in enumerate(zip(self._reach.containers, self._contents, strict=True)):
            new = contents(x)
            where = {id(value): key for key, value in old.items() if not isinstance(value, int)}
            for key in new.keys() | old.keys():
                value = new.get(key, GONE)
                if value is old.get(key, GONE):
                    continue
                if id(value) in where:
                    value = Old(where[id(value)])
                elif isinstance(value, Tensor) and not is_traced(value):
                    raise TraceError(f"compile: {path} was set to a tensor from outside, at {key!r}: copy it")
                else:
                    value = numbered(value, tensors)
                changed.setdefault(i, {})[key] = value
        return Changes(gradients, changed)

    def restore(self) -> None:
        for (_, x), old in zip(self._reach.containers, self._contents, strict=True):
            put(x, old)
        for _, x, gradient, array, requires_grad in self._tensors:
            x.grad, x.array, x._requires_grad = gradient, array, requires_grad


class Changes:
    """Gradients by leaf, and by container what is different after a call, with Places for results."""

    def __init__(self, gradients: dict[int, Any], changed: dict[int, dict[Any, Any]]):
        self._gradients = gradients
        self._changed = changed

    def repeat(self, reach: Reach, results: list[Tensor]) -> None:
        for i, gradient in self._gradients.items():
            reach.leaves[i].object.grad = filled(gradient, results)
        for i, changed in self._changed.items():
            x = reach.containers[i][1]
            old = contents(x)
            new = old | {k: old[v.key] if isinstance(v, Old) else filled(v, results) for k, v in changed.items()}
            put(x, {key: value for key, value in new.items() if value is not GONE})


GONE = object()


def contents(x: Any) -> dict[Any, Any]:
    """What a container holds, by key."""
    if isinstance(x, list | deque):
        return dict(enumerate(x))
    if isinstance(x, set):
        return dict.fromkeys(x)
    if isinstance(x, types.CellType):
        return {0: x.cell_contents}
    if isinstance(x, tuple):
        names, name = x
        return {name: names[name]}
    return dict(x)


def put(x: Any, new: dict[Any, Any]) -> None:
    """Makes a container hold this."""
    if isinstance(x, list | deque):
        x.clear()
        x.extend(new[i] for i in sorted(new))
    elif isinstance(x, set):
        x.clear()
        x.update(new)
    elif isinstance(x, types.CellType):
        x.cell_contents = new[0]
    elif isinstance(x, tuple):
        x[0].update(new)
    else:
        for key in x.keys() - new.keys():
            del x[key]
        x.update(new)
