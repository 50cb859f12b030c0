"""Files that a crash can't damage: written beside their place, flushed to disk and renamed, in this order. Floor 2."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_UNFINISHED = re.compile(r"\.tinyarr-[0-9a-f]{16}\.unfinished")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends; until then, or where it raises, an older one stays.

    Contents and name are on disk afterwards. A process that is killed meanwhile leaves `.tinyarr-TOKEN.unfinished`
    behind, which `remove_unfinished` deletes. Raises OSError where it can't be written.
    """
    temporary = path.with_name(f".tinyarr-{secrets.token_hex(8)}.unfinished")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Deletes what processes that were killed have left in a folder. No other process may write there now."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Returns once a file's contents, or a folder's entries, are on disk; before that a power failure takes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
