"""Waiting for an event on the device, unless it waits for a rank that is lost. Floor 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....errors import RankError
from ....groups import watching

on_lost_rank: list[Callable[[], None]] = []  # what ends the collectives that would wait for it for good


def wait_for(event: Any) -> None:
    """Returns when a CUDA event has come to pass. Raises RankError where it waits for a rank that is lost."""
    group = watching()
    if group is None:
        event.synchronize()
        return
    try:
        group.wait(lambda: event.done)
    except RankError:
        for abort in on_lost_rank:
            abort()
        raise
