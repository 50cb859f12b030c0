"""Watches a traced function run: which code runs, and whether it asks what differs from call to call. Floor 2.

A trace is replayed, so it may depend on nothing that Python takes from elsewhere at each call: the time, random numbers
of other libraries, the environment, files. These raise where they are asked for.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import functools
import gc
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FrameType, MethodType, ModuleType
from typing import Any

import numpy as np

from ...errors import TraceError
from ..capture.code_names import Chain, names_of

_CLOCKS = """time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time process_time_ns thread_time
    thread_time_ns localtime gmtime ctime sleep""".split()
_SYSTEM = "environ getenv urandom listdir scandir stat open getpid getcwd getloadavg system popen".split()
_TELLS = "print(), warnings.warn() and logging are repeated at each call"
_ADVICE = {
    "time": "measure outside of it",
    "random": "draw with tinyarr's generators, or pass the number as an argument",
    "os": "read it outside of it, and pass what was read as an argument",
    "sys": f"{_TELLS}, writing to a stream is not",
}
# What takes attributes by names that are in no code.
_READERS = frozenset("""getattr hasattr vars __dict__ dir locals eval exec asdict astuple fields attrgetter copy
    deepcopy __getattribute__ __getstate__ __reduce_ex__ dumps format format_map MATCH_CLASS""".split())
# Whole modules of Python's library whose functions, written in Python, may not run.
_MODULES = {"random": "random", "secrets": "random", "uuid": "random", "tempfile": "os", "subprocess": "os"}


@functools.cache
def _impure() -> dict[Any, str]:
    """The key of each function or object that may not be named where code runs, and the kind of advice."""
    found: dict[Any, str] = {}
    found |= {_key(getattr(time, name)): "time" for name in _CLOCKS}
    found |= {_key(getattr(os, name)): "os" for name in _SYSTEM}
    found |= {_key(f): "os" for f in (builtins.open, builtins.input, np.fromfile)}
    found |= {_key(f): "time" for f in (datetime.datetime.now, datetime.datetime.utcnow, datetime.date.today)}
    found |= {_key(f): "time" for f in (datetime.datetime.today,)}
    for module in (random, secrets, uuid):
        found |= {_key(x): "random" for name, x in vars(module).items() if callable(x) and not name.startswith("_")
                  and not isinstance(x, type)}  # fmt: skip
    found |= {_key(getattr(np.random, name)): "random" for name in np.random.__all__ if name[0].islower()}
    return found


def _key(x: Any) -> Any:
    """Returns the identity of a function: a built-in method is made anew each time that it is asked for."""
    owner = x.__self__ if type(x) in (MethodType, BuiltinFunctionType) else None
    return id(x) if owner is None or isinstance(owner, ModuleType) else (id(owner), x.__name__)


def _impure_in(chain: Chain, x: Any) -> tuple[str, str] | None:
    """Returns what is impure of a variable with the value x and its attributes, and the kind of advice."""
    for i, attribute in enumerate((*chain.attributes, None)):
        kind = _impure().get(_key(x))
        if any(x is stream for stream in (sys.stdout, sys.stderr, sys.stdin) if stream is not None):
            kind = "sys"
        if kind is not None:
            return ".".join((chain.name, *chain.attributes[:i])), kind
        if attribute is None or not isinstance(x, ModuleType | type):
            break
        x = getattr(x, attribute, None)
    return None


def _of_the_collector() -> set[CodeType]:
    """The code that Python's garbage collector calls, whenever it comes."""
    return {f.__code__ for f in gc.callbacks if hasattr(f, "__code__")}


def _is_import(frame: FrameType) -> bool:
    """Returns whether this is the body of a module that is being imported."""
    caller = frame.f_back
    return frame.f_code.co_name == "<module>" and caller is not None and caller.f_globals.get("__name__", "") in (
        "importlib._bootstrap", "importlib._bootstrap_external"
    )  # fmt: skip


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """A block that nobody watches: of tinyarr's own, which runs nothing of the user's."""
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


