"""Attention on CUDA: who computes it. Floor 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..libraries import cudnn
from ..planning.registry import LaunchPlan, Operand, kernel
from . import flash_attention


def _out_layout(call: Any) -> str:
    """cuDNN writes with any strides of heads and rows, our own kernel without."""
    first = len(call.in_shapes) == 6
    return "vectors" if cudnn.takes(call.in_dtypes[first], *call.in_shapes[first : first + 3]) else "dense"


@kernel("scaled_dot_product_attention", layouts="vectors", out_layout=_out_layout)
def attention(inputs, outputs, *, causal, scale):
    return fastest(inputs, outputs, causal, scale)


@kernel(
    "scaled_dot_product_attention_gradient",
    layouts=("vectors", "vectors", "vectors", "vectors", "vectors", "dense"),
    out_layout=_out_layout,
)
def attention_gradient(inputs, outputs, *, causal, scale):
    return fastest(inputs, outputs, causal, scale)


def fastest(inputs: Sequence[Operand], outputs: Sequence[Operand], causal: bool, scale: float) -> LaunchPlan | None:
    """cuDNN for half types where it is installed, else the kernel of our own, else None: the composite serves."""
    for who in (cudnn, flash_attention):
        found = who.plan(inputs, outputs, causal=causal, scale=scale)
        if found is not None:
            return found
    return None
