"""The folder of a run: config.json, log.jsonl, two checkpoints, tuning.json (on a GPU) and loss.png. Floor 5."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import tinyarr
from tinyarr import distributed, durable, tuning

from . import checkpoint, hugging_face
from .options import Stop, TrainOptions, in_words
from .ranks import agree, on_first_rank

RUNS = Path("runs")
FILES = ("config.json", "log.jsonl", "tuning.json", "loss.png", "hugging_face")  # besides those of checkpoints
UNFINISHED = ".*.safetensors.[0-9]*"  # what killed writers of earlier versions left


@dataclass
class Run:
    """A folder with what a run was given (`config`) and what it has logged so far (`records`, one a step).

    `strangers` counts the lines of the log that are no records; `saved` is the checkpoint that this process has saved
    or read last. Of several ranks the first writes what is not its own; each knows all records.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    strangers: int = 0
    saved: checkpoint.Checkpoint | None = field(default=None, compare=False)

    @classmethod
    def start(cls, folder: str | Path | None, config: dict[str, Any]) -> Run:
        """A new run in `folder`, or in the next free number under runs/. Raises Stop where `folder` holds a run.

        Of several ranks the first makes the folder.
        """
        path = make_folder(folder)
        on_first_rank(lambda: cls._begin(path, config))
        return cls(path, config, [])

    @staticmethod
    def _begin(path: Path, config: dict[str, Any]) -> None:
        check_free(path)
        try:
            _remove_unfinished(path, [])
            (path / "tuning.json").unlink(missing_ok=True)
            _replace(path / "log.jsonl", "")
            _replace(path / "config.json", json.dumps(config, indent=2) + "\n")
            durable.flush(path.parent)
        except OSError as error:
            raise Stop(f"{path} can't be written ({in_words(error)}): once it can, start again") from error

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in an existing folder. Raises Stop where there is none."""
        path = Path(folder)
        try:
            config = _read_config(path)
            lines = [line for line in (path / "log.jsonl").read_bytes().split(b"\n") if line.strip()]
        except FileNotFoundError as error:
            raise Stop(f"{path} holds no run: {error.filename} is missing; start one there with --out") from error
        except OSError as error:
            raise Stop(f"{path}: {in_words(error)}") from error
        # A killed writer leaves half a line, which whoever went on may have written behind.
        found = [record for record in map(_record, lines) if record is not None]
        records = {record["step"]: record for record in found}
        return cls(path, config, [records[step] for step in sorted(records)], len(lines) - len(found))

    @property
    def choices(self) -> Path:
        """The file of choices made by timing, where any were made."""
        return self.folder / "tuning.json"

    @property
    def resume_command(self) -> str:
        """The command with which the run goes on."""
        ranks = distributed.world().size
        launch = ["-m", "tinyarr", "launch", "-n", str(ranks)] if ranks > 1 else []
        module = f"models.{self.config['model']}"
        return shlex.join([sys.orig_argv[0], *launch, "-m", module, "train", "--resume", str(self.folder)])

    @property
    def finished(self) -> bool:
        """Returns whether the last record, the validation after all steps, is written."""
        last = self.records[-1] if self.records else {"step": None, "loss": None}
        return last["step"] == self.config["options"]["steps"] and last["loss"] is None

    def save(self, step: int, model: Any, optimizer: Any, parallel: Any, generator: tinyarr.Generator) -> None:
        """Saves a checkpoint of the state before `step`; it and the one before are kept.

        Raises Stop where that fails; those that are there stay whole.
        """
        state = dict(step=step, generator=generator.state_dict())
        with self._writing(f"step {step}: the checkpoint in {self.folder}"):
            on_first_rank(self._write_what_led_here)
            self.saved = checkpoint.write(self.folder, state, model, optimizer, parallel, self.saved)

    def _write_what_led_here(self) -> None:
        durable.flush(self.folder / "log.jsonl")
        if tuning.choices():
            tuning.save(self.choices)

    def load(
        self, model: Any, optimizer: Any = None, parallel: Any = None, generator: tinyarr.Generator | None = None
    ) -> int:
        """Sets a model, and the rest of the state if given, to the newest whole checkpoint; returns the step to begin.

        A run that ended before its first goes on from step 0, whose state comes from the seed. What is compiled from
        then on takes the run's choices. All ranks load together. Raises Stop where a file is missing or damaged.
        """
        found = checkpoint.newest(self.folder)
        agree(lambda: self._set_to(found, model, optimizer, parallel))
        self.saved = found
        if found is None:
            return 0
        if generator is not None:
            generator.load_state_dict(found.state["generator"])
        return found.state["step"]

    def _set_to(self, found: checkpoint.Checkpoint | None, model: Any, optimizer: Any, parallel: Any) -> None:
        try:
            if self.choices.exists():
                tuning.load(self.choices)
            if found is not None:
                self._check_step(found)
                checkpoint.read(found, model, optimizer, parallel)
            elif self.records:
                raise Stop(f"{self.folder} has no checkpoint, but has logged {len(self.records)} steps: bring one back "
                           "or train anew in another folder")
            elif optimizer is None:
                raise Stop(f"{self.folder} has no checkpoint: it ended before the first was saved; to go on: "
                           f"{self.resume_command}")
        except (ValueError, OSError) as error:
            raise Stop(error) from error

    def _check_step(self, found: checkpoint.Checkpoint) -> None:
        step, steps = found.state["step"], self.config["options"]["steps"]
        if type(step) is not int or not 0 <= step <= steps:
            raise Stop(f"{found.index} says that step {step} is next, but the run has {steps} steps: one of them was "
                       "changed, so bring it back")

    def export(self, model: Any) -> None:
        """Writes the weights for transformers' `from_pretrained`, into the folder hugging_face."""
        if distributed.world().rank == 0:
            with self._writing(self.folder / "hugging_face"):
                hugging_face.save(self.folder / "hugging_face", model)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a record to the log; it is on disk once the next checkpoint is, or the run finished."""
        self.records.append(record)
        if distributed.world().rank:
            return
        path = self.folder / "log.jsonl"
        with self._writing(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if self.finished:
                durable.flush(path)

    def back_to(self, step: int) -> None:
        """Forgets the records of `step` and later, which the checkpoint does not have, and what killed writers left."""
        self.records = [record for record in self.records if record["step"] < step]
        path = self.folder / "log.jsonl"
        with self._writing(path):
            on_first_rank(lambda: _remove_unfinished(self.folder, checkpoint.indices(self.folder)))
            on_first_rank(lambda: _replace(path, "".join(json.dumps(record) + "\n" for record in self.records)))

    @contextlib.contextmanager
    def _writing(self, what: object) -> Iterator[None]:
        """Raises Stop, with what to do, where the block can't write."""
        try:
            yield
        except (OSError, Stop) as error:
            whole = f"the checkpoint of step {self.saved.state['step']} is whole; " if self.saved else ""
            advice = f"{whole}to go on: {self.resume_command}"
            if not self.folder.is_dir():
                advice = f"{self.folder} is gone, so bring it back, or train anew"
            raise Stop(f"{what} can't be written ({in_words(error)}): {advice}", 1) from error

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
        path = self.folder / "loss.png"
        with self._writing(path), durable.replacing(path) as file:
            figure.savefig(file, format="png")


