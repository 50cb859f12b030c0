"""The disk cache of compiled kernels and of choices made by timing, which processes share.

A file ends with a digest of what comes before, so a damaged one is made again; it is written beside its place and
renamed, so nobody sees half of it. A cache that can't be written costs time alone.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size


def folder() -> Path:
    """Where they are kept: $TINYARR_CACHE, else tinyarr in the user's cache folder."""
    chosen = os.environ.get("TINYARR_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinyarr"


def file_of(kind: str, *key: Any) -> Path:
    """The file of what `key` describes; kind is its suffix."""
    return folder() / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.{kind}"


def read(file: Path) -> bytes | None:
    """What was written there, or None where there is nothing whole."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    content, digest = stored[:-_DIGEST], stored[-_DIGEST:]
    return content if digest == hashlib.sha256(content).digest() else None


def write(file: Path, content: bytes) -> bool:
    """Keeps content; False where the folder can't be written or the disk is full."""
    temporary = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix="writing-", delete=False) as stream:
            temporary = stream.name
            stream.write(content + hashlib.sha256(content).digest())
        os.replace(temporary, file)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        return False
    return True


def files() -> list[Path]:
    """The files of the cache, those that a killed writer left too."""
    found = folder()
    return sorted(f for f in found.iterdir() if f.is_file()) if found.is_dir() else []
