"""The system's C compiler: from source text to a loaded library. Floor 2."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ... import cache
from ...errors import TinyarrError
from ..source.scalar_source import HEADER

# Nothing here changes a result: no fast-math, no contraction to fused multiply-adds, and integers wrap. That errno
# and floating-point exceptions are not looked at lets loops with sqrt, comparisons and conversions use SIMD.
FLAGS = (
    "-std=gnu11 -O3 -fPIC -shared -fwrapv -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd "
    f"-{'march' if platform.machine() in ('x86_64', 'AMD64') else 'mcpu'}=native"
).split()


class CCompilerError(TinyarrError, RuntimeError):
    """There is no C compiler that works here."""


class SourceError(CCompilerError):
    """The C compiler rejected a source."""


def find_compiler() -> list[str]:
    """The command of the C compiler: $TINYARR_CC, else the first of cc, gcc and clang. Raises CompilerError."""
    chosen = os.environ.get("TINYARR_CC")
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError:  # of a quotation mark that does not close
            command = []
        if not command or shutil.which(command[0]) is None:
            raise CCompilerError(
                f"C compiler: TINYARR_CC is {chosen!r}, which is not a program: set it to a C compiler"
            )
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise CCompilerError("C compiler: none of cc, gcc, clang is installed: install one, or name it in TINYARR_CC")


def load_cached(source: str, *, openmp: bool = True) -> ctypes.CDLL:
    """The library of a source, from the disk cache where it is; a compiler of this name is still needed."""
    command = find_compiler()
    header = HEADER.read_text(encoding="utf-8")
    version = _version(tuple(command))
    name = cache.name_of("so", source, header, command, version, FLAGS, openmp, _processor())
    binary = cache.read(name)
    if binary is not None:
        with contextlib.suppress(OSError):  # of one that needs what another machine has: a newer libc, say
            return _loaded(binary)
    with _temporary_folder() as folder:
        library = load(source, folder, openmp=openmp)
        cache.write(name, (folder / "kernels.so").read_bytes())
        return library


def check_openmp() -> None:
    """Raises CompilerError where there is no compiler, or one without OpenMP."""
    try:
        load_cached("#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")
    except SourceError as error:
        raise CCompilerError(str(error)) from None


def load(source: str, folder: Path | None = None, *, openmp: bool = False) -> ctypes.CDLL:
    """Compiles C source, which may include scalar.h, to a shared library and loads it.

    `folder` keeps the source and the library; without it they are removed at once, and the library stays in memory.
    Raises CompilerError where there is no compiler that works, SourceError with the message of one that rejects the
    source.
    """
    command = find_compiler()
    if folder is None:
        with _temporary_folder() as temporary:
            return load(source, temporary, openmp=openmp)
    text, library = folder / "kernels.c", folder / "kernels.so"
    text.write_text(source, encoding="utf-8")
    arguments = [*FLAGS, *(["-fopenmp"] if openmp else []), f"-I{HEADER.parent}", str(text)]
    run = _run(command, *arguments, "-o", str(library), "-lm")
    if run.returncode:
        is_valid = _run(command, *arguments, "-fsyntax-only").returncode == 0  # the disk may be full
        kind, what = (CCompilerError, "fails on a valid source") if is_valid else (SourceError, "rejected the source")
        raise kind(f"C compiler: {shlex.join(command)} {what}:\n{run.stderr.strip()}")
    try:
        return _loaded(library.read_bytes())
    except OSError as error:
        raise CCompilerError(
            f"C compiler: {shlex.join(command)} makes no library that loads here ({error}): set TINYARR_CC to one that "
            "compiles for this machine"
        ) from None


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return _run(command, "--version").stdout


def _run(command: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # a Ctrl-C that Python puts off must not end the compiler
        )
    except OSError as error:
        raise CCompilerError(
            f"C compiler: {shlex.join(command)} does not run ({error}): set TINYARR_CC to one that does"
        ) from None


@functools.cache
def _processor() -> str:
    """Returns the features of this processor: a library made for another one may hold instructions that it lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that only this user can enter. Raises CompilerError where it can't be made or filled."""
    try:
        with tempfile.TemporaryDirectory(prefix="tinyarr-") as folder:
            yield Path(folder)
    except OSError as error:
        raise CCompilerError(
            f"C compiler: it has no folder to work in ({error}): set TMPDIR to one that can be written and has space"
        ) from None


_loads = itertools.count(1)


def _loaded(binary: bytes) -> ctypes.CDLL:
    """Loads a library from memory: these very bytes, on whatever file systems forbid to execute. Raises OSError."""
    if hasattr(os, "memfd_create"):  # Linux alone has it
        with contextlib.suppress(OSError), open(os.memfd_create("tinyarr"), "wb") as memory:
            memory.write(binary)
            memory.flush()
            # The loader takes a path that it has met for the library that was there. So each gets a spelling of its
            # own: the number of the load in binary, "/." for 1 and "/" for 0.
            number = f"{next(_loads):b}".replace("1", "/.").replace("0", "/")
            return ctypes.CDLL(f"/proc/self/fd{number}/{memory.fileno()}")
    with tempfile.TemporaryDirectory(prefix="tinyarr-") as folder:
        file = Path(folder) / "kernels.so"
        file.write_bytes(binary)
        return ctypes.CDLL(str(file))
