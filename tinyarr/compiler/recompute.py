"""Recomputation: what is cheap to make is made again where it is next read, in place of being held until then.

`checkpoint` says in the model what is not to be held, and is traced as it is written. Here the compiler chooses more:
the elementwise results and norms that lie in memory when most of it is taken, until the plan fits a budget.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; the choice by what it saves at the peak is
that of Jain et al. 2020 ("Checkmate") made greedy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..program import Graph, Node, Step, Value
from .lives import Lives, highest_number, made_by, nbytes, reading, values_read


class _Choice(NamedTuple):
    """The node at position `made` is run again before the one at position `again`."""

    made: int
    again: int


def recompute(graph: Graph, budget: int, size: Callable[[Graph], int]) -> Graph:
    """The graph with as little made again as is needed for `size`, the bytes that its plan takes, to be in `budget`.

    Warns where all that can be made again does not suffice.
    """
    if size(graph) <= budget:
        return graph
    choices = _choices(graph)
    low, high = 0, len(choices)  # so many are too few, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if size(_repeated(graph, choices[:middle])[0]) <= budget else (middle, high)
    least, _ = _repeated(graph, choices[:high])
    if high == len(choices) and (reached := size(least)) > budget:
        warnings.warn(
            f"compile: memory_budget is {budget:,} bytes, recomputation reaches {reached:,}: make batches smaller, "
            "or use checkpoint", stacklevel=4,
        )  # fmt: skip
    return least


def _choices(graph: Graph) -> list[_Choice]:
    """What to make again, in rounds: those that lower the peak most, until nothing lowers it."""
    found: list[_Choice] = []
    while more := _best(graph, found):
        found += more
    return found


def _best(graph: Graph, chosen: Sequence[_Choice]) -> list[_Choice]:
    """What frees most of the memory that is taken where most is, and all that frees at least half as much."""
    changed, origins = _repeated(graph, chosen)
    lives = Lives(changed)
    peak = _fullest(changed, lives)
    found: list[tuple[int, _Choice]] = []
    for made, node in enumerate(changed.nodes[:peak]):
        if origins[made] is None or not (isinstance(node, Node) and node.call.primitive.cheap):
            continue
        later = min((r for v in made_by(node) for r in lives.readers.get(v, ()) if r > peak), default=None)
        operands = set(values_read(node))
        if later is None or origins[later] is None or any(lives.overwritten(v) < later for v in operands):
            continue
        freed = [v for v in made_by(node) if lives.ends(v) > peak and v not in lives.kept
                 and peak not in lives.readers[v]]  # fmt: skip
        longer = [v for v in operands if lives.ends(v) < peak]
        saved = sum(map(nbytes, freed)) - sum(map(nbytes, longer))
        found.append((saved, _Choice(origins[made], origins[later])))  # type: ignore[arg-type]
    most = max((saved for saved, _ in found), default=0)
    return [choice for saved, choice in sorted(found, reverse=True) if saved > 0 and 2 * saved >= most]


def _fullest(graph: Graph, lives: Lives) -> int:
    """The position at which most bytes are alive."""
    change = [0] * (len(graph.nodes) + 1)
    for value, made in lives.maker.items():
        change[made] += nbytes(value)
        change[min(lives.ends(value), len(graph.nodes) - 1) + 1] -= nbytes(value)
    total = most = best = 0
    for position, by in enumerate(change):
        total += by
        if total > most:
            most, best = total, position
    return best


def _repeated(graph: Graph, choices: Sequence[_Choice]) -> tuple[Graph, list[int | None]]:
    """The graph with the chosen nodes run again, for all that reads them from there on; and where its nodes were."""
    before: dict[int, list[int]] = {}
    for made, again in sorted(choices):
        before.setdefault(again, []).append(made)
    count = highest_number(graph)
    renamed: dict[Value, Value] = {}
    nodes: list[Step] = []
    origins: list[int | None] = []
    for position, node in enumerate(graph.nodes):
        for made in before.get(position, ()):
            old = graph.nodes[made]
            new = tuple(Value(count + i, v.shape, v.dtype, v.device) for i, v in enumerate(made_by(old), 1))
            count += len(new)
            nodes.append(replace(reading(old, renamed), outputs=new))
            origins.append(None)
            renamed.update(zip(made_by(old), new, strict=True))
        nodes.append(reading(node, renamed))
        origins.append(position)
    return replace(graph, nodes=nodes), origins
