"""Checkpoints of a run: weights, optimizer state and what comes next, in a file of every rank and an index. Floor 5.

The ranks write their files at the same time; then the index, a small JSON file that names them with their digests,
makes a checkpoint of them. Each has a number of its own, so nothing that is written touches what is whole; the two
newest are kept. A part of a tensor is named `weight[128:256]`: these of its elements in row-major order. So any number
of ranks, with any sharing out of the state, can go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tinyarr
from tinyarr import Tensor, distributed, durable, optim, saving
from tinyarr.dtypes import Dtype
from tinyarr.errors import FileError

from .options import Stop
from .ranks import agree, on_first_rank, say

INDEX = re.compile(r"checkpoint\.(\d+)\.step(\d+)\.json")
UNNUMBERED = "checkpoint.safetensors"  # of runs whose checkpoints have no digests
FILE = re.compile(
    r"(checkpoint\.\d+\.step\d+)\.(?:json|\d+of\d+\.safetensors)|checkpoint(?:\.\d+\.\d+of\d+)?\.safetensors")
_PIECE, _THREADS = 2**24, 8  # bytes of a file that are read and digested at a time, and how many at once


class Checkpoint(NamedTuple):
    """A whole checkpoint: the file that says what it is, the state that this says, and the files of its tensors."""

    index: Path
    state: dict[str, Any]
    files: list[Path]


class Held(NamedTuple):
    """A tensor, or the part of it from element `start` on, that this rank has; `shared`: all others have it too."""

    tensor: Tensor
    start: int
    shared: bool


def write(
    folder: Path, state: dict[str, Any], model: Any, optimizer: optim.Optimizer, parallel: distributed.OneRank,
    before: Checkpoint | None,
) -> Checkpoint:
    """Saves one more checkpoint, then removes all others but `before`.

    state: what JSON can write; its step is a part of the name. Raises Stop on all ranks where one can't write; then
    all stays as it was.
    """
    group = distributed.world()
    tensors = dict(_own(held(model, optimizer, parallel), group.rank, group.size))
    number = on_first_rank(lambda: 1 + max(map(_number, _files(folder).values()), default=0))
    stem = f"checkpoint.{number}.step{state['step']}"
    own, index = folder / f"{stem}.{group.rank}of{group.size}.safetensors", folder / f"{stem}.json"
    try:
        digest = agree(lambda: _save(own, tensors))
        files = dict(group.exchange([own.name, digest]))
        on_first_rank(lambda: _write_index(index, {"state": state, "files": files}))
    except Stop:
        on_first_rank(lambda: remove_others(folder, set(indices(folder)) - {index}))
        raise
    made = Checkpoint(index, state, [folder / name for name in files])
    on_first_rank(lambda: remove_others(folder, [kept.index for kept in (made, before) if kept]))
    return made


def remove_others(folder: Path, kept: Collection[Path]) -> None:
    """Deletes the files of checkpoints but those whose index is kept. Indices go first: none names a file that is gone.

    Of all that are there if `kept` are indices(folder): what a killed process has left.
    """
    files = _files(folder)
    for path in sorted(files, key=lambda path: path != files[path]):
        if files[path] not in kept:
            with contextlib.suppress(OSError):  # the next save tries again
                path.unlink()


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, None where none was ever complete. All ranks ask together.

    One that is damaged is named and passed over. Raises Stop where all are, and for one whose step was changed.
    """
    group = distributed.world()
    fault = None
    for name in on_first_rank(lambda: [path.name for path in indices(folder)]):
        if fault is not None:
            say(f"note: {fault}: the checkpoint before it is taken", sys.stderr)
        state, files, fault = on_first_rank(lambda name=name: _read_index(folder / name))
        digests = list(files.items())[group.rank :: group.size]
        faults = group.exchange([_fault(folder / file, digest) for file, digest in digests])
        fault = next(filter(None, [fault, *(found for of_rank in faults for found in of_rank)]), None)
        if fault is None:
            return Checkpoint(folder / name, state, [folder / file for file in files])
    if fault is not None:
        raise Stop(f"{fault}, and there is no other: bring it back, or train anew in another folder")
    return None


def indices(folder: Path) -> list[Path]:
    """The indices in a folder, the newest first."""
    files = _files(folder)
    return sorted((path for path in files if path == files[path]), key=_number, reverse=True)


def read(
    checkpoint: Checkpoint, model: Any, optimizer: optim.Optimizer | None = None,
    parallel: distributed.OneRank | None = None,
) -> None:
    """Sets a model, and the optimizer if given, to a checkpoint.

    Raises FileError for one that lacks something, or has it in another size or dtype; OSError where a file can't be
    read.
    """
    found = _parts_in(checkpoint.files)
    for name, (tensor, start, shared) in held(model, optimizer, parallel).items():
        if name not in found:
            raise FileError(f"{checkpoint.index} has no {name}: it is of another model or an older version")
        last = max(found[name], key=lambda piece: piece.stop)
        if last.dtype is not tensor.dtype or (shared and last.stop != tensor.size):
            raise FileError(f"{checkpoint.index}: {name} has {last.stop} elements of {last.dtype.name}, the model's "
                            f"{tensor.size} of {tensor.dtype.name}: bring back the config.json it was trained with")
        _fill(name, tensor, start, found[name])
    if parallel is not None:
        parallel.scatter()


