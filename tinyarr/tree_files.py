"""Checkpoints: nested dicts, lists and tuples of tensors and plain values in one safetensors file. Floor 5.

Tensors are saved under their paths, so that other programs read them; the file's metadata hold the tree in JSON. A list
is an array there, and what JSON lacks an object with one key: {"tuple": [...]}, {"dict": [[key, value], ...]},
{"tensor": name}, {"float": "nan"}.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from . import saving
from .device import Device
from .errors import ArgumentError, FileError
from .tensor import Tensor

TREE = "tinyarr.tree"  # in the metadata
MOST_CHARACTERS = 2**24  # of the tree: what Python makes of a hostile one takes 30 times its length


def save(path: str | Path, tree: Any) -> None:
    """Writes a tree of dicts (with str or int keys), lists, tuples, tensors, numbers, strings, bools and None.

    The file is a safetensors file and appears under its name only when it is complete and on disk; until then an older
    one stays. Raises TypeError for anything else in the tree, ArgumentError for one too large or that holds itself,
    OSError where the file can't be written.

    >>> import tinyarr
    >>> model = tinyarr.nn.Linear(2, 3)
    >>> optimizer = tinyarr.optim.AdamW(model.parameters())
    >>> generator = tinyarr.Generator(7)
    >>> states = {"model": model, "optimizer": optimizer, "generator": generator}
    >>> tinyarr.save("run.safetensors", {"step": 3, **{name: x.state_dict() for name, x in states.items()}})
    >>> saved = tinyarr.load("run.safetensors")
    >>> for name, x in states.items():
    ...     x.load_state_dict(saved[name])
    >>> saved["step"]
    3
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save: path is {type(path).__name__}: it comes first: save(path, tree)")
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_encoded(tree, (), tensors))
    except RecursionError:
        raise ArgumentError("save: tree is nested too deeply, or holds itself: make it flatter") from None
    except ValueError as error:  # an int of thousands of digits
        raise ArgumentError(f"save: tree can't be written: {error}") from None
    if len(text) > MOST_CHARACTERS:
        raise ArgumentError(f"save: tree takes {len(text):,} characters without its tensors, and {MOST_CHARACTERS:,} "
                            "are allowed: make tensors of long lists")  # fmt: skip
    saving.save(path, tensors, {TREE: text})


def load(path: str | Path, *, device: str | Device | None = None) -> Any:
    """The tree that `save` has written, with its tensors on a device; of another safetensors file its dict of tensors.

    Nothing in a file is ever run. Raises FileError for one that is damaged, OSError for one that can't be read.
    """
    tensors, metadata = saving.load(path, device=device)
    if TREE not in metadata:
        return tensors

    def decoded(pairs: list[tuple[str, Any]]) -> Any:
        ((kind, value),) = pairs
        if kind == "tensor":
            return tensors[value]
        if kind == "float":
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value]
        if type(value) is not list or kind not in ("tuple", "dict"):
            raise ValueError(f"{kind!r} is none of its kinds")
        if kind == "tuple":
            return tuple(value)
        made = {key: item for key, item in value if type(key) in (str, int)}
        if len(made) < len(value):
            raise ValueError("a key of a dict is there twice, or neither a str nor an int")
        return made

    def refused(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        if len(metadata[TREE]) > MOST_CHARACTERS:
            raise ValueError(f"its tree has {len(metadata[TREE]):,} characters, and {MOST_CHARACTERS:,} are allowed")
        return json.loads(metadata[TREE], object_pairs_hook=decoded, parse_constant=refused)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise FileError(f"load: {path} holds no sound tree ({error!r:.200}): copy or save it again") from None


def _encoded(x: Any, path: tuple, tensors: dict[str, Tensor]) -> Any:
    """A part of the tree in JSON's types; its tensors go into `tensors`, under their path."""
    if x is None or type(x) in (bool, int, str) or (type(x) is float and math.isfinite(x)):
        return x
    if type(x) is float:
        return {"float": str(x)}
    if isinstance(x, Tensor):
        name = ".".join(map(str, path))
        while name in tensors or name == "__metadata__":  # as for {"a": {"b": x}, "a.b": y}
            name += "'"
        tensors[name] = x
        return {"tensor": name}
    if isinstance(x, list | tuple):
        items = [_encoded(item, (*path, i), tensors) for i, item in enumerate(x)]
        return items if isinstance(x, list) else {"tuple": items}
    where = "tree" + "".join(f"[{key!r}]" for key in path)
    if not isinstance(x, dict):
        kinds = "dicts, lists, tuples, tensors, numbers, strings, bools and None"
        raise TypeError(f"save: {where} is {type(x).__name__}: it must consist of {kinds}: make a tensor of an array")
    for key in x:
        if type(key) not in (str, int):
            raise TypeError(f"save: {where} has the key {key!r} ({type(key).__name__}): use a str or an int")
    return {"dict": [[key, _encoded(item, (*path, key), tensors)] for key, item in x.items()]}
