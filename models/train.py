"""Training: text goes in, a folder with weights, a log and a plot comes out. Floor 5."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tinyarr
from tinyarr import distributed, optim, schedule
from tinyarr.data import Batches

from .corpus import Corpus, open_corpus
from .generate import write
from .lock import locked
from .options import GenerateOptions, Stop, TrainOptions
from .progress import Progress
from .ranks import agree, on_first_rank, own_device, say
from .run import Run, check_free, environment, make_folder
from .signals import stopped_by_signals
from .steps import Programs, Steps, make_programs, one_ahead

BETAS = (0.9, 0.95)
SCHEDULES = {
    "constant": lambda lr, steps, warmup: schedule.constant(lr, warmup=warmup),
    "linear": lambda lr, steps, warmup: schedule.linear(lr, steps, warmup=warmup, final=0.1),
    "cosine": lambda lr, steps, warmup: schedule.cosine(lr, steps, warmup=warmup, final=0.1),
    "wsd": lambda lr, steps, warmup: schedule.warmup_stable_decay(
        lr, steps, warmup=warmup, decay=(steps - warmup) // 5),
}
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bfloat16, from the data sheets


def train(model_class: type, options: TrainOptions) -> None:
    """Trains a model, or goes on with a run, and prints a sample of what it writes.

    Raises Stop for a file or option that is wrong, when Ctrl-C or another signal has ended the run (after saving it),
    when the run's folder is in use or can't be written, and when the loss or the gradient is no longer finite.
    """
    group = distributed.world()
    if options.batch_size % group.size:
        raise Stop(f"--batch-size {options.batch_size} can't be shared out evenly among {group.size} ranks: "
                   "give a multiple of that")
    device = agree(lambda: own_device(options.device))
    card = tinyarr.cuda.get_device_name(device) if device.kind == "cuda" else "cpu"
    if options.out is not None:
        on_first_rank(lambda: check_free(Path(options.out)))
    size = model_class.sizes[options.size]
    corpus = agree(lambda: open_corpus(replace(options, batch_size=options.batch_size // group.size), size.vocab_size))
    generator = tinyarr.Generator(options.seed)
    model = model_class(replace(size, vocab_size=corpus.vocab_size, block_size=options.seq_len),
                        dtype=getattr(tinyarr, options.dtype), device=device, generator=generator)
    parallel = distributed.share_out(model.parameter_groups(options.weight_decay), zero=options.zero)
    optimizer = optim.AdamW(parallel.groups, lr=options.lr, betas=BETAS)
    if options.dtype != "float32":  # the optimizer keeps the same draws unrounded
        wide = model_class(model.config, device=device, generator=tinyarr.Generator(options.seed))
        parallel.load_masters(optimizer, dict(zip(model.parameters(), wide.parameters())))
        del wide
    model.train()  # said once, it is the same at the first step as after a validation
    programs = make_programs(model, optimizer, parallel, options)
    warmup = options.steps // 20 if options.warmup is None else options.warmup
    learning_rate = SCHEDULES[options.schedule](options.lr, options.steps, warmup)
    tokens_per_step = options.batch_size * options.seq_len * options.accumulate

    opened = open_run(options, corpus, model, optimizer, parallel, generator)
    with stopped_by_signals() as pressed, opened as (run, first):
        say(f"{run.folder}: {model.name} {options.size}, {sum(p.size for p in parallel.parameters):,} parameters"
            + (f", {group.size} ranks" if group.size > 1 else ""))
        training, validation = corpus.sizes
        validated = min(options.eval_tokens, validation)
        say(f"{training:,} tokens to train on, {validation:,} to validate on"
            + (f", of which the first {validated:,} are taken" if validated < validation else ""))
        before = run.records[-1]["seconds"] if run.records else 0.0
        start = time.perf_counter()
        progress = Progress(first, options.steps, shown=group.rank == 0)

        def finish(step, val_loss, lr=None, loss=None, norm=None, seconds=None):
            """Judges a step and logs it."""
            check_finite(run, step, loss=loss, grad_norm=norm)
            rate = seconds and tokens_per_step / seconds
            run.log(dict(
                step=step, loss=loss, val_loss=val_loss, lr=lr, grad_norm=norm, tokens_per_s=rate,
                mfu=rate and mfu(rate / group.size * model.flops_per_token(options.seq_len), card),
                memory_gib=tinyarr.memory_stats(device).peak / 2**30,
                seconds=before + time.perf_counter() - start))
            progress.show(run.records[-1])

        numbers = range(first * options.accumulate, options.steps * options.accumulate)
        steps = Steps(programs, optimizer, one_ahead(corpus.training, numbers, device), options.accumulate, finish)
        with progress:
            for step in range(first, options.steps + 1):
                val_loss = None
                due = step % options.eval_every == 0 or step == options.steps
                # One process stops at once; ranks, which hear of Ctrl-C at different steps, agree on one.
                stopping = pressed.is_set() if group.size == 1 else steps.stopping
                if due or stopping:
                    steps.read()  # a checkpoint holds steps that were judged and logged, and no others
                    if due:
                        val_loss = validation_loss(model, programs, corpus.validation, device, pressed, validated,
                                                   progress.show_validation)
                        check_finite(run, step, val_loss=val_loss)
                    run.save(step, model, optimizer, parallel, generator)
                    if stopping or (due and val_loss is None):
                        raise Stop(
                            f"stopped at step {step}, saved {run.saved.index}; to go on: {run.resume_command}", 130)
                if step < options.steps:
                    steps.launch(step, learning_rate(step), val_loss, pressed.is_set())
                    if step == first and options.compile:
                        progress.note(f"compiled in {programs.seconds:.1f} s")
                else:
                    run.export(model)
                    finish(step, val_loss)
                if due:
                    steps.read()
                    run.plot(corpus.baseline)

    if group.rank:
        return
    say(f"validation loss {val_loss:.3f}" + (f"; byte 4-grams get {corpus.baseline:.3f}" if corpus.baseline else ""))
    say(f"{run.folder} has the log, the checkpoints and loss.png")
    if corpus.tokenizer is not None:
        say("a sample of what the model writes:\n")
        write(model, corpus.tokenizer, GenerateOptions(device=options.device))


def validation_loss(
    model: Any, programs: Programs, batches: Batches, device: tinyarr.Device, pressed: threading.Event, tokens: int,
    show: Callable[[int, int], None],
) -> float | None:
    """The mean loss over the first `tokens` of the validation text; None once a signal stops it.

    Each rank looks at batches of its own. show(seen, tokens) is called after each.
    """
    group = distributed.world()
    model.eval()
    show(0, tokens)
    total, count = 0.0, 0
    for inputs, targets in itertools.islice(batches.walk(), group.rank, None, group.size):
        loss = programs.loss(tinyarr.Tensor(inputs, device=device), tinyarr.Tensor(targets, device=device))
        total += loss.item() * targets.size
        count += targets.size
        seen = count * group.size
        show(min(seen, tokens), tokens)
        if pressed.is_set() or seen >= tokens:
            break
    model.train()
    totals, counts, stopping = zip(*group.exchange([total, count, pressed.is_set()]))
    return None if any(stopping) else sum(totals) / sum(counts)


def check_finite(run: Run, step: int, **values: float | None) -> None:
    """Raises Stop where a value of a step is infinite or NaN; `update` has kept it from the weights."""
    for name, value in values.items():
        if value is not None and not math.isfinite(value):
            last = "" if run.saved is None else f"; {run.saved.index} is from the last good validation"
            raise Stop(f"step {step}: {name} is {value}: start again with a lower --lr, a longer --warmup or a smaller "
                       f"--clip{last}", 1)


def mfu(flops_per_s: float, card: str) -> float | None:
    """The share of the card's dense bfloat16 peak, with (6 N + 6 L C T) FLOP a token; None for an unknown card."""
    return flops_per_s / PEAK_FLOPS[card] if card in PEAK_FLOPS else None


