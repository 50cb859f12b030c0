"""From CUDA source text to machine code, through NVRTC: without a GPU, and kept in the cache. Floor 3."""

from __future__ import annotations

import functools
from pathlib import Path

from .... import cache
from ....errors import TinyarrError
from .registry import Source

HERE = Path(__file__).parents[1] / "kernels"
# No contraction to fused multiply-adds but where a source says fmaf. Subnormal numbers are kept, division and square
# root are exact: the compiler's defaults.
FLAGS = ("--std=c++17", "-fmad=false", "--disable-warnings")


class NvrtcError(TinyarrError, RuntimeError):
    """NVRTC rejected a source."""


@functools.cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def text_of(source: Source) -> str:
    """The whole text of a source: headers, macros, generated code, kernels."""
    headers = [_file(name) for name in source.files if not name.endswith(".cu")]
    macros = [f"#define {name} {value}" for name, value in source.macros]
    kernels = [_file(name) for name in source.files if name.endswith(".cu")]
    return "\n".join(filter(None, [*headers, *macros, source.text, *kernels, source.kernels]))


def compile_source(source: Source, arch: str) -> bytes:
    """The machine code (cubin) of a source for an architecture like 'sm_90'. Raises CompilerError."""
    from cupy.cuda import nvrtc

    text = text_of(source)
    name = cache.name_of("cubin", text, FLAGS, arch, nvrtc.getVersion())
    code = cache.read(name)
    if code is None:
        code = _compile(text, arch)
        cache.write(name, code)
    return code


def _compile(text: str, arch: str) -> bytes:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, "tinyarr.cu", [], [])
    try:
        nvrtc.compileProgram(program, (f"-arch={arch}", *FLAGS))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        log = nvrtc.getProgramLog(program)
        raise NvrtcError(f"CUDA compiler: {arch} rejected the source:\n{log}\n{text}") from None
    finally:
        nvrtc.destroyProgram(program)
