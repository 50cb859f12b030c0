"""Two tiers of tests: `make test` shows each kind in a few cases, `make test-all` runs all of them.

A property draws a quarter of its examples in the first tier, or fewer where they cost much, and the whole number in the
second, where it runs again: its marker is `property`. Of many cases that are alike the first tier runs some: the others
are `slow`.
"""

import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings

ALL = os.environ.get("TINYARR_ALL_EXAMPLES") == "1"


def at_most(most: int, parent: settings | None = None, first: int | None = None, **more: Any) -> settings:
    """Settings of a property that draws `most` examples, in the first tier `first`, or a quarter, at least two."""
    return settings(parent, max_examples=most if ALL else first or max(most // 4, 2), **more)


def slow(*values: Any, **named: Any) -> Any:
    """A parameter whose test only the second tier runs."""
    return pytest.param(*values, marks=pytest.mark.slow, **named)


def thinned(cases: Sequence[Any], every: int) -> list[Any]:
    """Parameters, of which each `every`-th is in the first tier: with 3 a, slow(b), slow(c), d, slow(e), ..."""
    return [case if i % every == 0 else slow(*case) if isinstance(case, tuple) else slow(case)
            for i, case in enumerate(cases)]  # fmt: skip
