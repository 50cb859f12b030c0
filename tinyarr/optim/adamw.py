"""AdamW, the optimizer that trains language models. Floor 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import ArgumentError
from ..ops.scalar import Expr, sqrt
from ..random import Generator
from .optimizer import FRACTIONS, NOT_NEGATIVE, POSITIVE, Optimizer, update_primitive


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2; Kingma & Ba 2015, algorithm 1).

    With g the gradient and t the step: m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    p = p (1 - lr weight_decay) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps). The step counts for every
    parameter, also for one that had no gradient in it.

    With `stochastic_rounding` bfloat16 parameters have no float32 copies, 4 bytes each: an update is rounded up or down
    with the probability of the distance (Gupta et al. 2015, "Deep learning with limited numerical precision", section
    3), by draws of `generator`, or the default one.
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
        weight_decay: float = 1e-2,
        stochastic_rounding: bool = False,
        generator: Generator | None = None,
    ):
        self.masters, self.generator = not stochastic_rounding, generator
        super().__init__(parameters, lr, {"betas": betas, "eps": eps, "weight_decay": weight_decay})
        halves = {p.dtype.name for p in self.parameters if p.dtype.compute is not p.dtype} - {"bfloat16"}
        if stochastic_rounding and halves:
            raise ArgumentError(f"AdamW: stochastic_rounding is True, a parameter is {halves.pop()}: use bfloat16")

    @staticmethod
    def formula(p: Expr, g, m, v, lr, step, beta1, beta2, eps, weight_decay):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g)
        # Everything in brackets depends on 0-d operands alone and is computed once.
        denominator = sqrt(v) / (sqrt(1 - beta2**step)) + eps
        p = p * (1 - lr * weight_decay) - (lr / (1 - beta1**step)) * (m / denominator)
        return p, m, v


update_primitive(AdamW, AdamW.state_names, False, ("key", "counter"))  # so that the registry lists it
