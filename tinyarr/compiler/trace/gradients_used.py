"""Gradients that a trace finds: of which tensors the function asks for `.grad` before it sets it. Floor 2.

A step that begins with zero_grad() does the same whether there are gradients or not, and so is one program. To tell,
`.grad` of Tensor is another descriptor while any function is traced.
"""

from __future__ import annotations

import threading
from typing import Any

from ...ops.primitive import executor
from ...tensor import Tensor
from ..capture.captured import Capture
from .executor import Trace

_SLOT: Any = vars(Tensor)["grad"]


class GradientsUsed:
    """Watches a trace: a context manager around what the function runs, which may be entered again.

    read: the paths of the tensors whose gradient was asked for while it was that from before. written: of those that
    were given one, or none.
    """

    _lock = threading.Lock()
    _count = 0  # of traces that run

    def __init__(self, trace: Trace, capture: Capture):
        self.read: set[str] = set()
        self.written: set[str] = set()
        self._trace = trace
        self._paths = {id(x): path for path, x in capture.tensors.items()}

    def __enter__(self) -> GradientsUsed:
        self._trace.gradients_used = self
        self._change(1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._trace.gradients_used = None
        self._change(-1)

    @classmethod
    def _change(cls, by: int) -> None:
        with cls._lock:
            GradientsUsed._count += by
            setattr(Tensor, "grad", _Watched() if cls._count else _SLOT)  # noqa: B010

    def asked(self, x: Tensor) -> None:
        path = self._paths.get(id(x))
        if path is not None and path not in self.written:
            self.read.add(path)

    def given(self, x: Tensor) -> None:
        path = self._paths.get(id(x))
        if path is not None:
            self.written.add(path)


def _used() -> GradientsUsed | None:
    return getattr(getattr(executor.get(), "trace", None), "gradients_used", None)


class _Watched:
    """`.grad` as it is, which the trace that runs is told of."""

    def __get__(self, x: Any, kind: type | None = None) -> Any:
        if x is None:
            return self
        used = _used()
        if used is not None:
            used.asked(x)
        return _SLOT.__get__(x, kind)

    def __set__(self, x: Any, gradient: Any) -> None:
        used = _used()
        if used is not None:
            used.given(x)
        _SLOT.__set__(x, gradient)
