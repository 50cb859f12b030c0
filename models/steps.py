"""Steps of training: what each computes, and how they follow each other so that a GPU never waits for the host."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tinyarr
from tinyarr import optim
from tinyarr.data import Batches

from .options import TrainOptions


class Programs(NamedTuple):
    """What a run computes, compiled or not. Gradients are added up batch by batch."""

    add_gradient: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]  # of a batch, whose loss it returns
    gradient_norm: Callable[[], tinyarr.Tensor]
    update: Callable[[tinyarr.Tensor, Sequence[tinyarr.Tensor]], None]  # see make_programs
    loss: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]

    @property
    def seconds(self) -> float:
        """How long compiling has taken so far."""
        return sum(getattr(program, "seconds", 0.0) for program in self)


def make_programs(model: Any, optimizer: optim.Optimizer, options: TrainOptions) -> Programs:
    """The programs of a run; each is compiled at its first call.

    update(norm, losses) changes the weights by the gradients, clipped by their norm, and forgets them. Where the norm
    or a loss is not finite it leaves the weights and the optimizer's state as they are.
    """
    accumulate, largest_norm = options.accumulate, options.clip or math.inf

    def add_gradient(tokens, targets):
        loss = model.loss(tokens, targets) / accumulate
        loss.backward()
        return loss.detach()

    def gradient_norm():
        return optim.grad_norm(optimizer.parameters)

    def update(norm, losses):
        optim.clip_grad_norm(optimizer.parameters, largest_norm, norm=norm)
        optimizer.step(where=tinyarr.all(tinyarr.isfinite(tinyarr.stack([norm, *losses]))))
        optimizer.zero_grad()

    def loss(tokens, targets):
        with tinyarr.no_grad():
            return model.loss(tokens, targets)

    functions = add_gradient, gradient_norm, update, loss
    return Programs(*map(tinyarr.compile, functions) if options.compile else functions)


def one_ahead(
    batches: Batches, numbers: Iterable[int], device: tinyarr.Device
) -> Iterator[tuple[tinyarr.Tensor, tinyarr.Tensor]]:
    """Batches of these numbers on the device, where the next is on its way before one is used."""
    made = (tuple(tinyarr.Tensor(ids, device=device) for ids in batches.batch(number)) for number in numbers)
    return (batch for batch, _ in itertools.pairwise(itertools.chain(made, [None])))


class Launched(NamedTuple):
    """A step whose losses and gradient norm are being computed, and the seconds that launching it took."""

    step: int
    val_loss: float | None
    lr: float
    losses: Sequence[tinyarr.Tensor]
    norm: tinyarr.Tensor
    seconds: float


class Steps:
    """Steps of training, each read one late: only once the next is launched, so a GPU never waits for the host.

    finish(step, val_loss, lr, loss, norm, seconds) gets each in order. seconds is what the host spent on launching a
    step and on waiting for it: added up they are the whole time, less that of compiling and of whatever comes between
    read() and the next launch, such as a validation.
    """

    def __init__(
        self, programs: Programs, optimizer: optim.Optimizer, batches: Iterator[tuple], accumulate: int,
        finish: Callable[..., None],
    ) -> None:
        self.programs, self.optimizer, self.batches = programs, optimizer, batches
        self.accumulate, self.finish = accumulate, finish
        self.unread: Launched | None = None
        self.looked = 0.0

    def launch(self, step: int, lr: float, val_loss: float | None) -> None:
        """Launch a step on the next batches, then read the one before it."""
        if self.unread is None:
            self._lap()
        losses = [self.programs.add_gradient(*next(self.batches)) for _ in range(self.accumulate)]
        norm = self.programs.gradient_norm()
        self.optimizer.lr = lr
        self.programs.update(norm, losses)
        for value in (*losses, norm):
            value.copy_to_host_async()
        launched = Launched(step, val_loss, lr, losses, norm, self._lap())
        self.read()
        self.unread = launched

    def read(self) -> None:
        """Wait for the step that was launched last and finish it, unless that is done."""
        if self.unread is not None:
            (step, val_loss, lr, losses, norm, seconds), self.unread = self.unread, None
            loss, norm = sum(value.item() for value in losses), norm.item()
            self.finish(step, val_loss, lr, loss, norm, seconds + self._lap())

    def _lap(self) -> float:
        """The seconds since it was last asked, without those spent on compiling."""
        before, self.looked = self.looked, time.perf_counter() - self.programs.seconds
        return self.looked - before
