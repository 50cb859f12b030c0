"""Optimizers that step along a running sum of gradients: SGD with momentum, and Lion. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ArgumentError
from ..ops.scalar import Expr, sign
from .optimizer import FRACTION, FRACTIONS, NOT_NEGATIVE, Optimizer
from .optional_state import OptionalState


class SGD(OptionalState):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, section 2, in PyTorch's form).

    With g the gradient plus weight_decay p: velocity = momentum velocity + g; p = p - lr velocity, or with nesterov
    p = p - lr (g + momentum velocity). The velocity is only kept if a group has a momentum when the optimizer is made.
    """

    state_names = ("velocity",)
    needed_by = {"velocity": "momentum"}
    rules = {"momentum": FRACTION, "weight_decay": NOT_NEGATIVE}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        if nesterov and momentum == 0:
            raise ArgumentError("SGD: nesterov=True with momentum 0 does nothing: give a momentum")
        super().__init__(parameters, lr, {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @staticmethod
    def formula(p: Expr, g, velocity, lr, step, momentum, weight_decay, *, nesterov):
        g = change = g + weight_decay * p
        if velocity is not None:
            velocity = momentum * velocity + g
            change = g + momentum * velocity if nesterov else velocity
        return p - lr * change, velocity


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2).

    With g the gradient: p = p (1 - lr weight_decay) - lr sign(beta1 m + (1 - beta1) g); m = beta2 m + (1 - beta2) g.
    All elements move by lr, so it wants a tenth of AdamW's learning rate and ten times its weight decay.
    """

    state_names = ("m",)
    rules = {"betas": FRACTIONS, "weight_decay": NOT_NEGATIVE}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr, {"betas": betas, "weight_decay": weight_decay})

    @staticmethod
    def formula(p: Expr, g, m, lr, step, beta1, beta2, weight_decay):
        direction = sign(beta1 * m + (1 - beta1) * g)
        return p * (1 - lr * weight_decay) - lr * direction, beta2 * m + (1 - beta2) * g
