"""Optimizers that divide by a root of squared gradients: Adam, RMSprop and Adagrad. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ops.scalar import Expr, maximum, sqrt
from .adamw import AdamW
from .optimizer import FRACTION, FRACTIONS, NOT_NEGATIVE, POSITIVE, Optimizer
from .optional_state import OptionalState


class Adam(Optimizer):
    """Adam, with the weight decay coupled: added to the gradient (Kingma & Ba 2015, algorithm 1, in PyTorch's form).

    It is AdamW of the gradient plus weight_decay p. Without weight decay both are the same.
    """

    state_names = ("m", "v")
    rules = {"betas": FRACTIONS, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr, {"betas": betas, "eps": eps, "weight_decay": weight_decay})

    @staticmethod
    def formula(p: Expr, g, m, v, lr, step, beta1, beta2, eps, weight_decay):
        return AdamW.formula(p, g + weight_decay * p, m, v, lr, step, beta1, beta2, eps, 0)


class RMSprop(OptionalState):
    """Gradients over a running root mean square of them (Tieleman & Hinton 2012, lecture 6.5, in PyTorch's form).

    With g the gradient plus weight_decay p: v = alpha v + (1 - alpha) g^2; change = g / (sqrt(v) + eps). `centered`
    subtracts the square of the gradient's running mean from v (Graves 2013, "Generating sequences with recurrent neural
    networks", eq. 40). velocity = momentum velocity + change; p = p - lr velocity. Velocity and mean are only kept if a
    group has a momentum, or is centered, when the optimizer is made.
    """

    state_names = ("v", "velocity", "mean")
    needed_by = {"velocity": "momentum", "mean": "centered"}
    rules = {"alpha": FRACTION, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE, "momentum": FRACTION}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        options = {
            "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum, "centered": centered
        }  # fmt: skip
        super().__init__(parameters, lr, options)

    @staticmethod
    def formula(p: Expr, g, v, velocity, mean, lr, step, alpha, eps, weight_decay, momentum, *, centered):
        g = g + weight_decay * p
        v = variance = alpha * v + (1 - alpha) * (g * g)
        if mean is not None:
            mean = alpha * mean + (1 - alpha) * g
            variance = maximum(v - mean * mean, 0) if centered else v  # a rounding may take it below 0
        change = g / (sqrt(variance) + eps)
        if velocity is not None:
            velocity = change = momentum * velocity + change
        return p - lr * change, v, velocity, mean


class Adagrad(Optimizer):
    """Gradients over the root of the sum of all their squares (Duchi et al. 2011, section 1.3, in PyTorch's form).

    With g the gradient plus weight_decay p and t the step: sum = sum + g^2;
    p = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(sum) + eps).
    """

    state_names = ("sum",)
    rules = {"lr_decay": NOT_NEGATIVE, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
    ):
        super().__init__(parameters, lr, {"lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps})

    @staticmethod
    def formula(p: Expr, g, total, lr, step, lr_decay, weight_decay, eps):
        g = g + weight_decay * p
        total = total + g * g
        return p - lr / (1 + (step - 1) * lr_decay) * (g / (sqrt(total) + eps)), total
