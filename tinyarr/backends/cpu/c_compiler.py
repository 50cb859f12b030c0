"""The system's C compiler: from source text to a loaded library."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ... import cache
from ...errors import TinyarrError
from ..scalar_source import HEADER

# Nothing here changes a result: no fast-math, no contraction to fused multiply-adds, and integers wrap. That errno
# and floating-point exceptions are not looked at lets loops with sqrt, comparisons and conversions use SIMD.
FLAGS = (
    "-std=gnu11 -O3 -fPIC -shared -fwrapv -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd "
    f"-{'march' if platform.machine() in ('x86_64', 'AMD64') else 'mcpu'}=native"
).split()


class CompilerError(TinyarrError, RuntimeError):
    """There is no C compiler, or it rejected a source."""


def find_compiler() -> list[str]:
    """The command of the C compiler: $TINYARR_CC, else the first of cc, gcc and clang. Raises CompilerError."""
    chosen = os.environ.get("TINYARR_CC")
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise CompilerError(f"C compiler: TINYARR_CC is {chosen!r}, which is not a program: set it to a C compiler")
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise CompilerError("C compiler: none of cc, gcc, clang is installed: install one, or name it in TINYARR_CC")


def load_cached(source: str) -> ctypes.CDLL:
    """The library of a source with OpenMP, from the disk cache where it is; a compiler of this name is still needed."""
    command = find_compiler()
    header = HEADER.read_text(encoding="utf-8")
    file = cache.file_of("so", source, header, command, _version(command[0]), FLAGS, _processor())
    if cache.read(file) is None:
        with tempfile.TemporaryDirectory(prefix="tinyarr-") as temporary:
            library = load(source, Path(temporary), openmp=True)
            cache.write(file, (Path(temporary) / "kernels.so").read_bytes())
            return library
    return ctypes.CDLL(str(file))


def check_openmp() -> None:
    """Raises CompilerError where there is no compiler, or one without OpenMP."""
    load_cached("#include <omp.h>\nint threads(void) { return omp_get_max_threads(); }\n")


@functools.cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


@functools.cache
def _processor() -> str:
    """What this processor can do: a library made for another one may hold instructions that it lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def load(source: str, folder: Path | None = None, *, openmp: bool = False) -> ctypes.CDLL:
    """Compiles C source, which may include scalar.h, to a shared library and loads it.

    `folder` keeps the source and the library; without it they are removed at once, and the library lives on in memory.
    Raises CompilerError where there is no compiler, or with the compiler's message.
    """
    command = find_compiler()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="tinyarr-") as temporary:
            return load(source, Path(temporary), openmp=openmp)
    text, library = folder / "kernels.c", folder / "kernels.so"
    text.write_text(source, encoding="utf-8")
    flags = ["-fopenmp"] if openmp else []
    run = subprocess.run(
        [*command, *FLAGS, *flags, f"-I{HEADER.parent}", str(text), "-o", str(library), "-lm"],
        capture_output=True,
        text=True,
        process_group=0,  # a Ctrl-C that Python puts off must not end the compiler
    )
    if run.returncode:
        raise CompilerError(f"C compiler: {shlex.join(command)} rejected the source:\n{run.stderr.strip()}")
    return ctypes.CDLL(str(library))