class Observed:
    """The code that ran under it, by the dict of its globals: a context manager around a trace.

    refused: the error for the first thing that may not be asked for, once something was.
    """

    def __init__(self, package: str):
        self.ran: dict[CodeType, dict[str, Any]] = {}
        self.refused: TraceError | None = None
        self._package = package
        self._suspects: dict[CodeType, dict[int, tuple[str, str] | Chain]] = {}
        self._before: Any = None

    def __enter__(self) -> Observed:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def names(self) -> tuple[frozenset[str], bool]:
        """All names in the code that ran, and whether attributes were taken by those names alone."""
        found: set[str] = set()
        is_plain = True
        for code in self.ran:
            names = names_of(code).all
            found |= names
            module = self.ran[code].get("__name__", "")  # of tinyarr, only modules look at attributes of the user's
            is_plain &= not names & _READERS or (module.startswith("tinyarr.") and not module.startswith("tinyarr.nn."))
        return frozenset(found), is_plain

    def asks_for(self, name: str) -> bool:
        """Returns whether code of the user's, or of a package, names this function of Python's."""
        return any(
            chain.name == name and not chain.attributes and not self._is_library(code)
            for code in self.ran
            for chain in names_of(code).chains
        )

    def code_beyond(self, known: set[CodeType]) -> dict[CodeType, dict[str, Any]]:
        """The code that ran and is none of the known, of libraries or of the garbage collector, with its globals."""
        return {
            code: variables
            for code, variables in self.ran.items()
            if code not in known and not self._is_library(code) and code not in _of_the_collector()
        }

    def _is_library(self, code: CodeType) -> bool:
        name = self.ran[code].get("__name__", "").split(".")[0]
        if name.startswith("namedtuple_"):  # how collections calls the globals of the classes that it makes
            return True
        return name != "__main__" and (name in sys.stdlib_module_names or name in ("tinyarr", "numpy", "ml_dtypes"))

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code not in self.ran:  # once for each, and so the rest of it may be slow
            if not (code.co_filename.startswith(self._package) or self._is_the_functions(frame)):
                return None
            self.ran[code] = frame.f_globals
            suspects = self._find_suspects(frame)
            if suspects:
                self._suspects[code] = suspects
        if code in self._suspects:
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return self._opcode
        return None if self._before is None else self._before(frame, event, argument)

    def _find_suspects(self, frame: FrameType) -> dict[int, tuple[str, str] | Chain]:
        """Returns, by offset in the bytecode, what is impure there, and the kind of advice. Offset -1 is all of it.

        Of a variable that the code imports or has from around it the chain, to be looked at when it is read.
        """
        code, name = frame.f_code, frame.f_globals.get("__name__", "")
        if code.co_filename.startswith(self._package) or code in _of_the_collector():
            return {}
        if name in _MODULES:
            return {-1: (f"{name}.{code.co_name}", _MODULES[name])}
        if name == "pathlib" and code.co_name in ("open", "stat", "exists", "read_text", "read_bytes", "iterdir"):
            return {-1: (f"Path.{code.co_name}", "os")}
        if name.split(".")[0] in sys.stdlib_module_names and name != "__main__":
            return {}
        names = names_of(code)
        found: dict[int, tuple[str, str] | Chain] = {
            chain.end: chain for chain in names.local_chains if names.imports or chain.name in code.co_freevars
        }
        for chain in names.chains:
            impure = _impure_in(chain, frame.f_globals.get(chain.name, getattr(builtins, chain.name, None)))
            if impure is not None:
                found[chain.end] = impure
        return found

    def _is_the_functions(self, frame: FrameType | None) -> bool:
        """Returns whether the function itself runs this code, not tinyarr or an import, which may do as they like."""
        is_users = False
        while frame is not None:
            file, name = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
            if file.startswith(self._package):
                if not is_users or name.startswith("tinyarr.backends."):  # which call no function of the user's
                    return False
            elif _is_import(frame):
                return False
            elif "-packages" not in file:
                is_users |= name == "__main__" or name.split(".")[0] not in sys.stdlib_module_names
            if name == "tinyarr.compiler.trace.traced":
                break
            frame = frame.f_back
        return True

    def _opcode(self, frame: FrameType, event: str, argument: Any) -> Any:
        suspects = self._suspects[frame.f_code]
        what = suspects.get(frame.f_lasti) or suspects.get(-1)
        if isinstance(what, Chain):
            what = _impure_in(what, frame.f_locals.get(what.name))
        if what is not None and self._is_the_functions(frame):
            while frame.f_back is not None and -1 in self._suspects.get(frame.f_code, {}):
                frame = frame.f_back
            self.refused = TraceError(
                f"compile: {frame.f_code.co_filename}:{frame.f_lineno}: {what[0]} was asked for, which later calls of "
                f"the function would not do again: {_ADVICE[what[1]]}"
            )
            raise self.refused
        return self._opcode
