"""Cross-entropy, and with the linear layer before it, whose logits are held for a chunk of rows at a time.

The floor is reading the logits, and for the gradient reading them and writing as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import dtypes
from ...dtypes import Dtype
from . import cublaslt, elementwise, reduce
from .matmul import product
from .registry import Input, Launch, LibraryCall, Operand, Output, Plan, Report, Scratch, Source, kernel
from .types import TYPES, function, packed, wide

# Threads of a row whose loss, gradient, or both are computed, at most: the fastest on an H100 (benchmarks/NOTES.md).
# For both a row is read twice, the second time from the L2 cache if that holds the rows of all blocks at work: with few
# threads a block, there are too many of them.
LOSS_THREADS, GRADIENT_THREADS, BOTH_THREADS = 128, 512, 512
LOGITS = 2**29  # elements of a chunk of logits, at most
Address = Input | Output | Scratch


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
        return Plan([])
    at: dict[str, Any] = {"logits": Input(0), "targets": Input(1), "loss": Output(0), "lse": Output(1)}
    return Plan([_launch("cross_entropy", logits.dtype, rows, classes, classes, ignore_index, logits.aligned, **at)])


@kernel("cross_entropy_gradient", layouts="dense")
def cross_entropy_gradient(inputs, outputs, *, ignore_index):
    _, logits, _, _ = inputs
    rows, classes = logits.shape
    if logits.dtype in dtypes.FLOAT8 or not classes:
        return None
    if not rows:
        return Plan([])
    at: dict[str, Any] = {"g": Input(0), "logits": Input(1), "targets": Input(2), "lse": Input(3), "out": Output(0)}
    aligned = logits.aligned and outputs[0].aligned
    return Plan([_launch("cross_entropy", logits.dtype, rows, classes, classes, ignore_index, aligned, **at)])


@kernel("linear_cross_entropy", layouts="dense")
def linear_cross_entropy(inputs, outputs, *, ignore_index):
    return _linear(inputs, outputs, ignore_index)


@kernel("linear_cross_entropy_with_gradients", layouts="dense")
def linear_cross_entropy_with_gradients(inputs, outputs, *, ignore_index):
    return _linear(inputs, outputs, ignore_index)


def _linear(inputs, outputs, ignore_index: int) -> Plan | None:
    """For each chunk of rows: logits = x W^T; losses, and P = softmax - onehot in their place; dx = P W; dW += P^T x.

    Classes are padded to a multiple of 8, in W by rows of zeros: products of odd sizes are several times slower.
    """
    x, weight, _ = inputs
    (rows, channels), classes = x.shape, weight.shape[0]
    if x.dtype in dtypes.FLOAT8 or not classes:
        return None
    gradients = len(outputs) == 3
    if not rows or not channels:
        return None
    kept, padded = x.dtype.compute, -(-classes // 8) * 8
    chunks = -(-rows * padded // LOGITS)
    chunk = min(-(-rows // (chunks * 128)) * 128, rows)
    workspace, logits_at, losses, total, weight_at = Scratch(0), Scratch(1), Scratch(2), Scratch(3), Scratch(4)
    scratch = [cublaslt.WORKSPACE, chunk * padded * x.dtype.itemsize, rows * kept.itemsize]
    scratch += [padded * channels * kept.itemsize if gradients else 0]
    scratch += [padded * channels * x.dtype.itemsize if padded > classes else 0]
    steps: list[Launch | LibraryCall] = []
    whole = Operand((padded, channels), (channels, 1), x.dtype, weight.aligned)
    at_weight: Address = Input(1)
    if padded > classes:
        at_weight, rest = weight_at, classes * channels
        whole = whole._replace(aligned=True)
        beyond = Operand((padded - classes, channels), (channels, 1), x.dtype, rest * x.dtype.itemsize % 16 == 0)
        steps += elementwise.copy((weight, Input(1)), (Operand(weight.shape, (channels, 1), x.dtype), weight_at))
        steps += elementwise.fill(0, (beyond, Scratch(4, rest * x.dtype.itemsize)))
    turned = Operand((channels, padded), (1, channels), x.dtype, whole.aligned)
    for first in range(0, rows, chunk):
        n = min(chunk, rows - first)
        at = first * channels * x.dtype.itemsize
        aligned = x.aligned and at % 16 == 0
        part = Operand((n, channels), (channels, 1), x.dtype, aligned)
        logits = Operand((n, padded), (padded, 1), x.dtype)
        steps.append(product(part, Input(0, at), turned, at_weight, logits, logits_at, workspace=workspace))
        one: dict[str, Any] = {"loss": Scratch(2, first * kept.itemsize), "lse": Scratch(2, first * kept.itemsize)}
        steps.append(
            _launch(
                "linear_cross_entropy", x.dtype, n, classes, padded, ignore_index, True, logits=logits_at,
                targets=Input(2, first * 8), out=logits_at if gradients else None, first_row=first, **one,
            )
        )  # fmt: skip
        if gradients:
            dx = Operand((n, channels), (channels, 1), x.dtype, aligned)
            steps.append(product(logits, logits_at, whole, at_weight, dx, Output(1, at), workspace=workspace))
            flipped = Operand((padded, n), (1, padded), x.dtype)
            sums = Operand((padded, channels), (channels, 1), kept)
            steps.append(
                product(flipped, logits_at, part, Input(0, at), sums, total, workspace=workspace, accumulate=first > 0)
            )
    more, blocks = reduce.rows("sum", losses, Output(0), 1, rows, kept, kept, True, scratch=len(scratch))
    steps += more
    if gradients:
        steps += elementwise.cast((Operand(weight.shape, (channels, 1), kept), total), (outputs[2], Output(2)))
    return Plan(steps, (*scratch, *blocks))
