"""Choices made by timing, as of a matrix product's fastest algorithm. Floor 3.

Another algorithm may round otherwise, so a choice is part of what a run computes: it is made once, when a program is
compiled, and whoever repeats the run reads it. A choice is a text, under a key that says all it depends on. One that
was loaded precedes one that this process made, and that before one that an earlier process left in the disk cache.
"""

from __future__ import annotations

import json
from pathlib import Path

from . import cache, durable, groups
from .errors import FileError

_choices: dict[str, str] = {}  # of this process, by key
_eager: dict[str, str] = {}  # what eager mode takes


def choices() -> dict[str, str]:
    """Returns the choices that this process has loaded, made, or found in the disk cache, by key."""
    return dict(_choices)


def lookup(key: str, *, eager: bool = False) -> str | None:
    """The choice under a key, or None; in eager mode only one that was loaded for it."""
    if eager:
        return _eager.get(key)
    if key not in _choices:
        stored = cache.read(_name(key))
        found = _agreed(key, None if stored is None else stored.decode())
        if found is not None:
            _choices.setdefault(key, found)
    return _choices.get(key)


def record(key: str, value: str) -> str:
    """Keeps a choice, here and in the disk cache, and returns it; or one that another thread or process kept before."""
    if lookup(key) is None:
        _choices.setdefault(key, _agreed(key, value) or value)
        cache.write(_name(key), _choices[key].encode())
    return _choices[key]


def save(path: str | Path) -> None:
    """Writes choices() as JSON; an older file stays whole until the new one is complete. Raises OSError."""
    with durable.replacing(Path(path)) as file:
        file.write((json.dumps(_choices, indent=2, sort_keys=True) + "\n").encode())


def load(path: str | Path, *, eager: bool = False) -> None:
    """Reads choices that were saved; they replace this process's own.

    What was compiled before keeps its choices, so load first. Eager mode makes no choices; with `eager` it takes these
    too, for what it has not computed yet.
    Raises FileError for a file that holds no choices, OSError where it can't be read.
    """
    try:
        loaded = json.loads(Path(path).read_bytes())
        if type(loaded) is not dict or not all(type(value) is str for value in loaded.values()):
            raise ValueError("it is no table of texts")
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"tuning.load: {path} is damaged ({error}): bring it back, or remove it: then the choices are made again, "
            "and the last bits may differ"
        ) from None
    _choices.update(loaded)
    if eager:
        _eager.update(loaded)


def _agreed(key: str, value: str | None) -> str | None:
    ranks = groups.everyone
    return value if ranks is None else ranks.first(key, value)


def _name(key: str) -> str:
    return cache.name_of("choice", key)
