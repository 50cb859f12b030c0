"""Trees: lists, tuples and dicts of any depth, their leaves, and trees of the same form with others. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A list, tuple or dict of any depth with all that is in it changed, or what is none of these changed itself."""
    if isinstance(tree, dict):
        return tree.copy() | {key: mapped(part, change) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return sequence_like(tree, [mapped(part, change) for part in tree])
    return change(tree)


def sequence_like(sequence: Any, parts: Iterable[Any]) -> Any:
    """A list, tuple or named tuple of the same class with other parts."""
    return type(sequence)(*parts) if hasattr(sequence, "_fields") else type(sequence)(parts)


def leaves(tree: Any) -> list[Any]:
    """All that is in a list, tuple or dict of any depth, in order."""
    found: list[Any] = []
    mapped(tree, found.append)
    return found


def rebuilt(tree: Any, parts: Iterable[Any]) -> Any:
    """The tree with other leaves."""
    left = iter(parts)
    return mapped(tree, lambda _: next(left))
