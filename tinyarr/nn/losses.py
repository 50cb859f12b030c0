"""Losses as modules. Floor 5."""

from __future__ import annotations

from typing import Any

from ..ops.loss import cross_entropy, mse_loss
from ..tensor import Tensor
from .module import Module


class CrossEntropyLoss(Module):
    """tinyarr.cross_entropy with fixed options."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        self.weight = weight
        self.options: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction}
        self.options["label_smoothing"] = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, self.weight, **self.options)


class MSELoss(Module):
    """tinyarr.mse_loss with fixed options."""

    def __init__(self, *, reduction: str = "mean"):
        self.reduction = reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return mse_loss(x, target, reduction=self.reduction)