@contextlib.contextmanager
def open_run(
    options: TrainOptions, corpus: Corpus, model: Any, optimizer: Any, parallel: distributed.OneRank,
    generator: tinyarr.Generator,
) -> Iterator[tuple[Run, int]]:
    """The run's folder, locked, and its first step: a new run, or one whose state is read back."""
    config = dict(
        model=model.name, options=asdict(replace(options, out=None, resume=None)), config=asdict(model.config),
        data=corpus.fingerprint, environment=environment())
    if options.resume is None:
        folder = make_folder(options.out)
        with locked(folder):
            yield Run.start(folder, config), 0
        return
    with locked(Path(options.resume)):
        run = agree(lambda: reopened(options.resume, corpus))
        for name, value in config["environment"].items():
            before = run.config["environment"].get(name)
            if value != before:
                say(f"note: {name} was {before}, is {value}: the last bits may differ")
        if run.strangers:
            say(f"note: of the lines in {run.folder}/log.jsonl {run.strangers} are no records: they are left out")
        first = run.load(model, optimizer, parallel, generator)
        run.back_to(first)
        yield run, first


def reopened(folder: str, corpus: Corpus) -> Run:
    """A run to go on with. Raises Stop where it is finished, or was trained on other data."""
    run = Run.open(folder)
    if run.finished:
        steps = run.config["options"]["steps"]
        raise Stop(f"{run.folder} is finished: it has all its {steps} steps; start a new run for more")
    if run.config.get("data") != corpus.fingerprint:
        raise Stop(f"{run.folder} was trained on other data than is there now: bring the old back, or start a new run")
    return run
