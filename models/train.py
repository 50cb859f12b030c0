"""Training: text goes in, a folder with weights, a log and a plot comes out."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import tinyarr
from tinyarr import optim, schedule
from tinyarr.data import Batches

from .corpus import Corpus, open_corpus
from .generate import write
from .options import GenerateOptions, Stop, TrainOptions
from .progress import Progress
from .run import Run, check_free, environment

BETAS = (0.9, 0.95)
SCHEDULES = {
    "constant": lambda lr, steps, warmup: schedule.constant(lr, warmup=warmup),
    "linear": lambda lr, steps, warmup: schedule.linear(lr, steps, warmup=warmup, final=0.1),
    "cosine": lambda lr, steps, warmup: schedule.cosine(lr, steps, warmup=warmup, final=0.1),
    "wsd": lambda lr, steps, warmup: schedule.warmup_stable_decay(
        lr, steps, warmup=warmup, decay=(steps - warmup) // 5),
}
VALIDATION_TOKENS = 2**17  # at most: enough for a standard error below 0.01 nats
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bfloat16, from the data sheets


def train(model_class: type, options: TrainOptions) -> None:
    """Train a model, or go on with a run, and print a sample of what it writes.

    Raises Stop for a file or option that is wrong, when Ctrl-C has ended the run (after saving it), when a checkpoint
    can't be written, and when the loss or the gradient is no longer finite.
    """
    device = tinyarr.Device(options.device)
    tinyarr.memory_stats(device)  # a missing device is named before any work
    if options.out is not None:
        check_free(Path(options.out))
    size = model_class.sizes[options.size]
    corpus = open_corpus(options, size.vocab_size)
    generator = tinyarr.Generator(options.seed)
    model = model_class(replace(size, vocab_size=corpus.vocab_size, block_size=options.seq_len),
                        dtype=getattr(tinyarr, options.dtype), device=device, generator=generator)
    groups = model.parameter_groups(options.weight_decay)
    optimizer = optim.AdamW(groups, lr=options.lr, betas=BETAS)
    if options.dtype != "float32":  # the optimizer keeps the same draws unrounded
        wide = model_class(model.config, device=device, generator=tinyarr.Generator(options.seed))
        optimizer.load_masters(model.parameters(), wide.parameters())
        del wide
    model.train()  # said once, it is the same at the first step as after a validation
    programs = make_programs(model, optimizer, options)
    warmup = options.steps // 20 if options.warmup is None else options.warmup
    learning_rate = SCHEDULES[options.schedule](options.lr, options.steps, warmup)
    tokens_per_step = options.batch_size * options.seq_len * options.accumulate

    with ctrl_c() as pressed:
        run, first = open_run(options, corpus, model, optimizer, generator)
        print(f"{run.folder}: {model.name} {options.size}, {sum(p.size for p in optimizer.parameters):,} parameters")
        before = run.records[-1]["seconds"] if run.records else 0.0
        start = time.perf_counter()
        with Progress(first, options.steps) as progress:
            for step in range(first, options.steps + 1):
                loss = val_loss = lr = norm = rate = None
                due = step % options.eval_every == 0 or step == options.steps
                if due:
                    val_loss = validation_loss(model, programs, corpus.validation, device, pressed)
                    check_finite(run, step, val_loss=val_loss)
                if due or pressed.is_set():
                    run.save(step, model, optimizer, generator)
                if pressed.is_set():
                    raise Stop(f"stopped at step {step}, saved {run.checkpoint}; to go on: {run.resume_command}", 130)

                if step < options.steps:
                    began = time.perf_counter() - programs.seconds
                    loss = add_gradients(programs, corpus.training, step, options.accumulate, device)
                    gradient_norm = programs.gradient_norm()
                    norm = gradient_norm.item()
                    check_finite(run, step, loss=loss, grad_norm=norm)
                    lr = optimizer.lr = learning_rate(step)
                    programs.update(gradient_norm)
                    rate = tokens_per_step / (time.perf_counter() - programs.seconds - began)
                    if step == first and options.compile:
                        progress.note(f"compiled in {programs.seconds:.1f} s")
                else:
                    run.export(model)

                run.log(dict(
                    step=step, loss=loss, val_loss=val_loss, lr=lr, grad_norm=norm, tokens_per_s=rate,
                    mfu=rate and mfu(rate * model.flops_per_token(options.seq_len), str(device)),
                    memory_gib=tinyarr.memory_stats(device).peak / 2**30,
                    seconds=before + time.perf_counter() - start))
                progress.show(run.records[-1])
                if due:
                    run.plot(corpus.baseline)

    print(f"validation loss {val_loss:.3f}" + (f"; byte 4-grams get {corpus.baseline:.3f}" if corpus.baseline else ""))
    print(f"{run.folder} has the log, {run.checkpoint.name} and loss.png")
    if corpus.tokenizer is not None:
        print("a sample of what the model writes:\n")
        write(model, corpus.tokenizer, GenerateOptions(device=options.device))


class Programs(NamedTuple):
    """What a run computes, compiled or not. Gradients are added up batch by batch, and judged before an update."""

    add_gradient: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]  # of a batch, whose loss it returns
    gradient_norm: Callable[[], tinyarr.Tensor]
    update: Callable[[tinyarr.Tensor], None]  # of the weights, by gradients of this norm, which it clips and forgets
    loss: Callable[[tinyarr.Tensor, tinyarr.Tensor], tinyarr.Tensor]

    @property
    def seconds(self) -> float:
        """How long compiling has taken so far."""
        return sum(getattr(program, "seconds", 0.0) for program in self)


def make_programs(model: Any, optimizer: optim.Optimizer, options: TrainOptions) -> Programs:
    """The programs of a run; each is compiled at its first call."""
    accumulate, largest_norm = options.accumulate, options.clip or math.inf

    def add_gradient(tokens, targets):
        loss = model.loss(tokens, targets) / accumulate
        loss.backward()
        return loss

    def gradient_norm():
        return optim.grad_norm(optimizer.parameters)

    def update(norm):
        optim.clip_grad_norm(optimizer.parameters, largest_norm, norm=norm)
        optimizer.step()
        optimizer.zero_grad()

    def loss(tokens, targets):
        with tinyarr.no_grad():
            return model.loss(tokens, targets)

    functions = add_gradient, gradient_norm, update, loss
    return Programs(*map(tinyarr.compile, functions) if options.compile else functions)


def add_gradients(programs: Programs, batches: Batches, step: int, accumulate: int, device: tinyarr.Device) -> float:
    """Add the gradient of the mean loss over the batches of `step` to the parameters' own; returns that loss."""
    total = 0.0
    for number in range(step * accumulate, (step + 1) * accumulate):
        tokens, targets = (tinyarr.Tensor(ids, device=device) for ids in batches.batch(number))
        total += programs.add_gradient(tokens, targets).item()
    return total


