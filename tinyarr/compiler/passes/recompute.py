"""Recomputation: cheap results are computed again where they are next read, instead of being held until then. Floor 2.

Example: %5 = exp(%4) is (1024, 1024) in float32, and its reader in backward is 100 steps later. A second exp just
before that reader frees 4 MiB for 100 steps, if %4 is held until then anyway.

`checkpoint` says in the model what is not to be held, and is traced as it is written. Here the compiler chooses more:
the elementwise results, norms and unfolded windows alive at the peak of memory, until the plan fits a budget.
Source: Chen et al. 2016, "Training deep nets with sublinear memory cost"; the choice by what it saves at the peak is
that of Jain et al. 2020 ("Checkmate") made greedy.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ...program import Graph, Node, Step, Value
from ..uses import Uses, highest_number, made_by, nbytes, reading, values_read


class _Choice(NamedTuple):
    """The node at position `made` is run again before the one at position `again`, which frees `saved` bytes."""

    saved: int
    made: int
    again: int


def recompute(graph: Graph, budget: int, size: Callable[[Graph], int]) -> Graph:
    """Returns the graph with as little made again as is needed for `size`, the bytes that its plan takes, to fit.

    Planning takes as long as all passes together, so it is done for few numbers of choices. The bytes alive before the
    passes are known for all numbers, and what passes change of them is nearly the same for all but the smallest: each
    plan tells what to expect of the others. The search ends where one choice less is known, or expected, not to fit.

    Example: GPT-2 1558M within 30 GiB, 32.21 GB. Of 193 choices the first 74 leave 32.19 GB alive. Their plan takes
    31.92 GB, so that 69 should do, and these are the last that are planned.

    Warns where all that can be made again does not suffice, and returns what takes least: making small values again can
    cost more, by the order in which the others are then placed.
    """
    choices, alive = _choices(graph)
    few, enough = -1, len(choices) + 1
    least, difference, step = graph, 0, 1
    missed: list[tuple[int, Graph]] = []  # what was planned and takes too many bytes
    while enough - few > 1:
        numbers = range(few + 1, min(enough, len(choices) + 1))
        expected = next((n for n in numbers if alive[n] + difference <= budget), numbers[-1])
        guess = max(expected, min(few + step, numbers[-1]))
        changed = _repeated(graph, choices[:guess])[0] if guess else graph
        taken = size(changed)
        difference = taken - alive[guess]
        if taken > budget:
            missed.append((taken, changed))
            few, step = guess, 2 * step  # where expectations are wrong again and again, each miss leads farther
            continue
        enough, least, step = guess, changed, 1
        if guess > 1 and alive[guess - 1] + difference > budget:
            break
    if enough > len(choices):
        taken, least = min([(size(graph), graph), *missed], key=operator.itemgetter(0))
        warnings.warn(
            f"compile: memory_budget is {budget:,} bytes, recomputation reaches {taken:,}: make batches smaller, "
            "or use checkpoint", stacklevel=4,
        )  # fmt: skip
    return least


def _choices(graph: Graph) -> tuple[list[_Choice], list[int]]:
    """Returns the nodes to run again, in rounds: those that lower the peak most, until nothing lowers it.

    And about how many bytes are alive at the peak with none of them, the first, the first two, and so on.
    """
    found: list[_Choice] = []
    alive: list[int] = []
    while True:
        more, most = _best(graph, found)
        alive.append(most)
        if not more:
            return found, alive
        found += more
        alive += [most - saved for saved in itertools.accumulate(choice.saved for choice in more[:-1])]


def _best(graph: Graph, chosen: Sequence[_Choice]) -> tuple[list[_Choice], int]:
    """Returns the nodes that free most bytes at the peak, and all that free at least half as many.

    And how many bytes are alive there.
    """
    changed, origins = _repeated(graph, chosen)
    lives = Uses(changed)
    peak, alive = _fullest(changed, lives)
    found: list[_Choice] = []
    # Made before the peak and next read behind it: in between it is memory that nothing uses.
    for made, node in enumerate(changed.nodes[:peak]):
        if origins[made] is None or not (isinstance(node, Node) and node.call.primitive.cheap):
            continue
        later = min((r for v in made_by(node) for r in lives.readers.get(v, ()) if r > peak), default=None)
        operands = set(values_read(node))
        # Made again of state that was overwritten, it would be another value. What was chosen before stays as it is.
        if later is None or origins[later] is None or any(lives.overwritten(v) < later for v in operands):
            continue
        freed = [v for v in made_by(node) if lives.ends(v) > peak and v not in lives.kept
                 and peak not in lives.readers[v]]  # fmt: skip
        # Operands that would be free by then have to be held instead.
        longer = [v for v in operands if lives.ends(v) < peak]
        saved = sum(map(nbytes, freed)) - sum(map(nbytes, longer))
        found.append(_Choice(saved, origins[made], origins[later]))  # type: ignore[arg-type]
    most = max((choice.saved for choice in found), default=0)
    return [choice for choice in sorted(found, reverse=True) if choice.saved > 0 and 2 * choice.saved >= most], alive


def _fullest(graph: Graph, lives: Uses) -> tuple[int, int]:
    """Returns the position at which most bytes are alive, and how many."""
    change = [0] * (len(graph.nodes) + 1)
    for value, made in lives.maker.items():
        change[made] += nbytes(value)
        change[min(lives.ends(value), len(graph.nodes) - 1) + 1] -= nbytes(value)
    total = most = best = 0
    for position, by in enumerate(change):
        total += by
        if total > most:
            most, best = total, position
    return best, most


def _repeated(graph: Graph, choices: Sequence[_Choice]) -> tuple[Graph, list[int | None]]:
    """Returns the graph with the chosen nodes run again, for all later readers, and the old position of each node.

    Example: with exp at 0 and its readers at 1 and 5, choice (0, 5) gives exp at 0 and 5, the second of them new, with
    the reader at 6; the old positions are 0, 1, 2, 3, 4, None, 5.
    """
    before: dict[int, list[int]] = {}
    for made, again in sorted((choice.made, choice.again) for choice in choices):
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
