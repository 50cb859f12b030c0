"""Time of scalar expressions in C and in NumPy, on one thread: CPU milliseconds per million float32 elements."""

import ctypes
import time

import numpy as np

from tinyarr.backends.c import compiler, draw
from tinyarr.backends.numpy.expression import _Tiles
from tinyarr.dtypes import float32
from tinyarr.ops.scalar import make, variable
from tinyarr.ops.typing import type_expression

N = 1_000_000
REPEATS = 20


def gelu(x):
    return (0.5 * x * (1 + make("tanh", 0.7978845608028654 * (x + 0.044715 * x**3))),)


def adamw(p, g, m, v):
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * (g * g)
    return p - 1e-3 * (m / (make("sqrt", v) + 1e-8) + 0.1 * p), m, v


EXPRESSIONS = {
    "exp": (lambda x: (make("exp", x),), 1),
    "log": (lambda x: (make("log", x),), 1),
    "tanh": (lambda x: (make("tanh", x),), 1),
    "erf": (lambda x: (make("erf", x),), 1),
    "gelu": (gelu, 1),
    "adamw": (adamw, 4),
}


def fastest(run):
    """CPU milliseconds of the fastest of several runs."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time_ns()
        run()
        times.append(time.process_time_ns() - start)
    return min(times) / 1e6


def measure(name, function, arity):
    """The times of one expression in C and in NumPy."""
    typed = type_expression(name, function(*map(variable, range(arity))), (float32,) * arity, (False,) * arity)
    random = np.random.default_rng(0)
    inputs = [random.uniform(0.01, 3, N).astype(np.float32) for _ in range(arity)]
    outputs = [np.zeros(N, np.float32) for _ in typed.outputs]

    kernel = compiler.load(draw.source(typed)).draw
    pointers = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*[x.ctypes.data for x in (*inputs, *outputs)])

    program = _Tiles(typed, [(N,)] * len(inputs), (N,))
    scratch = [np.zeros(shape, dtype) for shape, dtype in program.scratch()]
    c = fastest(lambda: kernel(pointers, ctypes.c_int64(0), ctypes.c_int64(N)))
    return c, fastest(lambda: program.run(inputs, outputs, scratch))


if __name__ == "__main__":
    print(f"{'':10}{'C':>8}{'NumPy':>8}{'ratio':>8}")
    for name, (function, arity) in EXPRESSIONS.items():
        c, numpy = measure(name, function, arity)
        print(f"{name:10}{c:8.2f}{numpy:8.2f}{numpy / c:8.1f}")
