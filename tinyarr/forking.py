"""What a forked child finds as if nothing had run beside it: only the thread that forked lives on there."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_locks: weakref.WeakKeyDictionary[Any, tuple[str, Callable[[], Any]]] = weakref.WeakKeyDictionary()


def renew_in_children(owner: Any, attribute: str, make: Callable[[], Any]) -> None:
    """Gives an object a new lock in each forked child: the thread that held the old one may be gone."""
    _locks[owner] = attribute, make


def in_children(function: Callable[[], None]) -> None:
    """Runs a function in each forked child, where a system can fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


@in_children
def _renew() -> None:
    for owner, (attribute, make) in list(_locks.items()):
        setattr(owner, attribute, make())
