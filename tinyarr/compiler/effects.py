"""What a function changes in Python's memory: noticed after its trace, put back, and done again at each call."""

from __future__ import annotations

import contextlib
import types
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import TraceError
from ..tensor import Tensor
from .floats import Computed, Given, TracedFloat, value_of
from .reach import FLOATS, Reach, is_rebuilt, item_path
from .trace import is_traced


class Place(NamedTuple):
    """Where a result of the program stands in what is returned or kept."""

    number: int


class Old(NamedTuple):
    """What a container held under a key before the call."""

    key: Any


def numbered(x: Any, tensors: list[Tensor]) -> Any:
    """x with a Place for each tensor in it, which join the list, and what traced floats are of those that came."""
    if isinstance(x, Tensor):
        tensors.append(x)
        return Place(len(tensors) - 1)
    if type(x) is TracedFloat:
        return x.expression
    return _rebuilt(x, [numbered(part, tensors) for _, part in _parts(x)])


def filled(x: Any, results: Sequence[Tensor], floats: Sequence[float]) -> Any:
    """x with the results in their places, and floats computed of those that came."""
    if isinstance(x, Place):
        return results[x.number]
    if isinstance(x, Given | Computed):
        return value_of(x, floats)
    return _rebuilt(x, [filled(part, results, floats) for _, part in _parts(x)])


def _parts(x: Any) -> list[tuple[Any, Any]]:
    """The keys and parts of what can be rebuilt of other parts."""
    if not is_rebuilt(x):
        return []
    return list(x.items() if isinstance(x, dict) else enumerate(x))


def _rebuilt(x: Any, parts: list[Any]) -> Any:
    if not is_rebuilt(x):
        return x
    if isinstance(x, dict):
        return dict(zip(x, parts, strict=True))
    return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)


@contextlib.contextmanager
def standing_in(floats: dict[str, TracedFloat], args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The arguments with what stands for floats, by path: in new tuples, and inside the block in lists and dicts."""
    before: list[tuple[Any, Any]] = []
    known: dict[int, Any] = {}

    def changed(path: str, x: Any) -> Any:
        if type(x) in FLOATS:
            return floats.get(path, x)
        if id(x) in known:
            return known[id(x)]
        known[id(x)] = x
        parts = [changed(item_path(path, key), part) for key, part in _parts(x)]
        if all(new is old for new, (_, old) in zip(parts, _parts(x), strict=True)):
            return x
        new = _rebuilt(x, parts)
        if isinstance(x, tuple):
            known[id(x)] = new
            return new
        before.append((x, contents(x)))
        put(x, contents(new))
        return x

    try:
        yield changed("arguments", args), changed("keywords", kwargs)
    finally:
        for x, old in before:
            put(x, old)


class Before:
    """What containers and gradients hold before a trace."""

    def __init__(self, reach: Reach):
        self._reach = reach
        self._contents = [contents(x) for _, x in reach.containers]
        self._tensors = [
            (i, x, x.grad, x.array, x._requires_grad, x._has_wide_grad)
            for i, (_, x) in enumerate(reach.leaves)
            if isinstance(x, Tensor)
        ]

    def changes(self, tensors: list[Tensor]) -> Changes:
        """What is different now; tensors of the trace that are kept join the list."""
        gradients: dict[int, Any] = {}
        for i, x, gradient, array, *flags in self._tensors:
            path = self._reach.leaves[i].path
            if x.array is not array or [x._requires_grad, x._has_wide_grad] != flags:
                raise TraceError(
                    f"compile: {path} was moved, or its requires_grad or grad_dtype set: do that outside of it"
                )
            if x.grad is not gradient:
                if x.grad is not None and not is_traced(x.grad):
                    raise TraceError(f"compile: {path}.grad was set to a tensor from outside: copy it")
                gradients[i] = numbered(x.grad, tensors)
        changed: dict[int, dict[Any, Any]] = {}
        for i, ((path, x), old) in enumerate(zip(self._reach.containers, self._contents, strict=True)):
            new = contents(x)
            where = {id(value): key for key, value in old.items() if not isinstance(value, int)}
            for key in old | new:  # in the order in which they came, not in that of a set
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
        for _, x, gradient, array, requires_grad, has_wide_grad in self._tensors:
            x.grad, x.array, x._requires_grad, x._has_wide_grad = gradient, array, requires_grad, has_wide_grad


class Changes:
    """Gradients by leaf, and by container what is different after a call, with Places for results."""

    def __init__(self, gradients: dict[int, Any], changed: dict[int, dict[Any, Any]]):
        self._gradients = gradients
        self._changed = changed

    def repeat(self, reach: Reach, results: Sequence[Tensor], floats: Sequence[float]) -> None:
        for i, gradient in self._gradients.items():
            reach.leaves[i].object.grad = filled(gradient, results, floats)
        for i, changed in self._changed.items():
            x = reach.containers[i][1]
            old = contents(x)
            new = old | {
                k: old[v.key] if isinstance(v, Old) else filled(v, results, floats) for k, v in changed.items()
            }
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
        dict.update(x, new)  # a Counter's own update adds
