"""Checkpoints in Hugging Face's layout: a folder with config.json and weights in safetensors files. Floor 5."""

from __future__ import annotations

import json
import reprlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import tinyarr
from tinyarr import Tensor, nn, saving
from tinyarr.dtypes import Dtype
from tinyarr.errors import FileError

from .formats import HEAD, GPT2Format, Llama3Format, config_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FORMATS: dict[str, Any] = {"gpt2": GPT2Format, "llama3": Llama3Format}
SHARD_BYTES = 5 * 10**9  # what transformers puts into one file


def save(folder: Path, model: nn.Module, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and the weights, cut into files of at most `shard_bytes` (a larger tensor gets its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    format = FORMATS[model.name]
    shards = _shards(format.weights(model), shard_bytes)
    place = {}
    for i, shard in enumerate(shards):
        name = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        saving.save(folder / name, shard, {"format": "pt"})
        place |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(t.nbytes for shard in shards for t in shard.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    # What the folder held before in the other form would be read instead.
    (folder / (INDEX if len(shards) == 1 else WEIGHTS)).unlink(missing_ok=True)
    dtype = {"dtype": next(model.parameters()).dtype.name}
    keys = {key.name: getattr(model.config, field) for field, key in format.keys.items()}
    _write_json(folder / CONFIG, format.fixed | keys | format.more_keys(model.config) | dtype)


def _shards(tensors: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, t in tensors.items():
        if shards[-1] and size + t.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = t
        size += t.nbytes
    return shards


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: damaged ({error}): copy it again") from None
    if not isinstance(content, dict):
        raise FileError(f"{path}: damaged (it holds no table): copy it again")
    return content


def read_config(model_class: type, path: Path) -> Any:
    """The model's Config that the config.json in a folder, or beside a file, describes.

    Raises FileNotFoundError where there is none, FileError where it is damaged or describes a model that
    `model_class` can't be, or another one than the weights beside it are of.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file: check the path")
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file: it says how large the model is; else name its size")
    format, given = FORMATS[model_class.name], _read_json(file)
    try:
        config = config_of(format, given)
    except ValueError as error:
        raise FileError(f"{file}: {error}: give a folder that holds a {model_class.name}") from None
    if not path.is_dir() or (path / WEIGHTS).exists() or (path / INDEX).exists():
        stored = _stored(path, format)
        if config.n_layer > len(stored):
            raise FileError(f"{file}: the model has {config.n_layer} layers, and {path} {len(stored)} tensors: "
                            "give the configuration of these weights")
        _check(path, stored, model_class(config, device="meta"))
    return config


class Stored(NamedTuple):
    """A tensor of a file."""

    file: Path
    name: str
    dtype: Dtype
    shape: tuple[int, ...]


def load(path: Path, model: nn.Module) -> None:
    """Reads the weights of a folder, or of one safetensors file, into a model, a tensor at a time.

    Raises FileError for a damaged file, for names, shapes or dtypes that are not the model's, and for a head beside
    the embedding that should be the head too; then nothing was written.
    """
    format = FORMATS[model.name]
    stored = _stored(path, format)
    views = _check(path, stored, model)
    if HEAD in stored.keys() - views.keys():
        head, table = (_read(stored[name]).astype(views[format.table].dtype) for name in (HEAD, format.table))
        if head.shape != table.shape or not (head == table).all():
            raise FileError(f"{path}: {HEAD} differs from {format.table}, which is the head by tie_word_embeddings in "
                            f"{CONFIG}: give a {CONFIG} in which that is false, or weights without this head")
    wanted = defaultdict(dict)
    for own, view in views.items():
        wanted[stored[own].file][stored[own].name] = view
    with tinyarr.no_grad():
        for file, targets in wanted.items():
            for name, t in saving.load_each(file, targets, device=next(model.parameters()).device):
                targets[name].assign(t)


def _read(stored: Stored) -> Tensor:
    return saving.load(stored.file, [stored.name], device="cpu")[0][stored.name]


def _check(path: Path, stored: dict[str, Stored], model: nn.Module) -> dict[str, Tensor]:
    """The parts of the model that the files' tensors fill. Raises FileError where these are not just the model's."""
    views = FORMATS[model.name].weights(model)
    table = FORMATS[model.name].table
    if table not in stored and HEAD not in views and HEAD in stored:
        stored[table] = stored.pop(HEAD)  # of two equal tensors some writers keep the last
    missing, unexpected = sorted(views.keys() - stored.keys()), sorted(stored.keys() - views.keys() - {HEAD})
    known = [(own, stored[own], view) for own, view in views.items() if own in stored]
    wrong = [f"{own} has shape {t.shape}, the model needs {view.shape}" for own, t, view in known
             if t.shape != view.shape]
    whole = [f"{own} has dtype {t.dtype.name}, the model needs a floating one" for own, t, _ in known
             if not t.dtype.is_float]
    for problem, names in [
        ("lacks", missing), ("holds unknown", unexpected), ("does not fit:", wrong), ("does not fit:", whole)
    ]:
        if names:
            raise FileError(f"{path}: {problem} {names[0]} ({len(names)} tensors in all): "
                            f"give the weights of a {model.name} of this configuration")
    return views


def _stored(path: Path, format: Any) -> dict[str, Stored]:
    """The tensors of a folder, or of the file that was named, by our names."""
    place = _index(path) if path.is_dir() else None
    whole = path / WEIGHTS if path.is_dir() else path
    files = [path / file for file in sorted(set(place.values()))] if place else [whole]
    found: dict[str, Stored] = {}
    lost = set(place or ())
    for file in files:
        for name, (dtype, shape) in saving.contents(file).items():
            if place and name not in place:
                raise FileError(f"{path / INDEX}: {name} in {file.name} is not listed: copy both again")
            if place and place[name] != file.name:
                continue  # another version of a tensor: the index decides
            lost.discard(name)
            own = format.own_name(name)
            if own in found:
                raise FileError(f"{path}: {name} and {found[own].name} are one tensor of the model: leave one out")
            if own is not None:
                found[own] = Stored(file, name, dtype, shape)
    if lost:
        raise FileError(f"{path / INDEX}: {min(lost)} is not in {place[min(lost)]}: copy both again")
    return found


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor in a folder with several; None where one has all, which transformers takes first too."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return None
    place = _read_json(index).get("weight_map")
    if not isinstance(place, dict) or not place:
        raise FileError(f"{index}: damaged (weight_map is no table with an entry): copy it again")
    for file in place.values():
        if not isinstance(file, str) or file in ("", "..") or file != Path(file).name or not file.isprintable():
            raise FileError(f"{index}: damaged ({reprlib.repr(file)} is no file's name in the folder): copy it again")
    return place