def validation_loss(
    model: Any, programs: Programs, batches: Batches, device: tinyarr.Device, pressed: threading.Event
) -> float | None:
    """The mean loss over the validation text, or its first VALIDATION_TOKENS; None once Ctrl-C is pressed."""
    model.eval()
    total, count = 0.0, 0
    for tokens, targets in batches.walk():
        loss = programs.loss(tinyarr.Tensor(tokens, device=device), tinyarr.Tensor(targets, device=device))
        total += loss.item() * targets.size
        count += targets.size
        if pressed.is_set():
            return None
        if count >= VALIDATION_TOKENS:
            break
    model.train()
    return total / count


def check_finite(run: Run, step: int, **values: float | None) -> None:
    """Raises Stop where a value is infinite or NaN, before it can reach the weights or a checkpoint."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            raise Stop(f"step {step}: {name} is {value}: start again with a lower --lr, a longer --warmup or a smaller "
                       f"--clip; {run.checkpoint} is from the last good validation", 1)


def mfu(flops_per_s: float, card: str) -> float | None:
    """The share of the card's dense bfloat16 peak, with (6 N + 6 L C T) FLOP a token; None for an unknown card."""
    return flops_per_s / PEAK_FLOPS[card] if card in PEAK_FLOPS else None


@contextlib.contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step ends whole; the second interrupts at once."""
    pressed = threading.Event()

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nstopping at the next step; Ctrl-C again aborts\n")  # print may be what was interrupted

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def open_run(
    options: TrainOptions, corpus: Corpus, model: Any, optimizer: Any, generator: tinyarr.Generator
) -> tuple[Run, int]:
    """The run's folder and its first step: a new run, or one whose state is read back."""
    config = dict(
        model=model.name, options=asdict(replace(options, out=None, resume=None)), config=asdict(model.config),
        data=corpus.fingerprint, environment=environment())
    if options.resume is None:
        return Run.start(options.out, config), 0
    run = Run.open(options.resume)
    if run.finished:
        raise Stop(f"{run.folder} is finished: it has all its {options.steps} steps; start a new run for more")
    if run.config["data"] != corpus.fingerprint:
        raise Stop(f"{run.folder} was trained on other data than is there now: bring the old back, or start a new run")
    for name, value in config["environment"].items():
        if value != run.config["environment"][name]:
            print(f"note: {name} was {run.config['environment'][name]}, is {value}: the last bits may differ")
    first = run.load(model, optimizer, generator)
    run.back_to(first)
    return run, first
