"""Updates of optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    BITS,
    FLOATS,
    SAMPLES,
    SIDE,
    Case,
    Operand,
    Sample,
    between,
    product_of_largest,
    refused,
)
from tinyarr import Tensor, ones, zeros
from tinyarr.dtypes import (
    FLOAT8,
    bfloat16,
    bool,
    float16,
    float32,
    float64,
)
from tinyarr.errors import ArgumentError
from tinyarr.testing import shapes


def update(optimizer: Callable, *, master: bool) -> Callable:
    """The new parameter and state after one step, from the parameter, its gradient, and the state before."""

    def function(p: Tensor, g: Tensor, *state: Tensor, step: int = 0, **options):
        p = Tensor(p, requires_grad=True)
        p.grad = g
        stepped = optimizer([p], **options)
        kept = stepped.state_dict()
        kept["step"].assign(step)
        views = {name.split(".")[-1]: x for name, x in kept.items() if "." in name}
        for x, value in zip([x for name, x in views.items() if name != "master"], state, strict=True):
            x.assign(value.detach())
        stepped.step()
        return p.detach(), *([views.pop("master")] if master else []), *views.values()

    return function


def adamw(p, g, m, v, step, lr, betas, eps, weight_decay):
    m, v, t = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2, step + 1
    change = lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p - lr * weight_decay * p - change, m, v


def sgd(p, g, velocity, lr, momentum, weight_decay, nesterov):
    g = g + weight_decay * p
    velocity = momentum * velocity + g
    return p - lr * (g + momentum * velocity if nesterov else velocity), velocity


def adam(p, g, m, v, weight_decay, **options):
    return adamw(p, g + weight_decay * p, m, v, weight_decay=0, **options)


def lion(p, g, m, lr, betas, weight_decay):
    direction = np.sign(betas[0] * m + (1 - betas[0]) * g)
    return p - lr * weight_decay * p - lr * direction, betas[1] * m + (1 - betas[1]) * g


def rmsprop(p, g, v, velocity, mean, lr, alpha, eps, weight_decay, momentum, centered):
    g = g + weight_decay * p
    v, mean = alpha * v + (1 - alpha) * g**2, alpha * mean + (1 - alpha) * g
    velocity = momentum * velocity + g / (np.sqrt(v - mean**2 if centered else v) + eps)
    return p - lr * velocity, v, velocity, mean


def adagrad(p, g, total, step, lr, lr_decay, weight_decay, eps):
    g = g + weight_decay * p
    total = total + g**2
    return p - lr / (1 + step * lr_decay) * g / (np.sqrt(total) + eps), total


def with_master(reference: Callable) -> Callable:
    """The new parameter is the new master copy, rounded."""

    def function(*arrays, **options):
        p, *state = reference(*arrays, **options)
        return p, p, *state

    return function


def updates(name: str, optimizer: Callable, reference: Callable, options: st.SearchStrategy, *state: Callable) -> None:
    """The records of an optimizer's update, alone and with a master copy; its state lies in `state`."""

    def case(shape, options, dtype=None) -> Case:
        p, g = Operand(shape), Operand(shape)
        return Case((p, g, *(Operand(shape, values, dtype=dtype) for values in state)), options)

    plain, masters = (st.builds(case, shapes(max_side=SIDE), options, st.just(d)) for d in (None, float32))
    shared: dict[str, Any] = {"refuses": BITS, "scale": product_of_largest}
    SAMPLES[f"{name}_update"] = Sample(
        update(optimizer, master=False), reference, plain, takes=(float32, float64), **shared
    )
    SAMPLES[f"{name}_master_update"] = Sample(
        update(optimizer, master=True),
        with_master(reference),
        masters,
        takes=(float16, bfloat16),
        gives=lambda dtype, **_: (dtype, float32, *[float32] * len(state)),
        **shared,
    )


ADAMW = {"step": 4, "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
updates("adamw", tinyarr.optim.AdamW, adamw, st.just(ADAMW), between(-1, 1), between(0.1, 1))
updates("sgd", tinyarr.optim.SGD, sgd, st.booleans().map(lambda b: SGD | {"nesterov": b}), between(-1, 1))
updates("adam", tinyarr.optim.Adam, adam, st.just(ADAMW), between(-1, 1), between(0.1, 1))
LION = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}
updates("lion", tinyarr.optim.Lion, lion, st.just(LION), between(0.5, 1))
RMSPROP = {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "centered": True}
RMSPROP_STATE = between(0.1, 1), between(-1, 1), between(-0.2, 0.2)  # the square of the mean is less than v
updates("rmsprop", tinyarr.optim.RMSprop, rmsprop, st.just(RMSPROP), *RMSPROP_STATE)
ADAGRAD = {"step": 4, "lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3}
updates("adagrad", tinyarr.optim.Adagrad, adagrad, st.just(ADAGRAD), between(0.1, 1))


def stochastic(optimizer: Callable) -> Callable:
    """The update with the same draws each time."""
    drawn = lambda *args, **options: optimizer(*args, **options, generator=tinyarr.Generator(0))  # noqa: E731
    return update(lambda *args, **options: drawn(*args, stochastic_rounding=True, **options), master=False)


SAMPLES["adamw_stochastic_update"] = Sample(
    stochastic(tinyarr.optim.AdamW),
    adamw,
    SAMPLES["adamw_master_update"].cases,
    takes=(bfloat16,),
    refuses=(),
    gives=lambda dtype, **_: (dtype, float32, float32),
    precision=lambda dtype: dtype,  # up or down: an ulp of the result
    scale=product_of_largest,
)


def scaled(g: Tensor, max_norm: float) -> Tensor:
    p = zeros(g.shape, dtype=g.dtype)
    p.grad = Tensor(g)
    tinyarr.optim.clip_grad_norm([p], max_norm)
    return p.grad


SAMPLES["scaled"] = Sample(
    scaled,
    lambda g, max_norm: g * min(max_norm / (np.linalg.norm(g) + 1e-6), 1),
    st.builds(lambda s, n: Case((Operand(s),), {"max_norm": n}), shapes(max_side=SIDE), st.sampled_from((0.5, 100.0))),
    takes=tuple(d for d in FLOATS if d not in FLOAT8),
    refuses=(),
    roundings=lambda g, **_: g.size + 6,
    errors=(refused(lambda: scaled(ones(2), 0), ArgumentError, "clip_grad_norm", "max_norm is 0", "positive"),),
)
