"""Scheduler: gives an optimizer the learning rate of each step. Floor 5."""

from __future__ import annotations

from ..schedule import Schedule
from .optimizer import Optimizer


class Scheduler:
    """Sets the optimizer's learning rate to `rate(0)`, and with each `step()` to that of the next step.

    rate: a function of the number of steps before, as those of `tinyarr.schedule`, or one's own, such as
    `lambda step: 0.1 * 0.5 ** (step // 30)`. The optimizer's groups keep their shares of it. Call `step()` after
    `optimizer.step()`, outside of a compiled function: there the count is a Python number.

    >>> import tinyarr
    >>> p = tinyarr.ones(3, requires_grad=True)
    >>> optimizer = tinyarr.optim.SGD([p])
    >>> scheduler = tinyarr.optim.Scheduler(optimizer, tinyarr.schedule.linear(1.0, steps=4))
    >>> scheduler.step()
    >>> optimizer.lr.item()
    0.75
    """

    def __init__(self, optimizer: Optimizer, rate: Schedule):
        if not callable(rate):
            raise TypeError(f"Scheduler: rate is {type(rate).__name__}: give a function of the step")
        self.optimizer, self.rate = optimizer, rate
        self._go_to(0)

    def _go_to(self, step: int) -> None:
        rate = self.rate(step)
        try:
            self.optimizer.lr = rate
        except TypeError:
            raise TypeError(f"Scheduler: rate({step}) is {type(rate).__name__}: it must be a number") from None
        self.last_step = step

    def step(self) -> None:
        """Goes to the next step's learning rate."""
        self._go_to(self.last_step + 1)

    def state_dict(self) -> dict[str, int]:
        """`{"step"}`: the schedule itself is given when the scheduler is made."""
        return {"step": self.last_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where another scheduler was."""
        self._go_to(int(state["step"]))