def make_folder(folder: str | Path | None) -> Path:
    """The folder of a new run, made by the first rank: `folder`, or the next free number under runs/.

    Raises Stop where it holds a run, or can't be made.
    """
    return Path(on_first_rank(lambda: str(_make_folder(folder))))


def _make_folder(folder: str | Path | None) -> Path:
    try:
        if folder is None:
            return next(path for path in (RUNS / str(number) for number in count(1)) if _make(path))
        check_free(Path(folder))
        Path(folder).mkdir(parents=True, exist_ok=True)
        return Path(folder)
    except OSError as error:
        raise Stop(f"{folder or RUNS} can't be made ({in_words(error)}): choose another folder with --out") from error


def check_free(folder: Path) -> None:
    """Raises Stop where `folder` already holds a run that has trained: it is never overwritten."""
    if folder.exists() and not (folder.is_dir() and _is_free(folder)):
        raise Stop(f"--out {folder} already exists: go on with --resume {folder}, or choose another name")


def _is_free(folder: Path) -> bool:
    """Returns whether a folder holds no more of a run than one leaves that ended before its first checkpoint."""
    held = {name for name in FILES if (folder / name).exists()}
    if "log.jsonl" in held and not (folder / "log.jsonl").stat().st_size:
        held.remove("log.jsonl")
    if held <= {"config.json", "tuning.json"} and "config.json" in held:
        try:
            _read_config(folder)
        except Stop:  # it is not ours
            return False
        held.clear()
    return not held and not checkpoint.indices(folder)


def _remove_unfinished(folder: Path, kept: Sequence[Path]) -> None:
    """Deletes what killed writers have left in a locked folder: what has not got its name, or its index."""
    checkpoint.remove_others(folder, kept)
    for place in (folder, folder / "hugging_face"):
        if place.is_dir():
            durable.remove_unfinished(place)
        for path in place.glob(UNFINISHED):
            path.unlink(missing_ok=True)


def newest(model: str) -> Run:
    """The newest numbered run of `model` under runs/ that has a checkpoint. Raises Stop where there is none."""
    for path in sorted(filter(lambda path: path.name.isdecimal(), RUNS.glob("*")), key=lambda path: -int(path.name)):
        with contextlib.suppress(Stop):
            run = Run.open(path)
            if run.config["model"] == model and checkpoint.indices(path):
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
    unknown = options.keys() - {entry.name for entry in fields(TrainOptions)}
    if unknown:
        raise Stop(f"--resume {run.folder}: its config.json has options that are unknown here ({', '.join(unknown)}): "
                   "go on with the version that began it")
    for name, value in given.items():
        if name not in ("resume", "out", "zero") and value != options.get(name, value):
            flag = name.replace("_", "-")
            said = f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
            raise Stop(f"{said} contradicts {run.folder}, which has {options[name]}: "
                       "leave it out, or start a new run")
    return options | given


def environment() -> dict[str, Any]:
    """Returns what bits depend on beside the options: versions, machine and threads."""
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
    with durable.replacing(path) as file:
        file.write(text.encode())


def _read_config(folder: Path) -> dict[str, Any]:
    """The config that a run was given. Raises Stop where config.json is no run's, OSError where it can't be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        kinds = {"model": str, "options": dict, "environment": dict}
        if type(config) is not dict or any(type(config.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError(f"it must have {', '.join(kinds)}")
        if type(config["options"].get("steps")) is not int:
            raise ValueError("its options must have a whole number of steps")
    except (ValueError, RecursionError) as error:
        raise Stop(f"{path} is damaged, or no run's ({error}): bring it back") from error
    return config


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the log, None where it is no record."""
    try:
        record = json.loads(line)
        sound = type(record["step"]) is int and type(record["seconds"]) in (int, float)
        sound &= all(value is None or type(value) in (int, float) for value in record.values())
        return record if sound and record.keys() >= {"loss", "val_loss"} else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
