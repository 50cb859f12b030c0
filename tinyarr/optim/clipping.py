"""The joint norm of all gradients, and clipping by it. Floor 1."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ArgumentError
from ..ops.elementwise import astype, minimum, sqrt, square
from ..ops.elementwise_primitive import elementwise
from ..ops.primitive import apply
from ..ops.reduce import sum
from ..ops.scalar import cast, where
from ..ops.shape import stack
from ..segments import gradient, gradients_in_place, runs
from ..tape import no_grad
from ..tensor import Tensor
from .optimizer import require_parameters


@elementwise
def _scaled(g, scale, *, dtype):
    # With the whole scale: a half type would round it. A zero stays one: between parameters nothing takes a NaN away.
    return cast(where(g == 0, g, g * scale), dtype)


_scaled.no_gradient()


def grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The joint Euclidean norm of all gradients: a 0-d tensor, float32, or float64 for float64 gradients.

    Nothing is read back to Python. Raises ArgumentError where no parameter has a gradient.
    """
    require_parameters("grad_norm", parameters)
    together = runs(parameters)
    if not together:
        raise ArgumentError("grad_norm: no parameter has a gradient: call backward() first")
    with no_grad():
        gradients = [gradient(run) for run in together]
        return sqrt(sum(stack([sum(square(astype(g, g.dtype.compute, copy=False))) for g in gradients])))


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, *, norm: Tensor | None = None) -> Tensor:
    """Scales all gradients so that their joint Euclidean norm is at most `max_norm`; returns the norm before.

    norm: what grad_norm gives, where it is known. Nothing is read back to Python.
    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """
    if not max_norm > 0:
        raise ArgumentError(f"clip_grad_norm: max_norm is {max_norm}: it must be positive")
    require_parameters("clip_grad_norm", parameters)
    parameters = list(parameters)
    with no_grad():
        memory = [g for run in runs(parameters) for g in gradients_in_place(run)]
        norm = grad_norm(parameters) if norm is None else norm
        scale = minimum(max_norm / (norm + 1e-6), 1.0)
        for g in memory:
            apply(_scaled, g, scale, dtype=g.dtype, out=g)
    return norm
