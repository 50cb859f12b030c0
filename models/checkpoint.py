"""The checkpoint of a run: weights, optimizer state and what comes next, in one file, or in one that each rank writes.

With several ranks each writes a part of every tensor, at the same time as the others; then a small file, which rank 0
puts in its place in one go, names those that belong together. A part of a tensor is named `weight[128:256]`: these of
its elements in row-major order. So any number of ranks, with any sharing out of the state, can go on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tinyarr
from tinyarr import Tensor, distributed, optim, saving
from tinyarr.errors import FileError

from .ranks import agree, on_first_rank


class Held(NamedTuple):
    """A tensor, or the part of it from element `start` on, that this rank has; `shared`: all others have it too."""

    tensor: Tensor
    start: int
    shared: bool


def write(
    path: Path, state: dict[str, Any], model: Any, optimizer: optim.Optimizer, parallel: distributed.Alone
) -> None:
    """Replaces the checkpoint; until all ranks have written theirs the old one stays.

    state: what JSON can write. Raises Stop on all ranks where one can't write.
    """
    group = distributed.world()
    metadata = {"state": json.dumps(state)}
    tensors = dict(_own(held(model, optimizer, parallel), group.rank, group.size))
    if group.size == 1:
        agree(lambda: saving.save(path, tensors, metadata))
        remove_parts(path)
        return
    names = [f"{path.stem}.{state['step']}.{rank}of{group.size}{path.suffix}" for rank in range(group.size)]
    agree(lambda: saving.save(path.with_name(names[group.rank]), tensors))
    on_first_rank(lambda: saving.save(path, {}, {**metadata, "files": json.dumps(names)}))
    remove_parts(path, names)


def remove_parts(path: Path, needed: Sequence[str] = ()) -> None:
    """Deletes the files of ranks beside a checkpoint but those needed."""
    if distributed.world().rank == 0:
        for old in path.parent.glob(f"{path.stem}.*of*{path.suffix}"):
            if old.name not in needed:
                old.unlink()


def read(
    path: Path, model: Any, optimizer: optim.Optimizer | None = None, parallel: distributed.Alone | None = None
) -> dict[str, Any]:
    """Sets a model, and the optimizer if given, to the checkpoint; returns the rest of its state.

    Raises FileError for a file that is damaged or lacks something, OSError where one can't be read.
    """
    _, metadata = saving.load(path, [])
    files = [path.with_name(name) for name in json.loads(metadata.get("files", f'["{path.name}"]'))]
    found = _parts_in(files)
    for name, (tensor, start, _) in held(model, optimizer, parallel).items():
        if name not in found:
            raise FileError(f"{path} has no {name}: it is of another model or an older version")
        _fill(name, tensor, start, found[name])
    if parallel is not None:
        parallel.scatter()
    return json.loads(metadata["state"])


def held(
    model: Any, optimizer: optim.Optimizer | None = None, parallel: distributed.Alone | None = None
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
    """What a rank writes: what it alone has, and its share of what all have."""
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


class _Piece(NamedTuple):
    file: Path
    name: str
    start: int
    stop: int


def _parts_in(files: Sequence[Path]) -> dict[str, list[_Piece]]:
    """By the name of a tensor where the parts of it are."""
    found: dict[str, list[_Piece]] = {}
    for file in files:
        for stored, (_, shape) in saving.contents(file).items():
            part = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", stored)
            name, start, stop = part.groups() if part else (stored, 0, math.prod(shape))
            found.setdefault(name, []).append(_Piece(file, stored, int(start), int(stop)))
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
