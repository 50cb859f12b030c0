"""The folder of a run: config.json, log.jsonl, checkpoint.safetensors, tuning.json (on a GPU) and loss.png."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import tinyarr
from tinyarr import distributed, tuning

from . import checkpoint, hugging_face
from .options import Stop
from .ranks import on_first_rank

RUNS = Path("runs")
FILES = ("config.json", "log.jsonl", "checkpoint.safetensors", "tuning.json", "loss.png")


@dataclass
class Run:
    """A folder with what a run was given (`config`) and what it has logged so far (`records`, one a step).

    Of several ranks the first writes what is not its own; each knows all records.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def start(cls, folder: str | None, config: dict[str, Any]) -> Run:
        """A new run in `folder`, or in the next free number under runs/. Raises Stop where `folder` holds a run.

        Of several ranks the first makes the folder.
        """
        path = Path(on_first_rank(lambda: str(cls._make_folder(folder, config))))
        return cls(path, config, [])

    @staticmethod
    def _make_folder(folder: str | None, config: dict[str, Any]) -> Path:
        if folder is None:
            path = next(path for path in (RUNS / str(number) for number in count(1)) if _make(path))
        else:
            path = Path(folder)
            check_free(path)
            path.mkdir(parents=True, exist_ok=True)
        (path / "log.jsonl").touch(exist_ok=False)
        _replace(path / "config.json", json.dumps(config, indent=2) + "\n")
        return path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in an existing folder. Raises Stop where there is none, or nothing has been saved yet."""
        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            lines = (path / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed writer may have left half a line.
            records = [json.loads(line) for line in lines if line.endswith("\n")]
        except FileNotFoundError as error:
            raise Stop(f"{path} holds no run: {error.filename} is missing") from error
        except ValueError as error:
            raise Stop(f"{path}: config.json or log.jsonl is damaged: {error}") from error
        if not (path / "checkpoint.safetensors").exists():
            raise Stop(f"{path} has no checkpoint: it ended before the first was saved; train anew")
        return cls(path, config, records)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def choices(self) -> Path:
        """What was chosen by timing, where anything was."""
        return self.folder / "tuning.json"

    @property
    def resume_command(self) -> str:
        """What to type so that the run goes on."""
        ranks = distributed.world().size
        launch = ["-m", "tinyarr", "launch", "-n", str(ranks)] if ranks > 1 else []
        module = f"models.{self.config['model']}"
        return shlex.join([sys.orig_argv[0], *launch, "-m", module, "train", "--resume", str(self.folder)])

    @property
    def finished(self) -> bool:
        """Whether the last record, the validation after all steps, is written."""
        return bool(self.records) and self.records[-1]["step"] == self.config["options"]["steps"]

    def save(self, step: int, model: Any, optimizer: Any, parallel: Any, generator: tinyarr.Generator) -> None:
        """Replaces the checkpoint by the state before `step`. Raises Stop where that fails; the old one stays whole."""
        state = dict(step=step, generator=generator.state_dict())
        try:
            # Before the state that they led to. Another rank may have made none: all ask, whatever they have.
            on_first_rank(lambda: tuning.save(self.choices) if tuning.choices() else None)
            checkpoint.write(self.checkpoint, state, model, optimizer, parallel)
        except Stop as stop:
            rest = f"the one before it is whole; to go on: {self.resume_command}"
            rest = rest if self.checkpoint.exists() else "there is none before it; train anew"
            raise Stop(f"step {step}: {self.checkpoint} can't be written ({stop}): {rest}", 1) from stop

    def load(
        self, model: Any, optimizer: Any = None, parallel: Any = None, generator: tinyarr.Generator | None = None
    ) -> int:
        """Sets a model, and the rest of the state if given, to the checkpoint; returns the step that comes next.

        What is compiled from then on takes the run's choices. Raises Stop where a file can't be read.
        """
        try:
            if self.choices.exists():
                tuning.load(self.choices)
            state = checkpoint.read(self.checkpoint, model, optimizer, parallel)
        except (ValueError, OSError) as error:
            raise Stop(error) from error
        if generator is not None:
            generator.load_state_dict(state["generator"])
        return state["step"]

    def export(self, model: Any) -> None:
        """Writes the weights for transformers' `from_pretrained`, into the folder hugging_face."""
        if distributed.world().rank == 0:
            hugging_face.save(self.folder / "hugging_face", model)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a record to the log."""
        self.records.append(record)
        if distributed.world().rank:
            return
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def back_to(self, step: int) -> None:
        """Forgets the records of `step` and later: the checkpoint is older than they are."""
        self.records = [record for record in self.records if record["step"] < step]
        if distributed.world().rank == 0:
            _replace(self.folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in self.records))

    def plot(self, baseline: float | None) -> None:
        """Draws the losses into loss.png, with the line of the byte 4-gram table where there is one."""
        if distributed.world().rank:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        for key, label, style in [("loss", "training batch", dict(linewidth=0.8, alpha=0.6)),
                                  ("val_loss", "validation", dict(marker="o", linewidth=2))]:
            points = [(record["step"], record[key]) for record in self.records if record[key] is not None]
            if points:
                axes.plot(*zip(*points), label=f"{label}: {points[-1][1]:.3f}", **style)
        if baseline is not None:
            axes.axhline(baseline, color="black", linestyle="--", label=f"byte 4-grams, validation: {baseline:.3f}")
        unit = "byte" if baseline is not None else "token"
        axes.set(xlabel="step (updates of the weights)", ylabel=f"loss (nats per {unit})",
                 title=f"{self.config['model']}, size {self.config['options']['size']}")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.folder / "loss.png")


def check_free(folder: Path) -> None:
    """Raises Stop where `folder` already holds a run: a run is never overwritten."""
    if folder.exists() and (not folder.is_dir() or any((folder / name).exists() for name in FILES)):
        raise Stop(f"--out {folder} already exists: go on with --resume {folder}, or choose another name")


def newest(model: str) -> Run:
    """The newest numbered run of `model` under runs/ that has a checkpoint. Raises Stop where there is none."""
    for path in sorted(filter(lambda path: path.name.isdecimal(), RUNS.glob("*")), key=lambda path: -int(path.name)):
        with contextlib.suppress(Stop):
            run = Run.open(path)
            if run.config["model"] == model:
                return run
    raise Stop(f"no run of {model} under {RUNS}/ has a checkpoint: train one first, or give --run or --weights")


def saved_options(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the run that `given` resumes. Raises Stop where `given` holds another value for one.

    How many ranks there are, and what they share out, may change.
    """
    run = Run.open(given["resume"])
    options = run.config["options"]
    if run.config["model"] != model:
        raise Stop(f"--resume {run.folder}: the run trains {run.config['model']}, not {model}")
    for name, value in given.items():
        if name not in ("resume", "out", "zero") and value != options[name]:
            flag = name.replace("_", "-")
            said = f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
            raise Stop(f"{said} contradicts {run.folder}, which has {options[name]}: "
                       "leave it out, or start a new run")
    return options | given


def environment() -> dict[str, Any]:
    """What bits depend on beside the options: versions, machine and threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or cores
    return {
        "tinyarr": tinyarr.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "machine": platform.machine(),
        "blas": os.environ.get("OPENBLAS_CORETYPE"), "threads": int(threads), "ranks": distributed.world().size}


def _make(path: Path) -> bool:
    """Makes a folder, unless it exists: two runs that start at once get one each."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _replace(path: Path, text: str) -> None:
    """Writes a file that is at no time half written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
