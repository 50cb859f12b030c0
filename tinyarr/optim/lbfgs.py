"""L-BFGS: a quasi-Newton method for small problems without noise, which asks for loss and gradient again. Floor 5."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import eager
from ..dtypes import float32, float64
from ..errors import ArgumentError, TraceError
from ..ops.create import copy, full, zeros_like
from ..ops.elementwise import abs
from ..ops.primitive import executor
from ..ops.reduce import max, sum
from ..segments import join
from ..tape import enable_grad, no_grad
from ..tensor import Tensor
from .line_search import Trial, strong_wolfe
from .optimizer import COUNT, NOT_NEGATIVE, Optimizer, load_tensors

LEAST_CURVATURE = 1e-10  # of a pair that is kept, as in PyTorch: less would not keep the estimate positive


class LBFGS(Optimizer):
    """Limited-memory BFGS (Liu & Nocedal 1989, algorithm 2.1, in PyTorch's form).

    `step(closure)` makes at most `max_iter` iterations. Each goes along the negative gradient times an estimate of the
    inverse Hessian, from the last `history_size` changes of parameters and gradient (the two-loop recursion). With
    line_search_fn="strong_wolfe" it goes as far as those conditions want; else `lr` times that direction. It ends where
    no element of the gradient is above `tolerance_grad`, no parameter or loss changes by more than `tolerance_change`,
    or after `max_eval` evaluations (None: 5 / 4 max_iter). All parameters are float32, or all float64, in one group.

    >>> import tinyarr
    >>> x = tinyarr.Tensor([-1.0, 2.0], requires_grad=True, dtype="float64")
    >>> optimizer = tinyarr.optim.LBFGS([x], line_search_fn="strong_wolfe")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(3):
    ...     _ = optimizer.step(closure)
    >>> [round(value, 3) for value in x.tolist()]
    [1.0, 1.0]
    """

    segment_bytes = 2**63  # all parameters in one segment
    rules = {
        "max_iter": COUNT, "max_eval": COUNT, "tolerance_grad": NOT_NEGATIVE, "tolerance_change": NOT_NEGATIVE,
        "history_size": COUNT,
    }  # fmt: skip

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1.0,
        *,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ):
        if line_search_fn not in (None, "strong_wolfe"):
            raise ArgumentError(f"LBFGS: line_search_fn is {line_search_fn!r}: it must be 'strong_wolfe' or None")
        most = max_iter * 5 // 4 if max_eval is None else max_eval
        options = {
            "max_iter": max_iter, "max_eval": most, "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change, "history_size": history_size,
        }  # fmt: skip
        super().__init__(parameters, lr, options)
        self._flat = self._packed[0].segment.flat
        if len(self._packed) > 1 or self._flat.dtype not in (float32, float64):
            found = sorted({p.dtype.name for p in self.parameters})
            raise ArgumentError(f"LBFGS: parameters are in {len(self._packed)} groups, {found}: give one, of float32")
        self._searches = line_search_fn is not None
        self._direction, self._gradient = zeros_like(self._flat), zeros_like(self._flat)
        self._length = 0.0  # of the last step along the direction
        self._pairs: list[tuple[Tensor, Tensor]] = []  # the last changes of the parameters and of the gradient

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Minimizes what `closure` computes, which clears the gradients, calls backward and returns the loss.

        The closure may be compiled; the step can't be, since it asks for values: it raises TraceError there. Raises
        TypeError where the closure returns no tensor. Returns the first loss.
        """
        if not callable(closure):
            raise TypeError(f"LBFGS: closure is {type(closure).__name__}: give a function that returns the loss")
        if executor.get() is not eager:
            raise TraceError("LBFGS: step() asks for values, which a trace has none of: compile the closure")
        if any(p.array.storage is not self._flat.array.storage for p in self.parameters):
            raise ArgumentError("LBFGS: a parameter was moved by another optimizer: make this one last")
        options = self._packed[0].options
        first, gradient = self._evaluate(closure)
        loss, evaluations = first.item(), 1
        with no_grad():
            for iteration in range(1, options["max_iter"] + 1):
                if _largest(gradient) <= options["tolerance_grad"]:
                    break
                self._turn(gradient, options["history_size"])
                slope, before = _dot(gradient, self._direction).item(), loss
                if slope > -options["tolerance_change"]:
                    break
                if self._searches:
                    loss, gradient, count = self._search(closure, Trial(0.0, loss, slope, gradient))
                    evaluations += count
                else:
                    self._flat.assign(self._flat + self._length * self._direction)
                    if iteration < options["max_iter"]:
                        result, gradient = self._evaluate(closure)
                        loss, evaluations = result.item(), evaluations + 1
                least = options["tolerance_change"]
                if self._length * _largest(self._direction) <= least or builtins.abs(loss - before) < least:
                    break
                if evaluations >= options["max_eval"]:
                    break
        return first

    def _evaluate(self, closure: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient as a flat tensor of its own."""
        with enable_grad():
            loss = closure()
        if not isinstance(loss, Tensor):
            raise TypeError(f"LBFGS: closure returned {type(loss).__name__}: it must return the loss")
        segment = self._packed[0].segment
        with no_grad():
            gradients = [zeros_like(p) if p.grad is None else p.grad for p in self._packed[0].parameters]
            return loss, copy(join(gradients, segment.offsets, self._flat.size))

    def _turn(self, gradient: Tensor, history_size: int) -> None:
        """Sets the direction at a new gradient, by the two-loop recursion, and the length to try first."""
        self._step.assign(self._step + 1)
        moved, turned = self._length * self._direction, gradient - self._gradient
        self._length = self.lr.item() * self._packed[0].options["lr_scale"]
        if self._step.item() == 1:
            self._length *= min(1.0, 1 / sum(abs(gradient)).item())
        elif _dot(turned, moved).item() > LEAST_CURVATURE:
            self._pairs = [*self._pairs, (moved, turned)][-history_size:]
        direction, shares = -gradient, []
        for s, y in reversed(self._pairs):
            shares.append(_dot(s, direction) / _dot(y, s))
            direction = direction - shares[-1] * y
        if self._pairs:
            s, y = self._pairs[-1]
            direction = direction * (_dot(y, s) / _dot(y, y))
        for s, y in self._pairs:
            direction = direction + (shares.pop() - _dot(y, direction) / _dot(y, s)) * s
        self._direction, self._gradient = direction, gradient

    def _search(self, closure: Callable[[], Tensor], start: Trial) -> tuple[float, Tensor, int]:
        """Goes along the direction as far as the strong Wolfe conditions want.

        Returns loss and gradient there, and the number of evaluations.
        """
        origin, direction = copy(self._flat), self._direction

        def evaluate(step: float) -> Trial:
            self._flat.assign(origin + step * direction)
            loss, gradient = self._evaluate(closure)
            return Trial(step, loss.item(), _dot(gradient, direction).item(), gradient)

        smallest = self._packed[0].options["tolerance_change"]
        found, count = strong_wolfe(evaluate, start, self._length, _largest(direction), smallest)
        self._length = found.step
        self._flat.assign(origin + found.step * direction)
        return found.loss, found.gradient, count

    def state_dict(self) -> dict[str, Tensor]:
        """Name to tensor: lr, step (of iterations), the last direction, its length and gradient, and the changes."""
        state = super().state_dict() | {"direction": self._direction, "gradient": self._gradient}
        state["length"] = full((), self._length, dtype=float64, device=self._flat.device)
        for i, pair in enumerate(self._pairs):
            state |= {f"{i}.{name}": x for name, x in zip(("moved", "turned"), pair, strict=True)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        count = builtins.sum(str(name).endswith(".moved") for name in state)
        pairs = [(f"{i}.moved", f"{i}.turned") for i in range(count)]
        new = {name: zeros_like(self._flat) for name in itertools.chain(("direction", "gradient"), *pairs)}
        new["length"] = full((), 0, dtype=float64, device=self._flat.device)
        load_tensors(super().state_dict() | new, state)  # a state that is refused leaves the history as it was
        self._direction, self._gradient, self._length = new["direction"], new["gradient"], new["length"].item()
        self._pairs = [(new[moved], new[turned]) for moved, turned in pairs]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return sum(x * y)


def _largest(x: Tensor) -> float:
    return max(abs(x)).item()
