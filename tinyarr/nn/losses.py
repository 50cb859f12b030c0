"""Losses as modules."""

from __future__ import annotations

from ..ops.loss import cross_entropy, mse_loss
from ..tensor import Tensor
from .module import Module


class CrossEntropyLoss(Module):
    """tinyarr.cross_entropy with fixed options."""

    def __init__(self, *, ignore_index: int = -100, reduction: str = "mean"):
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, ignore_index=self.ignore_index, reduction=self.reduction)


class MSELoss(Module):
    """tinyarr.mse_loss with fixed options."""

    def __init__(self, *, reduction: str = "mean"):
        self.reduction = reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return mse_loss(x, target, reduction=self.reduction)
