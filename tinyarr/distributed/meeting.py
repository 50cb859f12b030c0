"""Meeting of a run's ranks: init, world; and the mesh, which names the axes along which they compute together. Floor 4.

How they find each other is `rendezvous`; how each hears that another is lost, `control`. What they compute together
are the collectives of `ops/collective.py`, which backends run over MPI or NCCL.
"""

from __future__ import annotations

import math

from .. import groups
from ..errors import ArgumentError
from ..groups import Group, world
from .runtime import environment, rendezvous

HANG = 60.0  # seconds after which who has not come is lost


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


def init(*, timeout: float | None = None) -> Group:
    """Meets the other ranks of the run, once, and returns the group of all; world() does it where it wasn't called.

    timeout: seconds to wait for the others, here and in every collective; else TINYARR_TIMEOUT, or 60. Which ranks
    there are is told by the launcher (`python -m tinyarr launch`, mpiexec, srun or torchrun); without one this process
    is the only rank. Raises RankError that names who did not come, and ArgumentError if the run has met already, or for
    variables and seconds that can't be understood.
    """
    if groups.everyone is not None:
        raise ArgumentError("init: the ranks have met already: call it once, before anything else of distributed")
    place = environment.find()
    timeout = environment.timeout(HANG, given=timeout)
    control = None if place.size == 1 else rendezvous.meet(place, timeout)
    groups.everyone = Group(tuple(range(place.size)), place.rank, control, {})
    return groups.everyone


def rank() -> int:
    """This process' number among the ranks of the run; they need not have met."""
    return environment.find().rank


def local_rank() -> int:
    """Returns the number of this rank among those on this machine: that of the GPU to use."""
    return environment.find().local_rank


groups.meet = init
