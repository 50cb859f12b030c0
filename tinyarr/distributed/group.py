"""Group: the processes, called ranks, that compute together; and the mesh, which names the axes along which they do.

How the ranks of a run find each other is `rendezvous`; how each hears that another is lost, `control`. What they
compute together are the collectives of `ops/collective.py`, which backends run over MPI or NCCL.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ArgumentError
from . import environment, rendezvous
from .control import Control

HANG = 60.0  # seconds after which who has not come is lost


class Group:
    """Some ranks of a run in a fixed order. All of them must call the same collectives in the same order.

    ranks: their numbers in the run. rank, size: which of them this process is, and how many there are. Two groups of
    the same ranks are one object.
    """

    def __init__(self, ranks: tuple[int, ...], own: int, control: Control | None, known: dict):
        self.ranks = ranks
        self.rank = ranks.index(own)
        self.size = len(ranks)
        self.name = ",".join(map(str, ranks))
        self._own, self._control, self._known = own, control, known
        self._begun = 0
        self._exchanges = itertools.count()
        known[ranks] = self

    def __repr__(self) -> str:
        return f"Group({self.name})"

    def subgroup(self, members: Sequence[int]) -> Group:
        """The group of these members, numbered as in this one. Raises ArgumentError where this process is none of them.

        Nothing is sent: each of its members calls this.
        """
        members = [operator.index(m) for m in members]
        if not members or len(set(members)) < len(members) or not all(0 <= m < self.size for m in members):
            raise ArgumentError(f"subgroup: members are {members}: give different numbers from 0 to {self.size - 1}")
        if self.rank not in members:
            raise ArgumentError(f"subgroup: members are {members}, this rank is {self.rank}: only members make a group")
        ranks = tuple(self.ranks[m] for m in members)
        return self._known.get(ranks) or Group(ranks, self._own, self._control, self._known)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, by rank: for a few bytes on the host, in anything that JSON can write.

        Raises RankError where a rank does not come.
        """
        if self._control is None or self.size == 1:
            return [value]
        key = f"{self.name}/{next(self._exchanges)}"
        return self._control.exchange(key, value, self.ranks)

    def first(self, key: str, value: Any) -> Any:
        """Of all values that ranks of the run bring under a key the one that came first; None brings nothing.

        So a choice that each could make otherwise is made once. Ranks need not ask together, nor all of them.
        """
        return value if self._control is None else self._control.first(key, value)

    def begin(self, operation: str) -> int:
        """Counts a collective that begins; the number tells `wait` which it was."""
        global _last_begun
        self._begun += 1
        if self._control is not None:
            _last_begun = self
            self._control.begin(self.name, self._begun, operation)
        return self._begun

    def agree(self, operation: str, call: str) -> None:
        """Returns once all ranks are about to run the same collective.

        call: it and what it is given, in words. Raises ArgumentError, on all ranks, where it differs; so the ranks
        stay together.
        """
        if self._control is None or self.size == 1:
            return
        number = self.begin(operation)
        key = f"{self.name}/collective {number}"
        found = self._control.exchange(key, call, self.ranks, (self.name, number))
        if len(set(found)) > 1:
            told = "".join(f"\n  rank {rank}: {its}" for rank, its in zip(self.ranks, found, strict=True))
            raise ArgumentError(
                f"{operation}: ranks {self.name} would run different collectives: call the same ones in the same order "
                f"on every rank, with operands of one shape and dtype:{told}"
            )

    def wait(self, done: Callable[[], bool], number: int | None = None) -> None:
        """Returns once `done()` says so. Raises RankError where a rank is lost, or has not come after the time-out.

        number: of the collective that is waited for; else the last begun.
        """
        if self._control is None:
            while not done():
                pass
        else:
            self._control.wait(done, self.name, self._begun if number is None else number, self.ranks)


class Mesh:
    """The ranks of a group laid out in a grid whose axes have names: `Mesh(data=4, tensor=2)`.

    Neighbours along the last axis have neighbouring numbers. `mesh["data"]` is the group of this rank and those that
    differ from it along that axis alone.
    """

    def __init__(self, group: Group | None = None, **axes: int):
        self.group = world() if group is None else group
        self.axes = axes
        if math.prod(axes.values()) != self.group.size or any(n < 1 for n in axes.values()):
            raise ArgumentError(f"Mesh: axes are {axes}, the ranks {self.group.size}: their product must be that")

    def __getitem__(self, axis: str) -> Group:
        if axis not in self.axes:
            raise ArgumentError(f"Mesh: there is no axis {axis!r}: it has {list(self.axes)}")
        names = list(self.axes)
        step = math.prod(self.axes[name] for name in names[names.index(axis) + 1 :])
        first = self.group.rank - self.group.rank // step % self.axes[axis] * step
        return self.group.subgroup([first + i * step for i in range(self.axes[axis])])


_world: Group | None = None
_last_begun: Group | None = None


def init(*, timeout: float | None = None) -> Group:
    """Meets the other ranks of the run, once, and returns the group of all; world() does it where it wasn't called.

    timeout: seconds to wait for the others, here and in every collective; else TINYARR_TIMEOUT, or 60. Which ranks
    there are is told by the launcher (`python -m tinyarr launch`, mpiexec, srun or torchrun); without one this process
    is the only rank. Raises RankError that names who did not come, and ArgumentError if the run has met already, or for
    variables and seconds that can't be understood.
    """
    global _world
    if _world is not None:
        raise ArgumentError("init: the ranks have met already: call it once, before anything else of distributed")
    place = environment.find()
    timeout = environment.timeout(HANG, given=timeout)
    control = None if place.size == 1 else rendezvous.meet(place, timeout)
    _world = Group(tuple(range(place.size)), place.rank, control, {})
    return _world


def world() -> Group:
    """The group of all ranks of the run."""
    return _world or init()


def rank() -> int:
    """This process' number among the ranks of the run; they need not have met."""
    return environment.find().rank


def met() -> Group | None:
    """The group of all ranks, if they have met."""
    return _world


def watching() -> Group | None:
    """The group that began a collective last, of which a rank may be lost; None while only this process computes."""
    return _last_begun


def local_rank() -> int:
    """Which of the ranks on this machine this is: the number of the GPU to use."""
    return environment.find().local_rank
