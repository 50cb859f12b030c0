"""Steps of training: what each computes, and how they follow each other without waiting for a GPU. Floor 5."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tinyarr
from tinyarr import distributed, optim
from tinyarr.data import Batches

from .options import TrainOptions


class Programs(NamedTuple):
    """Programs of a run, compiled or not. See make_programs."""

    add_gradient: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]
    step: Callable[[tinyarr.Tensor, tinyarr.Tensor, Sequence[tinyarr.Tensor], float], tuple[tinyarr.Tensor, ...]]
    loss: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]

    @property
    def seconds(self) -> float:
        """Seconds that compiling has taken so far."""
        return sum(getattr(program, "seconds", 0.0) for program in self)


def make_programs(
    model: Any, optimizer: optim.Optimizer, parallel: distributed.OneRank, options: TrainOptions
) -> Programs:
    """The programs of a run; each is compiled at its first call.

    add_gradient(tokens, targets) adds a batch's share of the gradient of a step, and returns its share of the loss.
    step(tokens, targets, losses, stopping) does so for the last batch, changes the weights by the gradient, clipped by
    its norm, and forgets it; where the norm or the loss is not finite it leaves the weights and the optimizer's state
    as they are. It returns the loss, given the shares of the other batches, the norm, and above 0 if `stopping` is on
    any rank. Loss and norm are those of all ranks' batches together.
    """
    accumulate, largest_norm = options.accumulate, options.clip or math.inf

    def add_gradient(tokens, targets):
        loss = model.loss(tokens, targets) / accumulate
        loss.backward()
        if parallel.reduces_each_batch:
            parallel.reduce()
        return loss.detach()

    def step(tokens, targets, losses, stopping):
        loss = tinyarr.sum(tinyarr.stack([*losses, add_gradient(tokens, targets)]))
        if not parallel.reduces_each_batch:
            parallel.reduce()
        norm = parallel.gradient_norm()
        loss, stops = parallel.mean(loss, tinyarr.zeros_like(loss) + stopping)
        optim.clip_grad_norm(optimizer.parameters, largest_norm, norm=norm)
        optimizer.step(where=tinyarr.isfinite(norm) & tinyarr.isfinite(loss))
        parallel.gather()
        optimizer.zero_grad()
        return loss, norm, stops

    def loss(tokens, targets):
        with tinyarr.no_grad():
            return model.loss(tokens, targets)

    functions = add_gradient, step, loss
    return Programs(*map(tinyarr.compile, functions) if options.compile else functions)


def one_ahead(
    batches: Batches, numbers: Iterable[int], device: tinyarr.Device
) -> Iterator[tuple[tinyarr.Tensor, tinyarr.Tensor]]:
    """This rank's batches of these numbers on the device, where the next is on its way before one is used."""
    group = distributed.world()
    drawn = (batches.batch(number, rank=group.rank, ranks=group.size) for number in numbers)
    made = (tuple(tinyarr.Tensor(ids, device=device) for ids in batch) for batch in drawn)
    return (batch for batch, _ in itertools.pairwise(itertools.chain(made, [None])))


class Launched(NamedTuple):
    """A step whose figures (loss, gradient norm, whether to stop) are being computed; launching it took `seconds`."""

    step: int
    val_loss: float | None
    lr: float
    figures: Sequence[tinyarr.Tensor]
    seconds: float


class Steps:
    """Steps of training, each read one late: only once the next is launched, so a GPU never waits for the host.

    finish(step, val_loss, lr, loss, norm, seconds) gets each in order. seconds is what the host spent on launching a
    step and on waiting for it: added up they are the whole time, less that of compiling and of whatever comes between
    read() and the next launch, such as a validation. stopping: whether a step that was read was to be the last.
    """

    def __init__(
        self, programs: Programs, optimizer: optim.Optimizer, batches: Iterator[tuple], accumulate: int,
        finish: Callable[..., None],
    ) -> None:
        self.programs, self.optimizer, self.batches = programs, optimizer, batches
        self.accumulate, self.finish = accumulate, finish
        self.unread: Launched | None = None
        self.stopping = False
        self.looked = 0.0

    def launch(self, step: int, lr: float, val_loss: float | None, stopping: bool = False) -> None:
        """Launches a step on the next batches, then reads the one before it. stopping: whether this rank wants to."""
        if self.unread is None:
            self._lap()
        losses = [self.programs.add_gradient(*next(self.batches)) for _ in range(self.accumulate - 1)]
        self.optimizer.lr = lr
        figures = self.programs.step(*next(self.batches), losses, float(stopping))
        for value in figures:
            value.copy_to_host_async()
        launched = Launched(step, val_loss, lr, figures, self._lap())
        self.read()
        self.unread = launched

    def read(self) -> None:
        """Waits for the step that was launched last and finishes it, unless that is done."""
        if self.unread is not None:
            (step, val_loss, lr, figures, seconds), self.unread = self.unread, None
            loss, norm, stops = (value.item() for value in figures)
            self.stopping |= stops > 0
            self.finish(step, val_loss, lr, loss, norm, seconds + self._lap())

    def _lap(self) -> float:
        """The seconds since it was last asked, without those spent on compiling."""
        before, self.looked = self.looked, time.perf_counter() - self.programs.seconds
        return self.looked - before
