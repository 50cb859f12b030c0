"""Display of a run while it trains: a live line on a terminal, plain lines elsewhere. Floor 5."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

PLAIN_SECONDS = 10


class Progress:
    """A context manager whose `show` takes each record of the log, and `show_validation` what comes between them.

    On a terminal the newest is a line at the bottom, with a bar; elsewhere a line is printed every ten seconds.
    Records with a validation loss stay on the screen either way.
    """

    def __init__(self, first: int, steps: int, *, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn
        from rich.progress import Progress as Bar

        self.first, self.steps = first, steps
        self.console = Console(highlight=False, quiet=not shown)
        self.bar = Bar("{task.description}", BarColumn(20), console=self.console, transient=True,
                       disable=not self.console.is_terminal, refresh_per_second=4)
        self.task = self.bar.add_task("", total=steps, completed=first)
        self.began = self.printed = 0.0
        self.validation = ""

    def __enter__(self) -> Progress:
        self.printed = time.monotonic()
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Prints a line above the newest record."""
        self.console.print(text, soft_wrap=True)

    def show(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if record["step"] == self.first:
            self.began = now
        if record["val_loss"] is not None:
            self.validation = f"  validation {record['val_loss']:.3f}"
        line = self._line(record, now)
        self.bar.update(self.task, completed=record["step"])
        self._renew(line, now, stays=record["val_loss"] is not None)

    def show_validation(self, seen: int, tokens: int) -> None:
        """Shows how many of the tokens of a validation the model has seen."""
        self._renew(f"validation: {seen:,}/{tokens:,} tokens", time.monotonic())

    def _renew(self, line: str, now: float, *, stays: bool = False) -> None:
        self.bar.update(self.task, description=line)
        if stays or (not self.console.is_terminal and now - self.printed >= PLAIN_SECONDS):
            self.console.print(line, soft_wrap=True)
            self.printed = now

    def _line(self, record: dict[str, Any], now: float) -> str:
        step, steps = record["step"], self.steps
        line = f"step {step:>{len(str(steps))}}/{steps}"
        if record["loss"] is not None:
            line += f"  loss {record['loss']:.3f}"
        line += self.validation
        if record["tokens_per_s"] is not None:
            line += f"  {record['tokens_per_s']:,.0f} tokens/s"
        if step > self.first:
            # The mean since the start counts the validations in, which the tokens per second leave out.
            left = (now - self.began) / (step - self.first) * (steps - step)
            line += f"  {timedelta(seconds=round(left))} left"
        return line
