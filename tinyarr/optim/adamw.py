"""AdamW, the optimizer that trains language models, with stochastic rounding for bfloat16. Floor 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import dtypes
from ..errors import ArgumentError
from ..ops.elementwise_primitive import elementwise
from ..ops.scalar import Expr, bitcast, cast, random_bits, sqrt, weak, where
from ..random import Generator, default_generator
from ..tensor import Tensor
from .optimizer import FRACTIONS, NOT_NEGATIVE, POSITIVE, Optimizer, write


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
    elementwise = True
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
        self.masters, self._generator = not stochastic_rounding, generator
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

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        options: dict[str, Any],
        *,
        where: Tensor | None = None,
    ) -> None:
        if "master" in state or parameter.dtype.compute is parameter.dtype:
            super().update(parameter, gradient, state, options, where=where)
        else:
            drawn = (self._generator or default_generator()).take()
            operands = (gradient, *state.values(), *drawn, *self._scalars(options))
            write(_adamw_stochastic_update, parameter, *operands, where=where, out=(parameter, *state.values()))


def _rounded_stochastically(x: Expr, key, counter) -> Expr:
    """x as bfloat16, up or down with the probability of the distance: its expectation is x.

    Random bits are added where bfloat16 has none, and what is then there is cut off.
    """
    bits = bitcast(x, dtypes.uint32) + (random_bits(key, counter) >> 16)
    return where(x == x, cast(bitcast(bits & 0xFFFF0000, dtypes.float32), dtypes.bfloat16), cast(x, dtypes.bfloat16))


@elementwise(outputs=("p_out", "m_out", "v_out"))
def _adamw_stochastic_update(p, g, m, v, key, counter, lr, step, lr_scale, beta1, beta2, eps, weight_decay):
    wide, lr, step = cast(p, dtypes.float32), weak(lr) * lr_scale, weak(step)
    wide, m, v = AdamW.formula(wide, g, m, v, lr, step, beta1, beta2, eps, weight_decay)
    return _rounded_stochastically(wide, key, counter), m, v


_adamw_stochastic_update.no_gradient()
