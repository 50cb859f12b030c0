"""Cumulative sums and products. Half types accumulate in float32. Floor 3."""

from __future__ import annotations

import numpy as np

from .... import views
from ..planning.registry import Input, Launch, LaunchPlan, Output, Source, kernel
from ..planning.types import TYPES, files, wide


def _scan(name: str, start: str, combine: str):
    @kernel(name, layouts="dense")
    def plan(inputs, outputs, *, axis):
        (x,) = inputs
        if 0 in x.shape:
            return LaunchPlan([])
        length, columns = x.shape[axis], views.size(x.shape[axis + 1 :])
        threads = 32 if length <= 32 else 256
        macros = (
            ("T", TYPES[x.dtype]), ("A", wide(x.dtype)), ("START", start), ("COMBINE(a, b)", combine),
            ("THREADS", str(threads)),
        )  # fmt: skip
        lines = views.size(x.shape) // length
        arguments = (Output(0), Input(0), np.int64(length), np.int64(columns))
        launch = Launch(Source((*files(x.dtype), "scan.cu"), macros), "scan", (lines, 1, 1), (threads, 1, 1), arguments)
        return LaunchPlan([launch])

    return plan


_scan("cumulative_sum", "0", "((A)((a) + (b)))")
_scan("cumulative_prod", "1", "((A)((a) * (b)))")
