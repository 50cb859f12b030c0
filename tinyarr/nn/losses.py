"""Losses as modules: `MSELoss()(x, target)`. Floor 5."""

from __future__ import annotations

from ..ops.loss import cross_entropy
from ..ops.more.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from .from_function import from_function

BCELoss = from_function("BCELoss", binary_cross_entropy, operands=2)
BCEWithLogitsLoss = from_function("BCEWithLogitsLoss", binary_cross_entropy_with_logits, operands=2)
CrossEntropyLoss = from_function("CrossEntropyLoss", cross_entropy, operands=2)
HuberLoss = from_function("HuberLoss", huber_loss, operands=2)
L1Loss = from_function("L1Loss", l1_loss, operands=2)
MSELoss = from_function("MSELoss", mse_loss, operands=2)
NLLLoss = from_function("NLLLoss", nll_loss, operands=2)
SmoothL1Loss = from_function("SmoothL1Loss", smooth_l1_loss, operands=2)
