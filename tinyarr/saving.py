"""Tensors in files: safetensors, written so that a crash can't damage an older file. Floor 5.

Layout: 8 bytes of length, that much JSON (name to dtype, shape and offsets; strings under "__metadata__"), the data.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from . import dtypes, durable
from .array import Array, empty
from .device import Device, default_device
from .dtypes import Dtype
from .errors import ArgumentError, FileError
from .tensor import Tensor, require_tensors, result_tensor
from .views import Shape

_DTYPES = {
    "BOOL": dtypes.bool,
    "U8": dtypes.uint8, "U16": dtypes.uint16, "U32": dtypes.uint32, "U64": dtypes.uint64,
    "I8": dtypes.int8, "I16": dtypes.int16, "I32": dtypes.int32, "I64": dtypes.int64,
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "F32": dtypes.float32, "F64": dtypes.float64,
    "F8_E4M3": dtypes.float8_e4m3fn, "F8_E5M2": dtypes.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

MOST_HEADER_BYTES = 100_000_000  # as in the safetensors library
_METADATA = "__metadata__"


def _grammar(text: str) -> re.Pattern[str]:
    """A regular expression of JSON: a blank stands for any white space, TEXT for the inside of a string.

    NUMBER is a whole number that an int64 can hold. Possessive quantifiers (*+) never go back, so a match takes time
    in proportion to its length.
    """
    text = text.replace(" ", r"[ \t\n\r]*+").replace("NUMBER", "(?:0|[1-9][0-9]{0,18}+)")
    return re.compile(text.replace("TEXT", r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'))


# A header is read pair by pair and not as JSON, which would first build whatever a hostile file asks for.
_COMMA = r"(?:, (?!\})|(?=\}))"  # between the pairs of a table, and none behind the last
_TENSOR = _grammar(
    r' "(TEXT)" : \{ (?:"(?:dtype" : "(TEXT)"|shape" : \[ ((?:NUMBER (?:, NUMBER ){0,63}+)?+)\]'
    rf'|data_offsets" : \[ (NUMBER) , (NUMBER) \]) {_COMMA}){{3}}\}} ([,}}])'
)
_STRINGS = _grammar(rf' "{_METADATA}" : (\{{ (?:"TEXT" : "TEXT" {_COMMA})*+\}}) ([,}}])')
_NOTHING = _grammar(r"\{ \} ")


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and a table of strings to a safetensors file, a tensor at a time.

    The file appears under its name only when it is complete and on disk; until then an older one stays as it was.
    On return the name is on disk too. Threads and processes may save to one path at once; one of their files stays.
    A process that is killed meanwhile leaves an unfinished file behind, which durable.remove_unfinished deletes.
    Raises ArgumentError for names and metadata that no file can hold, OSError where the file can't be written.
    """
    path = Path(path)
    # Wide elements first, so that every tensor starts aligned.
    ordered = sorted(_checked(tensors).items(), key=lambda item: -item[1].dtype.itemsize)
    header = _encode(ordered, metadata or {})
    with durable.replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _, t in ordered:
            file.write(t.numpy().reshape(-1).view(np.uint8).data)


