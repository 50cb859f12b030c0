"""Output of a traced function: what it prints, logs and warns of comes again with each call's values. Floor 2."""

from __future__ import annotations

import builtins
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ...ops.create import copy
from ...tape import no_grad
from ...tensor import Tensor
from .executor import Trace
from .symbolic_numbers import SymbolicNumber
from .templates import TemplateObjects, Templates


class TraceOutput:
    """Output of a trace, in order: a context manager around it that holds print, warn and logging back.

    Other threads, which are in no trace or in another, go on putting out what they do.
    """

    def __init__(self, trace: Trace, templates: Templates):
        self._trace = trace
        self._templates = templates
        self._done: list[tuple[Callable, Sequence[Any]]] = []  # functions, and templates of their arguments
        self._replaced: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> TraceOutput:
        self._replace(builtins, "print", self._print)
        self._replace(warnings, "warn", self._warn)
        self._replace(logging.Logger, "handle", self._log)
        return self

    def __exit__(self, *exception: object) -> None:
        for owner, name, function in self._replaced:
            setattr(owner, name, function)

    def repeat(self, filling: TemplateObjects) -> None:
        """Puts out what the trace did, in the same order."""
        for function, template in self._done:
            function(*map(filling.fill, template))

    def _replace(self, owner: Any, name: str, instead: Callable) -> None:
        function = getattr(owner, name)

        def chosen(*args: Any, **kwargs: Any) -> Any:
            return (instead if self._trace.is_running else function)(*args, **kwargs)

        self._replaced.append((owner, name, function))
        setattr(owner, name, chosen)

    def _print(self, *args: Any, file: Any = None, **kwargs: Any) -> None:
        printed = self._replaced[0][2]
        template = [self._templates.template(self._shown(x), "what is printed") for x in args]
        self._done.append((lambda *parts: printed(*parts, file=file, **kwargs), template))

    def _shown(self, x: Any) -> Any:
        """Returns the printed form of an argument: a tensor's elements as they are now, a number as at each call."""
        if isinstance(x, Tensor):
            with no_grad():
                return copy(x)
        return x if isinstance(x, SymbolicNumber) else str(x)

    def _warn(self, message: Any, category: Any = None, stacklevel: int = 1, **_: Any) -> None:
        frame = sys._getframe(1)
        for _level in range(stacklevel):
            frame = frame.f_back or frame
        names, line = frame.f_globals, frame.f_lineno
        registry = names.setdefault("__warningregistry__", {})
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        where = frame.f_code.co_filename, line, names.get("__name__", "sys")
        self._done.append((lambda: warnings.warn_explicit(message, kind, *where, registry), ()))

    def _log(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        handle = self._replaced[2][2]
        self._done.append((lambda: handle(logger, record), ()))

