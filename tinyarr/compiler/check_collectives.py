"""Agreement of ranks: before a program first runs, they compare the collectives that it holds. Floor 2.

Example: rank 0 sums (3,) and then (4,) over both ranks, rank 1 first (4,). Each would wait for the other for good, or
add up what does not belong together. So all ranks raise, and name collective number 1 and its line on each rank. All
else may differ: a rank that owns other parameters than another updates others.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from ..errors import TraceError
from ..groups import Group
from ..ops.collective import describe
from ..program import Graph
from .uses import is_collective


def agree(graph: Graph, name: str) -> None:
    """Raises TraceError, on all ranks of a group, where the collectives that all of them take part in differ."""
    nodes: list[Any] = [node for node in graph.nodes if is_collective(node)]
    # In one order on all ranks, so that no two wait for each other in different groups.
    groups = sorted({node.call.params["group"] for node in nodes}, key=lambda group: group.ranks)
    for group in groups:
        if group.size > 1:
            _agree(group, name, [n for n in nodes if set(group.ranks) <= set(n.call.params["group"].ranks)])


def _agree(group: Group, name: str, nodes: list[Any]) -> None:
    calls = [node.call for node in nodes]
    lines = [describe(c.primitive, c.in_shapes[0], c.in_dtypes[0], **c.params) for c in calls]
    found = group.exchange(_digest(lines))
    different = [rank for rank, digest in zip(group.ranks, found, strict=True) if digest != found[0]]
    if not different:
        return
    known = itertools.zip_longest(*group.exchange([_digest([line]) for line in lines]))
    first = next(number for number, digests in enumerate(known) if len(set(digests)) > 1)
    here = f"{lines[first]} {nodes[first].line}".rstrip() if first < len(lines) else "no more"
    told = "".join(f"\n  rank {rank}: {line}" for rank, line in zip(group.ranks, group.exchange(here), strict=True))
    ranks = f"{'ranks' if len(different) > 1 else 'rank'} {', '.join(map(str, different))}"
    raise TraceError(
        f"compile: {name}: {ranks} would run other collectives than rank {group.ranks[0]}: call the same ones in the "
        f"same order on every rank. Of those that ranks {group.name} share, number {first + 1} is{told}"
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
