"""Files that a crash can't damage: written beside their place, flushed to disk and renamed, in this order."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends; until then, or where it raises, an older one stays.

    Contents and name are on disk afterwards. A process that is killed meanwhile leaves `.tinyarr-TOKEN.unfinished`
    behind. Raises OSError where it can't be written.
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


def flush(path: Path) -> None:
    """Returns once a file's contents, or a folder's entries, are on disk; before that a power failure takes them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
