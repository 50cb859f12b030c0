"""Cross-entropy. The floor is reading the logits, and for the gradient reading them and writing as much. Floor 3."""

from __future__ import annotations

from typing import Any

import numpy as np

from .... import dtypes
from ....dtypes import Dtype
from ..planning.registry import Input, Launch, LaunchPlan, Output, Report, Source, kernel
from ..planning.types import TYPES, function, packed, wide

# Threads of a row whose loss, gradient, or both are computed, at most: the fastest on an H100 (benchmarks/NOTES.md).
# For both a row is read twice, the second time from the L2 cache if that holds the rows of all blocks at work: with few
# threads a block, there are too many of them.
LOSS_THREADS, GRADIENT_THREADS, BOTH_THREADS = 128, 512, 512
Address = Input | Output


def _launch(
    operation: str, dtype: Dtype, rows: int, classes: int, stride: int, ignore_index: int, aligned: bool, *,
    logits: Address, targets: Address, loss: Address | None = None, lse: Address | None = None,
    out: Address | None = None, g: Address | None = None, first_row: int = 0,
) -> Launch:  # fmt: skip
    pack = packed(dtype)
    threads, most = 32, LOSS_THREADS if out is None else GRADIENT_THREADS if loss is None else BOTH_THREADS
    while threads < most and threads * pack * 4 < classes:
        threads *= 2
    flags = {"LOSS": loss is not None, "GRADIENT": out is not None, "WEIGHTED": g is not None, "ALIGNED": aligned}
    flags["EXACT"] = loss is None and dtype.compute is dtype  # half types round far more than lse does
    macros = (
        ("T", TYPES[dtype]), ("A", wide(dtype)), ("LOG", function("log", dtype)), ("MAX", function("fmax", dtype)),
        ("PACK", str(pack)), ("THREADS", str(threads)), *((name, str(int(flag))) for name, flag in flags.items()),
    )  # fmt: skip
    message = (
        f"{operation}: target {{position}} is {{value}}, there are {classes} classes: "
        f"use 0 to {classes - 1}, or ignore_index ({ignore_index})"
    )
    numbers = [np.int64(n) for n in (classes, stride, ignore_index, first_row)]
    unused = np.uint64(0)
    addresses = [unused if a is None else a for a in (loss, lse, out, g, logits, targets)]
    source = Source(("types.cuh", "report.cuh", "loss.cu"), macros)
    return Launch(source, "cross_entropy", (rows, 1, 1), (threads, 1, 1), (*addresses, *numbers, Report(message)))


@kernel("cross_entropy", layouts="dense")
def cross_entropy(inputs, outputs, *, ignore_index):
    logits, _ = inputs
    rows, classes = logits.shape
    if logits.dtype in dtypes.FLOAT8 or not classes:
        return None
    if not rows:
        return LaunchPlan([])
    at: dict[str, Any] = {"logits": Input(0), "targets": Input(1), "loss": Output(0), "lse": Output(1)}
    return LaunchPlan(
        [_launch("cross_entropy", logits.dtype, rows, classes, classes, ignore_index, logits.aligned, **at)]
    )


@kernel("cross_entropy_gradient", layouts="dense")
def cross_entropy_gradient(inputs, outputs, *, ignore_index):
    _, logits, _, _ = inputs
    rows, classes = logits.shape
    if logits.dtype in dtypes.FLOAT8 or not classes:
        return None
    if not rows:
        return LaunchPlan([])
    at: dict[str, Any] = {"g": Input(0), "logits": Input(1), "targets": Input(2), "lse": Input(3), "out": Output(0)}
    aligned = logits.aligned and outputs[0].aligned
    return LaunchPlan([_launch("cross_entropy", logits.dtype, rows, classes, classes, ignore_index, aligned, **at)])


@kernel("linear_cross_entropy", layouts="dense")
@kernel("linear_cross_entropy_with_gradients", layouts="dense")
def linear_cross_entropy(inputs, outputs, *, classes, ignore_index, first):
    logits, _ = inputs
    *slope, _ = outputs
    rows, stride = logits.shape
    if logits.dtype in dtypes.FLOAT8 or not classes:
        return None
    if not rows:
        return LaunchPlan([])
    loss = Output(len(slope))  # lse, which no one wants, has its place
    at: dict[str, Any] = {"logits": Input(0), "targets": Input(1), "loss": loss, "lse": loss, "first_row": first}
    at["out"] = Output(0) if slope else None
    aligned = all(x.aligned for x in (logits, *slope))
    return LaunchPlan([
        _launch("linear_cross_entropy", logits.dtype, rows, classes, stride, ignore_index, aligned, **at)
    ])  # fmt: skip
