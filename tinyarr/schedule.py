"""Learning-rate schedules: functions that map a step, counted from 0, to a learning rate. Floor 1.

All rise linearly over `warmup` steps to the peak `lr` first, so that step 0 already moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import ArgumentError

Schedule = Callable[[int], float]


def _warmed(name: str, lr: float, warmup: int, steps: int, after: Callable[[float], float]) -> Schedule:
    """Warm-up, then `after(fraction of the remaining steps that has passed)`, in [0, 1], times lr."""
    if warmup < 0 or steps < warmup:
        raise ArgumentError(f"{name}: warmup is {warmup}, steps is {steps}: 0 <= warmup <= steps must hold")

    def rate(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        return lr * after(min((step - warmup) / max(steps - warmup, 1), 1.0))

    return rate


def constant(lr: float, *, warmup: int = 0) -> Schedule:
    """lr throughout."""
    return _warmed("constant", lr, warmup, warmup, lambda passed: 1.0)


def linear(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """A straight line from lr after the warm-up to `final * lr` at `steps`."""
    return _warmed("linear", lr, warmup, steps, lambda passed: 1 + (final - 1) * passed)


def cosine(lr: float, steps: int, *, warmup: int = 0, final: float = 0.1) -> Schedule:
    """Half a cosine from lr after the warm-up to `final * lr` at `steps` (Loshchilov & Hutter 2017, "SGDR", eq. 5)."""
    return _warmed(
        "cosine", lr, warmup, steps, lambda passed: final + (1 - final) * (1 + math.cos(math.pi * passed)) / 2
    )


def warmup_stable_decay(lr: float, steps: int, *, warmup: int = 0, decay: int, final: float = 0.0) -> Schedule:
    """lr until `decay` steps before the end, then a line down to `final * lr` (Hu et al. 2024, "MiniCPM", eq. 1)."""
    if not 0 <= decay <= steps - warmup:
        raise ArgumentError(f"warmup_stable_decay: decay is {decay}: 0 <= decay <= steps - warmup must hold")
    remaining = max(steps - warmup, 1)

    def shape(passed: float) -> float:
        into = passed * remaining - (remaining - decay)
        return 1.0 if into <= 0 else 1 + (final - 1) * into / decay

    return _warmed("warmup_stable_decay", lr, warmup, steps, shape)
