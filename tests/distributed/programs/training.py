"""Small models trained by one process and by several ranks, on the same global batches: what schemes.py compares.

A step has `accumulate` batches for each of `lanes` ranks. One process computes lane after lane. How it adds up the
gradients it says itself, in the order of the scheme that it is compared with: of each lane's batches and then of the
lanes, as DataParallel and stage 1 of Zero do, or of the lanes for each batch, as stage 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinyarr as ta
from models.gpt2 import GPT2, Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tinyarr import Tensor, optim
from tinyarr import distributed as d
from tinyarr.distributed import world

VOCABULARY, LENGTH, BATCH = 65, 16, 2
BUCKET = 1 << 13  # bytes: several buckets a group


def gpt2(dtype, seed):
    config = Config(vocab_size=VOCABULARY, block_size=LENGTH, n_layer=2, n_head=2, n_embd=32)
    return GPT2(config, dtype=dtype, generator=ta.Generator(seed))


def llama3(dtype, seed):
    config = LlamaConfig(VOCABULARY, LENGTH, 2, 4, 2, 32, 64)
    return Llama3(config, dtype=dtype, generator=ta.Generator(seed))


MODELS: dict[str, Callable] = {"gpt2": gpt2, "llama3": llama3}
OPTIMIZERS: dict[str, Callable] = {
    "adamw": lambda groups: optim.AdamW(groups, lr=1e-2),
    "sgd": lambda groups: optim.SGD(groups, lr=1e-1, momentum=0.9),
}


@dataclass(frozen=True)
class Setting:
    """What is trained and how."""

    model: str = "gpt2"
    dtype: Any = ta.float32
    grad_dtype: Any = None
    accumulate: int = 1
    compiled: bool = False
    build: Any = None  # what runs a compiled program, if not C
    optimizer: str = "adamw"
    clip: float = 1.0
    steps: int = 9
    seed: int = 0
    wide: bool = False  # whether everything is computed in float64, from the same start
    lanes: int = field(default_factory=lambda: world().size)

    def make(self, seed: int):
        model = MODELS[self.model](self.dtype, seed)
        for p in model.parameters():
            if self.wide:
                p.array = p.detach().astype(ta.float64).array
            if self.grad_dtype is not None and not self.wide:
                p.grad_dtype = self.grad_dtype
        return model

    def batches(self, step: int, lane: int) -> list[tuple[Tensor, Tensor]]:
        """Those of a lane in a step."""
        rng = np.random.default_rng((self.seed, step, lane))
        tokens = [rng.integers(0, VOCABULARY, (BATCH, LENGTH + 1)) for _ in range(self.accumulate)]
        return [(Tensor(t[:, :-1]), Tensor(t[:, 1:])) for t in tokens]

    def compile(self, function: Callable) -> Any:
        if not self.compiled:
            return function
        return ta.compile(function) if self.build is None else ta.compiler.Compiled(function, build=self.build)


@dataclass
class Run:
    """What training gives: the loss and the gradient's norm of each step, and the weights at the end.

    exact: the norms in float64 of the same gradients, where they are known.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)

    def __eq__(self, other: Any) -> bool:
        same = self.losses == other.losses and self.norms == other.norms
        return same and all(map(np.array_equal, self.weights, other.weights))

    def digest(self) -> str:
        parts = [repr((self.losses, self.norms)).encode(), *(w.tobytes() for w in self.weights)]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def vector(self) -> np.ndarray:
        return np.concatenate([w.reshape(-1).astype(np.float64) for w in self.weights])


def weights_of(model) -> list[np.ndarray]:
    return [np.array(p.detach().numpy()) for p in model.parameters()]


def scheme(name: str, groups, bucket: int = BUCKET, group=None):
    """By name: "data", "zero1" or "zero2"."""
    if name == "data":
        return d.DataParallel(groups, group, bucket=bucket)
    return d.Zero(groups, group, stage=int(name[-1]), bucket=bucket)


