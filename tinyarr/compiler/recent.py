"""The last call of a compiled function, and a quick way to see that the next one is like it.

A whole walk costs milliseconds for a model. What the last one found still holds if each holder still holds the very
same objects, each tensor the same memory, and the arguments are the same objects or tensors of the same kinds.
"""

from __future__ import annotations

from typing import Any

from ..random import default_generator
from ..tensor import Tensor
from .capture import Capture
from .fingerprint import Fingerprint
from .parts import GRADIENT, GradientKind, TensorKind


class Recent:
    """The last call: its capture and its program."""

    def __init__(
        self, capture: Capture, fingerprint: Fingerprint, program: Any, mode: tuple, args: tuple, kwargs: dict[str, Any]
    ):
        self.program = program
        self._capture = capture
        self._mode = mode
        self._args = args
        self._kwargs = kwargs
        self._default = default_generator()
        self._fingerprint = fingerprint

    def again(self, mode: tuple, args: tuple, kwargs: dict[str, Any]) -> Capture | None:
        """Returns the capture of a call that is like the last one, or None for another."""
        if mode != self._mode or len(args) != len(self._args) or [*kwargs] != [*self._kwargs]:
            return None
        if default_generator() is not self._default or not self._capture.is_lasting:
            return None
        changed: dict[str, Any] = {}
        for i, (x, before) in enumerate(zip(args, self._args, strict=True)):
            if x is not before and not self._is_like(f"arguments[{i}]", x, changed):
                return None
        for key, x in kwargs.items():
            if x is not self._kwargs[key] and not self._is_like(f"keywords[{key!r}]", x, changed):
                return None
        if not self._fingerprint.holds():
            return None
        return self._capture.with_others(changed) if changed else self._capture

    def _is_like(self, path: str, x: Any, changed: dict[str, Any]) -> bool:
        """Whether an argument is another of the same kind, which then joins what has changed."""
        capture = self._capture
        if path not in capture.parts:  # no code reads it
            return True
        if isinstance(x, Tensor):
            part, a = capture.parts[path], x.array
            if type(part) is not TensorKind or x.grad is not None or x._hooks is not None or id(x) in capture.paths:
                return False
            if (a.shape, a.dtype, a.device, a.strides) != part[:4] or path in capture.shared:
                return False
            if id(a.storage) in capture.storages or any(a.storage is y.array.storage for y in changed.values()
                                                        if isinstance(y, Tensor)):  # fmt: skip
                return False
            changed[path] = x
            return GradientKind.of(x) == capture.parts[path + GRADIENT]
        if path in capture.numbers and type(x) is type(capture.numbers[path]):
            changed[path] = x
            return True
        return False