def held(
    model: Any, optimizer: optim.Optimizer | None = None, parallel: distributed.OneRank | None = None
) -> dict[str, Held]:
    """By name all that a checkpoint holds, as far as this rank has it."""
    names = {tensor: name for name, tensor in model.named_tensors()}
    found = {f"model.{name}": Held(tensor.detach(), 0, True) for tensor, name in names.items()}
    if optimizer is not None and parallel is not None:
        whole = optimizer.state_dict()
        found |= {f"optimizer.{name}": Held(whole[name], 0, True) for name in ("lr", "step")}
        for parameter, start, _, tensor in parallel.parts:
            for kind, value in optimizer.state_of(tensor).items():
                found[f"optimizer.{names[parameter]}.{kind}"] = Held(value, start, tensor is parameter)
    return found


def _own(all_held: dict[str, Held], rank: int, ranks: int) -> Iterator[tuple[str, Tensor]]:
    """Returns what a rank writes: what it alone has, and its share of what all have."""
    for name, (tensor, start, shared) in all_held.items():
        size = tensor.size
        if shared:
            begin, end = rank * size // ranks, (rank + 1) * size // ranks
            if end - begin == size:
                yield name, tensor
            elif begin < end:
                yield f"{name}[{begin}:{end}]", tensor.reshape((size,))[begin:end]
        else:
            yield f"{name}[{start}:{start + size}]", tensor


def _save(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes this rank's file and returns its digest."""
    saving.save(path, tensors)
    return _digest(path)


def _write_index(path: Path, content: dict[str, Any]) -> None:
    with durable.replacing(path) as file:
        file.write(json.dumps({**content, "digest": _seal(content)}, indent=2).encode() + b"\n")


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, str | None], str | None]:
    """The state, the files with their digests, and what is wrong with the index, if anything is."""
    try:
        if path.name == UNNUMBERED:
            _, metadata = saving.load(path, [])
            state = json.loads(metadata["state"])
            files = json.loads(metadata.get("files", json.dumps([path.name])))
            return {"step": state["step"], "generator": state["generator"]}, dict.fromkeys(files), None
        content = json.loads(path.read_bytes())
        seal, step = content.pop("digest"), content["state"]["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {}, {}, f"{path} is damaged ({type(error).__name__}: {error})"
    _, named = INDEX.fullmatch(path.name).groups()
    if str(step) != named:
        raise Stop(f"{path} says step {step}, its name step {named}: one of them was changed, so bring it back, or "
                   "remove the file: then the checkpoint before it is taken")
    if seal != _seal(content):
        return {}, {}, f"{path} is damaged (its digest is of other content)"
    return content["state"], content["files"], None


def _fault(path: Path, digest: str | None) -> str | None:
    """The fault of a file of a checkpoint, or None; one without a digest can't be judged."""
    try:
        if digest is None or _digest(path) == digest:
            return None
    except OSError as error:
        return f"{path} can't be read ({error.strerror})"
    return f"{path} is damaged (its digest is of other content)"


def _digest(path: Path) -> str:
    """The SHA-256 of the SHA-256s of a file's pieces: on several threads, as one is slower than a disk."""
    with open(path, "rb") as file, ThreadPoolExecutor(_THREADS) as pool:
        descriptor = file.fileno()
        begins = range(0, os.fstat(descriptor).st_size, _PIECE)
        hashes = pool.map(lambda begin: hashlib.sha256(os.pread(descriptor, _PIECE, begin)).digest(), begins)
        return hashlib.sha256(b"".join(hashes)).hexdigest()


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[Path, Path]:
    """Every file of a checkpoint, be it whole or not, with the index that makes it a part of one."""
    found = {path: FILE.fullmatch(path.name) for path in folder.glob("checkpoint.*")}
    return {path: folder / (f"{match[1]}.json" if match[1] else UNNUMBERED) for path, match in found.items() if match}


def _number(path: Path) -> int:
    """In the order of saving; 0 where there is none."""
    numbered = INDEX.fullmatch(path.name)
    return int(numbered[1]) if numbered else 0


class _Piece(NamedTuple):
    file: Path
    name: str
    dtype: Dtype
    start: int
    stop: int


def _parts_in(files: Sequence[Path]) -> dict[str, list[_Piece]]:
    """By the name of a tensor where the parts of it are."""
    found: dict[str, list[_Piece]] = {}
    for file in files:
        for stored, (dtype, shape) in saving.contents(file).items():
            part = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", stored)
            name, start, stop = part.groups() if part else (stored, 0, math.prod(shape))
            found.setdefault(name, []).append(_Piece(file, stored, dtype, int(start), int(stop)))
    return found


def _fill(name: str, tensor: Tensor, start: int, parts: Sequence[_Piece]) -> None:
    """Writes a tensor's elements, which are those from `start` on of the one that the parts make."""
    stop, at, pieces = start + tensor.size, start, []
    for piece in sorted(parts, key=lambda piece: piece.start):
        begin, end = max(piece.start, at), min(piece.stop, stop)
        if begin < end and begin == at:
            stored = saving.load(piece.file, [piece.name], device="cpu")[0][piece.name]
            pieces.append(stored.reshape((stored.size,))[begin - piece.start : end - piece.start])
            at = end
    if at < stop:
        raise FileError(f"the checkpoint has no elements {at} to {stop} of {name}: a file of it is missing")
    with tinyarr.no_grad():
        tensor.assign(tinyarr.concat(pieces).reshape(tensor.shape).to(tensor.device))
