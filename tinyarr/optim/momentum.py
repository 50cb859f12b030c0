"""Optimizers that step along a running sum of gradients: SGD with momentum, and Lion. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ArgumentError
from ..ops.scalar import Expr, sign
from .optimizer import FRACTION, FRACTIONS, NOT_NEGATIVE, Optimizer, parameter_groups


class SparingOptimizer(Optimizer):
    """An optimizer that keeps some of its state only where an option of a group asks for it.

    needed_by: by the state's name that of the option, which isn't 0 then.
    """

    needed_by: dict[str, str] = {}

    def __init__(self, parameters: Iterable[Any], lr: float, defaults: dict[str, Any]):
        groups = parameter_groups(parameters, type(self).__name__)
        given = [defaults, *(group for group in groups if isinstance(group, dict))]
        unused = {name for name, option in self.needed_by.items() if not any(g.get(option) for g in given)}
        self.state_names = tuple(name for name in self.state_names if name not in unused)
        super().__init__(groups, lr, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        for name, option in self.needed_by.items():
            if name not in self.state_names and options.get(option):
                raise ArgumentError(f"{type(self).__name__}: {option} is {options[option]}, and the optimizer was made "
                                    f"without it and keeps no {name}: make another")  # fmt: skip


class SGD(SparingOptimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, section 2, in PyTorch's form).

    With g the gradient plus weight_decay p: velocity = momentum velocity + g; p = p - lr velocity, or with nesterov
    p = p - lr (g + momentum velocity). Velocities are kept if a group has a momentum.
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
        g = g + weight_decay * p
        if velocity is None:
            return (p - lr * g,)
        velocity = momentum * velocity + g
        return p - lr * (g + momentum * velocity if nesterov else velocity), velocity


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
