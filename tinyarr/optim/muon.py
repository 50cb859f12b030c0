"""Muon: momentum whose direction is orthogonalized, for the matrices inside a network. Floor 5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from .. import views
from ..errors import ArgumentError
from ..ops.elementwise import astype, equal, maximum, sqrt, square
from ..ops.elementwise import where as choose
from ..ops.matmul import matmul
from ..ops.reduce import sum
from ..ops.shape import matrix_transpose, stack
from ..tensor import Tensor, result_tensor
from .optimizer import COUNT, FRACTION, NOT_NEGATIVE, Optimizer, parameter_groups

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan's: their polynomial is steepest at 0, and ends in [0.7, 1.2]


class Muon(Optimizer):
    """Momentum, orthogonalized by Newton-Schulz iterations: for matrices, not for embeddings, heads, norms and biases.

    With g the gradient: velocity = momentum velocity + (1 - momentum) g; direction = orthogonalized(velocity), or with
    nesterov that of momentum velocity + (1 - momentum) g; p = p (1 - lr weight_decay) - lr scale direction. The scale
    of a matrix (n, m) is sqrt(max(1, n / m)), or if `match_adamw` 0.2 sqrt(max(n, m)): then learning rate and weight
    decay of AdamW fit (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).

    Matrices of one shape are orthogonalized together, in the parameters' dtype. Raises ArgumentError for a parameter
    that is no matrix: give those to AdamW.
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", in PyTorch's form.
    """

    state_names = ("velocity",)
    rules = {"momentum": FRACTION, "weight_decay": NOT_NEGATIVE, "steps": COUNT}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        match_adamw: bool = False,
        steps: int = 5,
    ):
        groups = parameter_groups(parameters, "Muon")
        for group in groups:
            if isinstance(group, dict) and isinstance(group.get("parameters"), Iterable):
                # One shape after the other, so that those of one shape come to lie side by side.
                group["parameters"] = sorted(group["parameters"], key=lambda p: getattr(p, "shape", ()))
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "match_adamw": match_adamw}
        super().__init__(groups, lr, {**options, "steps": steps})
        for p in self.parameters:
            if p.ndim != 2:
                raise ArgumentError(f"Muon: a parameter has shape {p.shape}: it must be a matrix: give it to AdamW")

    def _together(self, packed: Any) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        found: dict[Any, list[tuple[Tensor, Tensor, dict[str, Tensor]]]] = {}
        for p, g, state in packed.updates(False):
            found.setdefault((p.shape, g.dtype), []).append((p, g, state))
        for alike in found.values():
            parameters, gradients, states = zip(*alike, strict=True)
            matrices = _stacked(parameters)
            if matrices is None:
                yield from alike
            else:
                state = {kind: _stacked([s[kind] for s in states]) for kind in states[0]}
                yield matrices, stack(gradients), state

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], options: dict[str, Any], *,
        where: Tensor | None = None,
    ) -> None:  # fmt: skip
        before, momentum, (n, m) = state["velocity"], options["momentum"], parameter.shape[-2:]
        g = (1 - momentum) * astype(gradient, before.dtype, copy=False)
        velocity = momentum * before + g
        direction = momentum * velocity + g if options["nesterov"] else velocity
        direction = orthogonalized(astype(direction, parameter.dtype, copy=False), options["steps"])
        scale = 0.2 * max(n, m) ** 0.5 if options["match_adamw"] else max(1.0, n / m) ** 0.5
        lr = astype(self.lr * options["lr_scale"], before.dtype)
        now, master = parameter, state.get("master")
        if master is not None:  # but where the parameter was written since
            now = choose(equal(astype(master, parameter.dtype), parameter), master, parameter)
        now = now * (1 - lr * options["weight_decay"]) - lr * scale * direction
        for written, value in ((parameter, now), (master, now), (before, velocity)):
            if written is not None:
                written.assign(value if where is None else choose(where, value, written))


def _stacked(matrices: Iterable[Tensor]) -> Tensor | None:
    """Matrices that lie in one memory at equal distances as one tensor over it; None where they don't."""
    arrays = [x.array for x in matrices]
    first, steps = arrays[0], {b.offset - a.offset for a, b in pairwise(arrays)}
    if len(steps) != 1 or len({(a.storage, a.strides) for a in arrays}) > 1:
        return None
    view = views.View((len(arrays), *first.shape), (*steps, *first.strides), first.offset)
    return result_tensor(first.through(view))


def orthogonalized(x: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of x = U S V^T, a matrix or several (..., n, m): all singular values move into about [0.7, 1.2].

    Each step is an odd polynomial of the singular values, computed by products alone (Bernstein & Newhouse 2024, "Old
    optimizer, new norm: an anthology", section 2).
    """
    a, b, c = COEFFICIENTS
    norm = sqrt(sum(square(x), axis=(-2, -1), keepdims=True))
    x = x / maximum(norm, 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = matrix_transpose(x) if tall else x
    for _ in range(steps):
        gram = matmul(x, matrix_transpose(x))
        x = a * x + matmul(b * gram + c * matmul(gram, gram), x)
    return matrix_transpose(x) if tall else x
