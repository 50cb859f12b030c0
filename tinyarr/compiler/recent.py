"""The last call of a compiled function, and a quick way to see that the next one is like it.

A whole walk costs milliseconds for a model. What the last one found still holds if each holder still holds the very
same objects, each tensor the same memory, and the arguments are the same objects or tensors of the same kinds.
"""

from __future__ import annotations

from typing import Any

from ..random import default_generator
from ..tensor import Tensor
from .capture import Capture, item_path
from .fingerprint import Fingerprint
from .holders import GONE
from .parts import GRADIENT, GradientKind, TensorKind

ANOTHER = object()  # stands for a tensor that may be another at each call


class Recent:
    """The last call: what it captured, less the tensors among its arguments, and its program.

    It must be made before the program runs, which may change what was captured.
    """

    def __init__(self, capture: Capture, program: Any, mode: tuple, args: tuple, kwargs: dict[str, Any]):
        self.program = program
        self._mode = mode
        self._default = default_generator()
        self._parts = capture.parts
        self._shared = capture.shared
        self._count, self._keywords = len(args), [*kwargs]
        given = {f"arguments[{i}]": x for i, x in enumerate(args)}
        given |= {item_path("keywords", key): x for key, x in kwargs.items()}
        passing = [path for path, x in given.items() if isinstance(x, Tensor) and self._may_be_another(path)]
        self._given = {path: ANOTHER if path in passing else x for path, x in given.items()}
        self._capture = capture.without(passing)
        self._fingerprint = Fingerprint(self._capture)

    def again(self, mode: tuple, args: tuple, kwargs: dict[str, Any]) -> Capture | None:
        """Returns the capture of a call that is like the last one, or None for another."""
        if mode != self._mode or default_generator() is not self._default or not self._capture.is_lasting:
            return None
        if len(args) != self._count or [*kwargs] != self._keywords:
            return None
        others: dict[str, Any] = {}
        for i, x in enumerate(args):
            if not self._is_like(f"arguments[{i}]", x, others):
                return None
        for key, x in kwargs.items():
            if not self._is_like(item_path("keywords", key), x, others):
                return None
        if not self._fingerprint.holds():
            return None
        return self._capture.with_others(others) if others else self._capture

    def _may_be_another(self, path: str) -> bool:
        """Whether another tensor of the same kind may come here: one that shares nothing with what was captured."""
        part, gradient = self._parts.get(path), self._parts.get(path + GRADIENT)
        if type(part) is not TensorKind or type(gradient) is not GradientKind:
            return False
        return path not in self._shared and not (gradient.has_grad or gradient.has_hooks)

    def _is_like(self, path: str, x: Any, others: dict[str, Any]) -> bool:
        """Whether an argument is the same as last time or another of its kind, which then joins the others."""
        before = self._given.get(path, GONE)
        if before is ANOTHER and isinstance(x, Tensor):
            part, a = self._parts[path], x.array
            shares = any(isinstance(y, Tensor) and y.array.storage is a.storage for y in others.values())
            if shares or id(x) in self._capture.paths or id(a.storage) in self._capture.storages:
                return False
            others[path] = x
            is_like = (a.shape, a.dtype, a.device, a.strides) == part[:4]
            return is_like and GradientKind.of(x) == self._parts[path + GRADIENT]
        if path in self._capture.numbers and type(x) is type(before):
            others[path] = x
            return True
        return x is before or (before is not GONE and path not in self._parts)  # which no code reads
