"""Normalization besides LayerNorm: RMSNorm. Floor 5."""

from __future__ import annotations

from ..ops.norm import rms_norm
from ..tensor import Tensor
from . import initial
from .module import Module


class RMSNorm(Module):
    """Root mean square normalization over the last axis (see tinyarr.rms_norm), with a weight of ones."""

    def __init__(self, features: int, *, eps: float | None = None, dtype=None, device=None):
        self.weight = initial.constant((features,), 1.0, dtype=dtype, device=device)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)
