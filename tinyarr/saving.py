"""Tensors in files: safetensors, which every framework reads, written so that a crash can't damage an older file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from . import dtypes
from .array import empty
from .device import Device, default_device
from .errors import FileError
from .tensor import Tensor, result_tensor

_NAMES = {
    "BOOL": dtypes.bool,
    "U8": dtypes.uint8, "U16": dtypes.uint16, "U32": dtypes.uint32, "U64": dtypes.uint64,
    "I8": dtypes.int8, "I16": dtypes.int16, "I32": dtypes.int32, "I64": dtypes.int64,
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "F32": dtypes.float32, "F64": dtypes.float64,
    "F8_E4M3": dtypes.float8_e4m3fn, "F8_E5M2": dtypes.float8_e5m2,
}  # fmt: skip


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and a table of strings to a safetensors file.

    The file appears under its name only when it is complete and on disk; until then an older one stays as it was.
    """
    from safetensors.numpy import save_file  # here: an extra, which importing tinyarr must not need

    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file({name: t.numpy() for name, t in tensors.items()}, temporary, metadata)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(
    path: str | Path, names: Iterable[str] | None = None, *, device: str | Device | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads (tensors, metadata) from a safetensors file, all of them or only those named; one at a time.

    Raises FileError for a file that is damaged or no safetensors file, and for a name that it lacks.
    """
    header, start = _read_header(Path(path))
    metadata = header.pop("__metadata__", {})
    wanted = list(header) if names is None else list(names)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise FileError(
            f"load: {path} holds no {missing[0]!r}; it has {len(header)} tensors, such as {list(header)[:3]}"
        )
    place = default_device() if device is None else Device(device)
    data = np.memmap(path, np.uint8, "r", start) if os.path.getsize(path) > start else np.empty(0, np.uint8)
    tensors = {}
    for name in wanted:
        entry = header[name]
        dtype, (begin, end) = _NAMES[entry["dtype"]], entry["data_offsets"]
        array = empty(place, tuple(entry["shape"]), dtype)
        place.backend.from_numpy(data[begin:end].view(dtype.numpy).reshape(array.shape), array)
        tensors[name] = result_tensor(array)
    return tensors, metadata


def _read_header(path: Path) -> tuple[dict, int]:
    """The table of contents and where the data begins. Layout: 8 bytes of length, that much JSON, then the data."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks lengths, offsets, shapes and dtypes against one another
            pass
    except SafetensorError as e:
        raise FileError(f"load: {path} is not a sound safetensors file ({e}): copy or save it again") from None
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    unknown = {e["dtype"] for name, e in header.items() if name != "__metadata__"} - _NAMES.keys()
    if unknown:
        raise FileError(f"load: {path} holds dtypes that tinyarr lacks: {', '.join(sorted(unknown))}")
    return header, 8 + length