def _checked(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: tensors is {type(tensors).__name__}: give a dict of tensors, as model.state_dict()")
    for name in tensors:
        # Of other types two that differ may be written alike.
        if type(name) is not str or name == _METADATA:
            raise ArgumentError(f"save: a tensor's name is {name!r}: names must be str, and not {_METADATA!r}, "
                                "which the format keeps for itself")
    require_tensors("save", **tensors)
    return tensors


def _encode(ordered: list[tuple[str, Tensor]], metadata: dict[str, str]) -> bytes:
    """The header of a file that holds these tensors one after another."""
    header: dict[str, Any] = {}
    if metadata:
        if not isinstance(metadata, dict) or not all(isinstance(x, str) for pair in metadata.items() for x in pair):
            raise ArgumentError(f"save: metadata is {metadata}: names and values must be strings, so use json.dumps")
        header[_METADATA] = metadata
    end = 0
    for name, t in ordered:
        begin, end = end, end + t.nbytes
        header[name] = {"dtype": _NAMES[t.dtype], "shape": t.shape, "data_offsets": (begin, end)}
    try:
        _require_utf8(header, metadata, metadata.values())
    except UnicodeEncodeError as error:
        raise ArgumentError(f"save: a name or the metadata hold {error.object[error.start]!r}, which UTF-8 can't "
                            "write: leave lone surrogates out") from None
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MOST_HEADER_BYTES:
        raise ArgumentError(f"save: names, shapes and metadata take {len(encoded):,} bytes, and files may have "
                            f"{MOST_HEADER_BYTES:,}: save in several files, or metadata elsewhere")
    return encoded


def load(
    path: str | Path, names: Iterable[str] | None = None, *, device: str | Device | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns (tensors, metadata) of a safetensors file, with all tensors or only those named.

    Raises FileError for a file that is damaged or no safetensors file, and for a name that it lacks.
    """
    with _open(path) as f:
        header, metadata, start = _read_header(f)
        return dict(_read_tensors(f, header, start, names, device)), metadata


def load_each(
    path: str | Path, names: Iterable[str] | None = None, *, device: str | Device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yields name and tensor, one at a time, of those that `load` returns. Errors as of load."""
    with _open(path) as f:
        header, _, start = _read_header(f)
        yield from _read_tensors(f, header, start, names, device)


def contents(path: str | Path) -> dict[str, tuple[Dtype, Shape]]:
    """Returns the dtype and shape of each tensor in a safetensors file, which alone are read. Errors as of load."""
    with _open(path) as f:
        header, _, _ = _read_header(f)
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in header.items()}


def _open(path: str | Path) -> FileIO:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    return open(path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def _read_tensors(
    f: FileIO, header: dict[str, tuple], start: int, names: Iterable[str] | None, device: str | Device | None
) -> Iterator[tuple[str, Tensor]]:
    place = default_device() if device is None else Device(device)
    for name in header if names is None else names:
        if name not in header:
            some = [f"{other:.100}" for other in list(header)[:3]]
            raise FileError(f"load: {f.name} holds no {name!r}; it has {len(header)} tensors, such as {some}")
        dtype, shape, begin, _ = header[name]
        array = empty(place, shape, dtype)
        if array.nbytes and place.kind != "meta":
            _fill(array, f, start + begin, name)
        yield name, result_tensor(array)


def _fill(array: Array, f: FileIO, position: int, name: str) -> None:
    """Reads an array's elements from `position` on.

    The file isn't mapped: a map of one that another program cuts short ends the process, and its pages count as memory.
    """
    on_cpu = array.device.kind == "cpu"
    data = array.data if on_cpu else np.empty(array.shape, array.dtype.numpy)
    left = data.reshape(-1).view(np.uint8).data
    f.seek(position)
    while left:
        count = f.readinto(left)
        if not count:
            raise FileError(f"load: {f.name} ended {len(left)} bytes before the end of {name:.100}: another program "
                            "has cut it short while it was read; copy or save it again")
        left = left[count:]
    if array.dtype is dtypes.bool:  # any byte but 0 is true
        np.not_equal(data.view(np.uint8), 0, out=data)
    if not on_cpu:
        array.device.backend.from_numpy(data, array)


def _require_utf8(*texts: Iterable[str]) -> None:
    """Raises UnicodeEncodeError for lone surrogates, which JSON can write and UTF-8 can't."""
    for text in texts:
        "".join(text).encode()


def _read_header(f: FileIO) -> tuple[dict[str, tuple], dict[str, str], int]:
    """Returns name to (dtype, shape, begin, end), the metadata, and where the data begin; all agree with the size."""
    status = os.fstat(f.fileno())
    size = status.st_size
    header: dict[str, tuple] = {}
    end = 0
    try:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        length = int.from_bytes(_read(f, 8), "little")
        if 8 + length > size:
            raise ValueError(f"its header should have {length} bytes, but the file has {size}")
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"its header has {length:,} bytes, and {MOST_HEADER_BYTES:,} are allowed")
        entries, metadata = _parse(_read(f, length).decode())
        for begin, stop, name, dtype_name, shape in sorted(entries):
            if name in header or name == _METADATA:
                raise ValueError(f"it has the name {name:.100} twice")
            if dtype_name not in _DTYPES:
                raise ValueError(f"{name:.100} has the dtype {dtype_name:.100}, which tinyarr lacks")
            dtype = _DTYPES[dtype_name]
            sound = begin == end and stop == begin + math.prod(shape) * dtype.itemsize
            if not sound or (stop == begin and math.prod(filter(None, shape)) * dtype.itemsize >= 2**63):
                raise ValueError(f"{name:.100} can't lie at {begin} to {stop} with shape {shape}, {dtype.name}")
            header[name], end = (dtype, shape, begin, stop), stop
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end} bytes are described, the file has {size}")
    except ValueError as e:
        raise FileError(f"load: {f.name} is not a sound safetensors file ({e}): copy or save it again") from None
    return header, metadata, 8 + length


def _read(f: FileIO, count: int) -> bytes:
    """The next `count` bytes, fewer only at the end of the file."""
    pieces = bytearray()
    while len(pieces) < count and (piece := f.read(count - len(pieces))):
        pieces += piece
    return bytes(pieces)


def _parse(text: str) -> tuple[list[tuple[int, int, str, str, Shape]], dict[str, str]]:
    """Returns (begin, end, name, dtype, shape) of each tensor and the metadata. Raises ValueError."""
    entries: list[tuple[int, int, str, str, Shape]] = []
    metadata: dict[str, str] | None = None
    if _NOTHING.fullmatch(text):
        return entries, {}
    if not text.startswith("{"):
        raise ValueError("its header does not begin with {")
    position, after = 1, ","
    while after == ",":
        if match := _TENSOR.match(text, position):
            name, dtype, shape, begin, end, after = match.groups()
            if dtype is None or shape is None or begin is None:
                raise ValueError(f"{name:.100} has a key twice")
            numbers = tuple(map(int, shape.split(","))) if shape else ()
            entries.append((int(begin), int(end), _unescaped(name), dtype, numbers))
        elif metadata is None and (match := _STRINGS.match(text, position)):
            strings, after = match.groups()
            metadata = json.loads(strings, object_pairs_hook=_table)
        else:
            raise ValueError(f"its header makes no sense after {position} characters: {text[position:position + 40]!r}")
        position = match.end()
    if text[position:].strip(" \t\n\r"):
        raise ValueError("its header goes on after its end")
    return entries, metadata or {}


def _unescaped(text: str) -> str:
    """The string that JSON writes so between quotation marks. Raises ValueError for one that UTF-8 can't write."""
    if "\\" in text:
        text = json.loads(f'"{text}"')
        text.encode()
    return text


def _table(pairs: list[tuple[str, str]]) -> dict[str, str]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("its metadata have a name twice")
    _require_utf8(table, table.values())
    return table
