"""Messages on stderr about compiled functions, as the words in $TINYARR_LOG, separated by commas, ask for. Floor 2."""

from __future__ import annotations

import os
import sys

from .errors import ArgumentError

WORDS = {
    "trace": "why a function was traced, and what that cost",
    "kernels": "the C source of each kernel of a new program",
    "launches": "each kernel that a program runs, with its seconds",
}


def asks(word: str) -> bool:
    """Returns whether $TINYARR_LOG has this word. Raises ArgumentError where it has one that means nothing."""
    chosen = [x.strip() for x in os.environ.get("TINYARR_LOG", "").split(",") if x.strip()]
    unknown = [x for x in chosen if x not in WORDS]
    if unknown:
        known = "; ".join(f"{name}: {meaning}" for name, meaning in WORDS.items())
        raise ArgumentError(f"TINYARR_LOG: {unknown[0]!r} is none of its words: list some of them ({known})")
    return word in chosen


def tell(word: str, text: str) -> None:
    """Prints a text where it is asked for."""
    if asks(word):
        print(text, file=sys.stderr)