class Parallel:
    """A model that this rank trains with the others, and the programs of a step."""

    def __init__(self, name: str, setting: Setting):
        self.setting = setting
        own_seed = setting.seed + 1000 * world().rank  # rank 0's weights become everyone's
        self.model = model = setting.make(own_seed)
        self.scheme = parallel = scheme(name, model.parameter_groups(0.1))
        self.optimizer = optimizer = OPTIMIZERS[setting.optimizer](parallel.groups)

        def add_gradient(x, y):
            loss = model.loss(x, y) / setting.accumulate
            loss.backward()
            if parallel.reduces_each_batch:
                parallel.reduce()
            return loss.detach()

        def step(x, y, losses):
            loss = add_gradient(x, y)
            for other in losses:
                loss = loss + other
            if not parallel.reduces_each_batch:
                parallel.reduce()
            norm = parallel.gradient_norm()
            (loss,) = parallel.mean(loss)
            optim.clip_grad_norm(optimizer.parameters, setting.clip, norm=norm)
            optimizer.step()
            parallel.gather()
            optimizer.zero_grad()
            return loss, norm

        self.add_gradient, self.step = setting.compile(add_gradient), setting.compile(step)

    def run_step(self, number: int) -> tuple[float, float]:
        """The loss and the norm."""
        *first, (x, y) = self.setting.batches(number, world().rank)
        loss, norm = self.step(x, y, [self.add_gradient(*pair) for pair in first])
        return loss.item(), norm.item()


def train_together(name: str, setting: Setting) -> Run:
    """By the ranks, each of which must hold the same in the end."""
    parallel = Parallel(name, setting)
    losses, norms = zip(*[parallel.run_step(i) for i in range(setting.steps)])
    if setting.compiled:
        assert len(parallel.step.graphs) == 1, parallel.step.explain()
    run = Run(list(losses), list(norms), weights_of(parallel.model))
    assert len(set(world().exchange(run.digest()))) == 1, "the ranks hold different bits"
    return run


def mean_of(lanes: Sequence[Tensor | None]) -> Tensor | None:
    """Half types add up in float32, and are rounded once; what is missing counts as zero, unless all is."""
    like = next((g for g in lanes if g is not None), None)
    if like is None:
        return None
    wide = [(ta.zeros_like(like) if g is None else g).astype(like.dtype.compute) for g in lanes]
    return (sum(wide[1:], wide[0]) / len(lanes)).astype(like.dtype)


def added(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x if y is None else y if x is None else x + y


def train_alone(setting: Setting, name: str = "data", norms: Sequence[float] | None = None) -> Run:
    """By one process, without anything of tinyarr.distributed. norms: to clip by, where they are given."""
    model = setting.make(setting.seed)
    groups = model.parameter_groups(0.1)
    optimizer = OPTIMIZERS[setting.optimizer](groups)
    parameters = list(model.parameters())
    grouped = [p for group in groups for p in group["parameters"]]

    def add_gradient(x, y):
        loss = model.loss(x, y) / setting.accumulate
        loss.backward()
        return loss.detach()

    def update(norm):
        own = optim.grad_norm(grouped)
        optim.clip_grad_norm(optimizer.parameters, setting.clip, norm=own if norm is None else norm)
        optimizer.step()
        optimizer.zero_grad()
        return own

    add_gradient, update = setting.compile(add_gradient), setting.compile(update)
    everything = range(setting.accumulate)
    run = Run()
    for step in range(setting.steps):
        lanes = [setting.batches(step, lane) for lane in range(setting.lanes)]
        losses: list[list[Tensor]] = [[] for _ in lanes]
        total: list[Tensor | None] = [None] * len(parameters)
        for together in [[i] for i in everything] if name == "zero2" else [everything]:
            gradients = []
            for batches, made in zip(lanes, losses):
                made += [add_gradient(*batches[i]) for i in together]
                gradients.append([p.grad for p in parameters])
                for p in parameters:
                    p.grad = None
            total = [added(t, mean_of(of_lanes)) for t, *of_lanes in zip(total, *gradients)]
        for p, gradient in zip(parameters, total):
            p.grad = gradient
        run.exact.append(float(np.sqrt(sum((g.numpy().astype(np.float64) ** 2).sum() for g in total if g is not None))))
        loss = mean_of([sum(made[:-1], made[-1]) for made in losses])
        norm = update(None if norms is None else Tensor(norms[step], dtype=loss.dtype))
        run.losses.append(loss.item())
        run.norms.append(norm.item())
    run.weights = weights_of(model)
    return run
