"""Group: some of the processes, called ranks, that compute together. The collectives of a program name theirs. Floor 2.

How the ranks of a run meet, and hear that one is lost, is the business of `distributed`, which sets `meet`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from .errors import ArgumentError


class Group:
    """Some ranks of a run in a fixed order. All of them must call the same collectives in the same order.

    ranks: their numbers in the run. rank, size: which of them this process is, and how many there are. control: the
    connection of this process with the others, None where it is alone. known: all groups of the run, by their ranks:
    two of the same ranks are one object.
    """

    def __init__(self, ranks: tuple[int, ...], own: int, control: Any, known: dict):
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
        """Returns the first of all values that ranks of the run bring under a key; None brings nothing.

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


everyone: Group | None = None  # the group of all ranks, once they have met
_last_begun: Group | None = None


def alone() -> Group:
    """The group of this process, which is the only one where `distributed` isn't loaded."""
    return Group((0,), 0, None, {})


meet: Callable[[], Group] = alone  # what lets the ranks meet


def world() -> Group:
    """The group of all ranks of the run."""
    return everyone or meet()


def watching() -> Group | None:
    """The group that began a collective last, of which a rank may be lost; None while only this process computes."""
    return _last_begun
