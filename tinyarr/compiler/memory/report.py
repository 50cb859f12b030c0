"""Report of a program's memory, step by step: as a table, and as a picture. Floor 2."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...program import Copy, Graph, Plan
from ..uses import nbytes

ROWS = 20  # of the table


class Life(NamedTuple):
    """Stretch of the arena: bytes from `offset`, held from step `first` to step `last`; the operation, and its line."""

    offset: int
    nbytes: int
    first: int
    last: int
    kind: str
    operation: str
    line: str


class MemoryPlan:
    """Plan of a program's memory: its values, their bytes, and the steps at which they are held.

    arena, scratch, state: bytes that all values share, that kernels work in beside them, and that outlive a call.
    lives: the values in the arena. Printed, it shows the step at which most is alive, and by whom; draw() makes a
    picture of all.
    """

    def __init__(self, graph: Graph, plan: Plan, scratch: int):
        self.arena = plan.arena
        self.scratch = scratch
        self.state = sum(nbytes(s.before) for s in graph.states)
        self.steps = len(plan.steps)
        self.lives = []
        for value, stretches in plan.lives.items():
            for low, high, first, last in stretches:
                step = plan.steps[first]
                operation, line = ("copy", "") if isinstance(step, Copy) else (step.call.primitive.name, step.line)
                shape = list(value.shape) if len(stretches) == 1 else [(high - low) // value.dtype.itemsize]
                kind = f"{value.dtype.name}{shape}"
                self.lives.append(Life(plan.place(value).offset + low, high - low, first, last, kind, operation, line))
        self.lives.sort(key=lambda life: (-life.nbytes, life.first))

    def alive(self, step: int) -> list[Life]:
        """Returns the values in memory at a step, the largest first."""
        return [life for life in self.lives if life.first <= step <= life.last]

    @property
    def fullest(self) -> int:
        """The step at which most bytes are alive; the arena can't be smaller than they are."""
        held = [0] * (self.steps + 1)
        for life in self.lives:
            held[life.first] += life.nbytes
            held[life.last + 1] -= life.nbytes
        most = total = best = 0
        for step, change in enumerate(held):
            total += change
            if total > most:
                most, best = total, step
        return best

    def __str__(self) -> str:
        step = self.fullest
        alive = self.alive(step)
        total = sum(life.nbytes for life in alive)
        lines = [
            f"arena {_mib(self.arena)}, scratch {_mib(self.scratch)}, state {_mib(self.state)}, {self.steps} steps",
            f"step {step} has most alive, {_mib(total)}:",
        ]
        for life in alive[:ROWS]:
            held = f"steps {life.first} to {life.last}"
            lines.append(f"{_mib(life.nbytes):>14}  {held:22} {life.kind:28} {life.operation}  {life.line}".rstrip())
        rest = alive[ROWS:]
        if rest:
            lines.append(f"{_mib(sum(life.nbytes for life in rest)):>14}  {len(rest)} smaller ones")
        return "\n".join(lines)

    def draw(self, path: str | Path) -> None:
        """Writes a picture: steps to the right, bytes of the arena upward, a rectangle a life. Needs matplotlib."""
        from matplotlib.collections import PatchCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle

        figure = Figure(figsize=(12, 6), layout="constrained")
        axes = figure.add_subplot()
        operations = list(dict.fromkeys(life.operation for life in self.lives))
        colors = {name: f"C{i}" if i < 9 else "lightgray" for i, name in enumerate(operations)}
        boxes = [
            Rectangle((x.first, x.offset / 2**20), x.last - x.first + 1, x.nbytes / 2**20) for x in self.lives
        ]
        faces = [colors[x.operation] for x in self.lives]
        axes.add_collection(PatchCollection(boxes, facecolors=faces, edgecolors="white", linewidths=0.3))
        axes.axvline(self.fullest, color="black", linewidth=0.8, linestyle=":")
        axes.set(xlim=(0, max(self.steps, 1)), ylim=(0, max(self.arena / 2**20, 1e-6)), xlabel="step",
                 ylabel="arena (MiB)", title=f"arena {_mib(self.arena)}, state {_mib(self.state)}")  # fmt: skip
        shown = [Patch(color=colors[name], label=name) for name in operations[:9]]
        if len(operations) > 9:
            shown.append(Patch(color="lightgray", label="others"))
        if shown:
            axes.legend(handles=shown, title="made by", loc="upper left", bbox_to_anchor=(1, 1))
        figure.savefig(path)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
