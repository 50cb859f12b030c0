"""Forked children: only the forking thread runs there, so locks and what others did are made anew. Floor 2."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

_undone: dict[object, tuple[int, Callable[[], Any]]] = {}
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


@contextlib.contextmanager
def undone_in_children(undo: Callable[[], Any]) -> Iterator[None]:
    """Has what the block changes for a while undone in a child that another thread forks meanwhile."""
    key = object()
    _undone[key] = threading.get_ident(), undo
    try:
        yield
    finally:
        del _undone[key]


@in_children
def _undo() -> None:
    for key, (thread, undo) in reversed(list(_undone.items())):
        if thread != threading.get_ident():
            del _undone[key]
            undo()
