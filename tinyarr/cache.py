"""The disk cache of compiled kernels and of choices made by timing, which the processes of a user share. Floor 2.

An entry ends with a digest of its name and its content, so neither a damaged one nor one under another's name is taken;
it is written beside its place and renamed, so nobody sees half of it. Entries hold code that is run: one that another
user owns or can write is none. What can't be read or written costs time alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size
_KINDS = "so", "cubin", "cudnn", "choice"
_OURS = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(_KINDS)})(\.\w{{8}})?")  # the last part is of one not yet in its place


def folder() -> Path | None:
    """The folder of the entries: $TINYARR_CACHE, else tinyarr in the user's cache folder; None without a home."""
    chosen = os.environ.get("TINYARR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG Base Directory Specification has a relative path ignored.
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tinyarr"
    except RuntimeError:  # no HOME, and no user of this number in /etc/passwd
        return None


def name_of(kind: str, *key: Any) -> str:
    """The name of the entry that `key` describes; kind is its suffix."""
    assert kind in _KINDS
    return f"{hashlib.sha256(repr(key).encode()).hexdigest()}.{kind}"


def read(name: str) -> bytes | None:
    """Returns the content of an entry, None where there is none that is whole and this user's alone."""
    parent = folder()
    if parent is None:
        return None
    try:
        # The descriptor is judged and read, so nothing comes between; nor does opening a pipe wait for a writer.
        with open(parent / name, "rb", opener=_open) as stream:
            stored = stream.read() if _is_trusted(os.fstat(stream.fileno())) else b""
    except OSError:
        return None
    content, digest = stored[:-_DIGEST], stored[-_DIGEST:]
    return content if digest == _digest(name, content) else None


def write(name: str, content: bytes) -> bool:
    """Keeps the content of an entry; False where the folder can't be written or the disk is full."""
    parent = folder()
    if parent is None:
        return False
    temporary = ""
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=parent, prefix=f"{name}.", delete=False) as stream:  # of mode 0600
            temporary = stream.name
            stream.write(content + _digest(name, content))
        os.replace(temporary, parent / name)
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False
    return True


def files() -> list[Path]:
    """The files of this user's entries, those that a killed writer left too. Raises OSError where there's no access."""
    parent, found = folder(), []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(parent) if parent is not None else ():
            if _OURS.fullmatch(entry.name) and _is_ours(entry.stat(follow_symlinks=False)):
                found.append(Path(entry))
    return sorted(found)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _is_trusted(status: os.stat_result) -> bool:
    return _is_ours(status) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
