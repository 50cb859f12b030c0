"""The kernels of a compiled training step on a GPU: what each takes, moves and computes, and how long that must take.

train.py --profile prints the table; NOTES.md says how to read it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

import tinyarr
from tinyarr import Tensor
from tinyarr.backends.cuda.libraries import cublaslt
from tinyarr.backends.cuda.planning.registry import LibraryCall, Operand
from tinyarr.backends.cuda.program.lowering import Launchable

SMALL = 0.005  # of the time of all kernels: what takes less shares a row
NAMED = 2  # operands on each side of a row's text
PRODUCT = 8192  # rows and columns of the matrices whose product gives the rate
IN_A_ROW = 8  # such products
COPY = 2**30  # bytes
WARM = 1.0  # seconds of products before some are timed: a card that was idle is faster
ATTENTION = {  # how many products of T x T x D it makes, and which operand q is, before k
    "scaled_dot_product_attention": (2, 0),
    "scaled_dot_product_attention_gradient": (5, 1),
}


class Rates(NamedTuple):
    """What the card does at most: FLOP a second in large products, bytes a second read and written by a large copy."""

    product: float
    copy: float


class Row(NamedTuple):
    """A step's launches of one kernel on the same shapes. All numbers are their sums.

    floor: seconds that the card needs at least, by its rates, for the bytes that they move or for their operations.
    """

    text: str
    number: int
    seconds: float
    nbytes: int
    flop: int
    floor: float


def moved(task: Launchable) -> int:
    """Bytes of what a task reads and makes, each element once. What stays within the task is not counted."""
    if task.title == "wait":  # for a collective, which is counted where it begins
        return 0
    return sum(map(_nbytes, (*task.reads, *task.makes)))


def _nbytes(operand: Operand) -> int:
    return math.prod(n for n, stride in zip(operand.shape, operand.strides) if stride) * operand.dtype.itemsize


def flop(task: Launchable) -> int:
    """Operations of a task's products by cuBLASLt (2 m n k) and of attention (causal: half of all); else 0."""
    if task.title in ATTENTION:
        return _attention_flop(task)
    products = [s.spec for s in task.plan.steps if isinstance(s, LibraryCall) and isinstance(s.spec, cublaslt.Product)]
    return sum(2 * p.batch * p.m * p.n * p.k for p in products)


def _attention_flop(task: Launchable) -> int:
    products, first = ATTENTION[task.title]
    q, k = task.reads[first : first + 2]
    B, H, T, D = q.shape
    step = task.plan.steps[-1]  # by cuDNN or by the kernel of our own
    causal = step.spec.causal if isinstance(step, LibraryCall) else ("CAUSAL", "1") in step.source.macros
    return products * 2 * B * H * T * k.shape[2] * D // (2 if causal else 1)


def medians(
    kernels: Sequence[Launchable], calls: Sequence[Sequence[float]], steps: int
) -> list[tuple[Launchable, float]]:
    """What a program launches in a step, each with its median time over some steps with as many calls in each.

    calls: the seconds of each kernel in each call, as Program.timed gives them.
    """
    if not calls:
        return []
    seconds = np.median(np.reshape(calls, (steps, -1, len(kernels))), axis=0)
    return [pair for call in seconds.tolist() for pair in zip(kernels, call, strict=True)]


def grouped(launches: Iterable[tuple[Launchable, float]], rates: Rates) -> list[Row]:
    """A row for each kernel and shapes, the longest first."""
    rows: dict[Any, Row] = {}
    for task, seconds in launches:
        key = task.title, tuple((x.dtype, x.shape) for x in (*task.reads, *task.makes))
        nbytes, operations = moved(task), flop(task)
        one = Row(_text(task), 1, seconds, nbytes, operations, max(nbytes / rates.copy, operations / rates.product))
        rows[key] = _joined([rows[key], one], one.text) if key in rows else one
    return sorted(rows.values(), key=lambda row: -row.seconds)


def _joined(rows: Sequence[Row], text: str) -> Row:
    return Row(text, *(sum(column) for column in zip(*(row[1:] for row in rows))))


def _text(task: Launchable) -> str:
    def side(operands: Sequence[Operand], form) -> str:
        return " ".join([*map(form, operands[:NAMED]), *["..."] * (len(operands) > NAMED)])

    def shape(x: Operand) -> str:
        return f"({','.join(map(str, x.shape))})"

    made = side(task.makes, lambda x: x.dtype.name + shape(x))
    return f"{task.title} {side(task.reads, shape)} -> {made}"


def table(rows: Sequence[Row], rates: Rates, dtype: str, replayed: float) -> str:
    """The rows, those that take little time together. replayed: seconds of the step as it runs when nobody looks."""
    whole = _joined(rows, "all")
    large = [row for row in rows if row.seconds >= SMALL * whole.seconds]
    shown = [*large, *([_joined(rows[len(large) :], "others")] if len(large) < len(rows) else []), whole]
    lines = [
        f"A step: {1e3 * replayed:.1f} ms replayed; {1e3 * whole.seconds:.1f} ms in kernels launched one by one.",
        f"Floors: {dtype} products of {PRODUCT} x {PRODUCT} x {PRODUCT} make {rates.product / 1e12:.0f} TFLOP/s, "
        f"copies of {COPY / 2**30:.0f} GiB {rates.copy / 1e12:.2f} TB/s, read and written.",
        "",
        "number       ms  of all      GB   TB/s   TFLOP  TFLOP/s  floor ms  floor/ms",
    ]
    for row in shown:
        computed = f"{row.flop / 1e12:8.2f}{row.flop / row.seconds / 1e12:9.0f}" if row.flop else f"{'':17}"
        lines.append(
            f"{row.number:6}{1e3 * row.seconds:9.2f}{row.seconds / whole.seconds:8.1%}{row.nbytes / 1e9:8.2f}"
            f"{row.nbytes / row.seconds / 1e12:7.2f}{computed}{1e3 * row.floor:10.2f}{row.floor / row.seconds:10.0%}"
            f"  {row.text}")
    return "\n".join(lines)


def measure_rates(dtype: tinyarr.dtypes.Dtype) -> Rates:
    """What the GPU at hand does after a second of work: its clock falls then, as it does while it trains."""
    x, y = (tinyarr.randn(PRODUCT, PRODUCT, dtype=dtype, device="cuda") for _ in range(2))
    y = y / math.sqrt(PRODUCT)  # so products of products stay as large: multiplying zeros takes less power

    def multiply() -> Tensor:
        product = x
        for _ in range(IN_A_ROW):
            product = product @ y
        return product

    products = tinyarr.compile(multiply)
    products()
    end = time.perf_counter() + WARM
    while time.perf_counter() < end:
        products()
        tinyarr.cuda.synchronize()
    [program] = products.programs
    with program.timed() as calls:
        for _ in range(5):
            products()
    seconds = statistics.median(s for call in calls for s in call)
    source, target = (tinyarr.zeros((COPY,), dtype=tinyarr.uint8, device="cuda") for _ in range(2))
    pairs = []
    for _ in range(20):
        start, done = tinyarr.cuda.Event(), tinyarr.cuda.Event()
        start.record()
        target.assign(source)
        done.record()
        pairs.append((start, done))
    copied = statistics.median(start.elapsed_time(done) for start, done in pairs) / 1e3
    return Rates(2 * PRODUCT**3 / seconds, 2 * COPY / copied)
