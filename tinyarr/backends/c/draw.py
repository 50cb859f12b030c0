"""Large random draws of eager mode in C, with NumPy's bits: one library for each expression serves every size. Floor 2.

Values that are the same for all elements come from NumPy. The others are computed in tiles, each after the random words
that it needs: four of them are one block of Philox.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ops.typing import Typed, TypedStep
from ..numpy import expression
from ..numpy.functions import APPROXIMATE
from ..source.scalar_source import TYPES, named, statements
from . import compiler
from .threads import thread_count

if TYPE_CHECKING:
    from ..numpy.expression import Tiles

# Elements from which C serves, and of which each thread gets as many at least. So many take C 0.5 to 1.2 ms on one
# thread (Xeon, AVX-512, gcc 12), NumPy 2.4 to 8.6; the compiler takes 0.2 s, once a machine.
LARGE = 1 << 18
TILE = 1024  # elements; the words of two streams fill 8 KiB of a 32 KiB L1 cache

# Where C and NumPy may differ in the last bit, or in which zero they choose.
_DIFFERENT = APPROXIMATE | {"maximum", "minimum"}


def has_equal_bits(typed: Typed) -> bool:
    """Returns whether an expression draws random bits, and C is certain to compute from them what NumPy does."""
    varying = {v.op for v in typed.values if not v.uniform}
    return "random_bits" in varying and varying.isdisjoint(_DIFFERENT)


def run(program: Tiles, inputs: Sequence[Any], outputs: Sequence[np.ndarray], scratch: Sequence[np.ndarray]) -> None:
    """Evaluates a program in C; in NumPy where operands have gaps or there is no C compiler."""
    arrays = [*[inputs[k] for _, k in program.inputs], *outputs]
    kernel = _kernel(program.typed) if all(x.flags.c_contiguous for x in arrays) else None
    if kernel is None:
        return program.run(inputs, outputs, scratch)
    values, known = program.typed.values, program.known(inputs)
    operands = [np.asarray(known[n], values[n].dtype.numpy) for n in _uniform(program.typed)] + arrays
    pointers = (ctypes.c_void_p * len(operands))(*[x.ctypes.data for x in operands])
    pieces = min(thread_count(), program.size // LARGE)
    bounds = [program.size * i // pieces // TILE * TILE for i in range(pieces)] + [program.size]
    with ThreadPoolExecutor(pieces) as threads:
        list(threads.map(lambda first, last: kernel(pointers, first, last), bounds, bounds[1:]))


@functools.cache
def _kernel(typed: Typed) -> Callable | None:
    """draw(operands, first, last), which evaluates an expression at positions first to last; None without a compiler.

    `operands` points to each value of `_uniform`, each input and each output. `first` is a multiple of TILE.
    """
    try:
        kernel = compiler.load_cached(source(typed), openmp=False).draw
    except compiler.CCompilerError:
        return None
    kernel.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    kernel.restype = None
    return kernel


def _uniform(typed: Typed) -> list[int]:
    """The numbers of the values, the same for all elements and no constants, that others or outputs are made of."""
    used = {a for v in typed.values if not v.uniform for a in v.args} | set(typed.outputs)
    return [n for n in sorted(used) if typed.values[n].uniform and typed.values[n].op != "constant"]


def source(typed: Typed) -> str:
    """The C code of a flat expression."""
    uniform = _uniform(typed)
    inputs = [n for n, v in enumerate(typed.values) if v.op == "input" and not v.uniform]
    drawn = [n for n, v in enumerate(typed.values) if v.op == "random_bits"]
    places = [f"*(const {TYPES[typed.values[n].dtype]} *)operands[{i}]" for i, n in enumerate(uniform)]
    places += [f"x{i}[i]" for i in range(len(inputs))] + [f"words{i}[i - start]" for i in range(len(drawn))]
    given = {n: k for k, n in enumerate([*uniform, *inputs, *drawn])}
    values: list[TypedStep] = []
    numbers: dict[int, int] = {}
    for n, v in enumerate(typed.values):
        if n in given:
            v = replace(v, op="input", args=(), value=given[n])
        elif v.uniform and v.op != "constant":
            continue
        numbers[n] = len(values)
        values.append(replace(v, args=tuple(numbers[a] for a in v.args)))
    outputs = tuple(numbers[n] for n in typed.outputs)
    targets = [f"y{i}[i]" for i in range(len(outputs))]
    hoisted, inside = statements(Typed(tuple(values), outputs, typed.dtypes), places, targets, (), "")
    pointers = [f"const {TYPES[typed.values[n].dtype]} *x{i}" for i, n in enumerate(inputs)]
    pointers += [f"{TYPES[dtype]} *y{i}" for i, dtype in enumerate(typed.dtypes)]
    draws = []
    for i, n in enumerate(drawn):
        key, counter = (named(numbers[a], typed.values[a]) for a in typed.values[n].args)
        draws.append(f"random_words({key}, {counter}, {typed.values[n].value}, start, {TILE}, words{i});")
    return "\n".join(
        [
            '#include "scalar.h"',
            "",
            "void draw(void *const *operands, int64_t first, int64_t last)",
            "{",
            *(f"    {pointer} = operands[{len(uniform) + i}];" for i, pointer in enumerate(pointers)),
            *("    " + line for line in hoisted),
            f"    for (int64_t start = first; start < last; start += {TILE}) {{",
            f"        int64_t stop = last - start < {TILE} ? last : start + {TILE};",
            *(f"        uint32_t words{i}[{TILE}];" for i in range(len(drawn))),
            *("        " + line for line in draws),
            "        /* No iteration reads what another one writes. */",
            "#pragma omp simd",
            "        for (int64_t i = start; i < stop; i++) {",
            *("            " + line for line in inside),
            "        }",
            "    }",
            "}",
            "",
        ]
    )


def of_large_draws(program: Tiles, typed: Typed) -> Callable | None:
    """Returns what evaluates an expression in C, where it draws much; None: NumPy does."""
    if program.size >= LARGE and program.flat and has_equal_bits(typed):
        return functools.partial(run, program)
    return None


expression.faster.append(of_large_draws)
