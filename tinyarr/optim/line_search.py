"""Line search: a step along a direction that fulfils the strong Wolfe conditions. Floor 5.

Source: Nocedal & Wright 2006, "Numerical optimization", algorithms 3.5 (a bracket) and 3.6 (its zoom), equation 3.59
(the cubic); the safeguards are those of Schmidt's minFunc and of PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

DECREASE, CURVATURE = 1e-4, 0.9  # c1 and c2 of the conditions
MOST_EVALUATIONS = 25


class Trial(NamedTuple):
    """A step along the direction, the loss there, its derivative along the direction, and the gradient."""

    step: float
    loss: float
    slope: float
    gradient: Any


def strong_wolfe(
    evaluate: Callable[[float], Trial], start: Trial, step: float, length: float, smallest: float
) -> tuple[Trial, int]:
    """Returns a trial whose loss and slope the conditions accept, or the best one found, and the number of evaluations.

    start: the trial of step 0, whose slope is negative. step: the first one to try. length: the largest change of a
    parameter by a step of 1. smallest: a bracket that changes no parameter by more is not divided further.
    """

    def is_too_high(trial: Trial) -> bool:
        return trial.loss > start.loss + DECREASE * trial.step * start.slope

    def is_flat(trial: Trial) -> bool:
        return abs(trial.slope) <= -CURVATURE * start.slope

    before, trial, evaluations = start, evaluate(step), 1
    while True:  # longer steps, until the minimum lies between the last two
        if is_too_high(trial) or (evaluations > 2 and trial.loss >= before.loss):
            break
        if is_flat(trial):
            return trial, evaluations
        if trial.slope >= 0:
            break
        if evaluations > MOST_EVALUATIONS:
            before = start
            break
        bounds = trial.step + 0.01 * (trial.step - before.step), 10 * trial.step
        before, trial = trial, evaluate(minimum_of_cubic(before, trial, bounds))
        evaluations += 1

    low, high = (before, trial) if before.loss <= trial.loss else (trial, before)
    came_close = False
    while evaluations <= MOST_EVALUATIONS and abs(high.step - low.step) * length >= smallest:
        left, right = sorted((low.step, high.step))
        step, margin = minimum_of_cubic(low, high, (left, right)), 0.1 * (right - left)
        is_close = min(right - step, step - left) < margin
        if is_close and (came_close or not left < step < right):  # it would creep along one end
            step = right - margin if right - step < step - left else left + margin
            is_close = False
        came_close = is_close
        trial = evaluate(step)
        evaluations += 1
        if is_too_high(trial) or trial.loss >= low.loss:
            high = trial
        elif is_flat(trial):
            return trial, evaluations
        else:
            low, high = trial, low if trial.slope * (high.step - low.step) >= 0 else high
        if high.loss < low.loss:
            low, high = high, low
    return low, evaluations


def minimum_of_cubic(a: Trial, b: Trial, bounds: tuple[float, float]) -> float:
    """The step in bounds at which the cubic through both losses and slopes is least; their middle if it has no minimum.

    >>> from tinyarr.optim.line_search import Trial, minimum_of_cubic
    >>> minimum_of_cubic(Trial(0, 1, -2, None), Trial(3, 4, 4, None), (0, 3))  # of (t - 1)^2
    1.0
    """
    if a.step > b.step:
        a, b = b, a
    middle = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.step - b.step)
    root = middle * middle - a.slope * b.slope
    if not root >= 0:
        return (bounds[0] + bounds[1]) / 2
    root = math.sqrt(root)
    step = b.step - (b.step - a.step) * ((b.slope + root - middle) / (b.slope - a.slope + 2 * root))
    return min(max(step, bounds[0]), bounds[1])
