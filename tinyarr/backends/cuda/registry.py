"""The table of CUDA kernels: for each primitive a function that plans its launches, filled by the `@kernel` decorator.

Nothing in tinyarr runs a plan yet: `Device("cuda")` says that there is no CUDA backend.

A plan is data: which functions of which sources run, on which grid, with which arguments. It depends on the operands'
shapes, strides, dtypes and alignment, and on the parameters, never on addresses. So eager mode keeps it and binds new
addresses at each call, and a compiled program will hold the same launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...dtypes import Dtype
from ...views import Shape


class Operand(NamedTuple):
    """What a plan sees of a tensor: strides count elements; aligned: the address is a multiple of 16 bytes.

    A Python scalar among the inputs has shape () and its kind ('bool', 'int', 'float') as dtype.
    """

    shape: Shape
    strides: Shape
    dtype: Dtype | str
    aligned: bool


class Input(NamedTuple):
    """An argument: the address of input `number` (of a Python scalar its value, as int64 or double)."""

    number: int


class Output(NamedTuple):
    """An argument: the address of output `number`."""

    number: int


@dataclass(frozen=True)
class Source:
    """A CUDA source file beside this one (or generated text), with the macros that specialise it."""

    file: str
    macros: tuple[tuple[str, str], ...] = ()
    text: str | None = None


@dataclass(frozen=True)
class Launch:
    """One kernel launch. arguments: Input, Output, or NumPy scalars passed by value."""

    source: Source
    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Any, ...]
    shared_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What runs for one call, in order."""

    steps: Sequence[Launch]


@dataclass(frozen=True)
class Record:
    """plan(inputs, outputs, **params) -> Plan; layouts as in the CPU backend's registry (eager.fit)."""

    plan: Callable[..., Plan]
    layouts: tuple[str, ...] | str | None


KERNELS: dict[str, Record] = {}


def kernel(name: str, *, layouts: tuple[str, ...] | str | None = None) -> Callable[[Callable], Callable]:
    """Decorator: the function plans the primitive `name`.

    It gets the inputs' and outputs' Operands and the call's parameters by keyword. Outputs are row-major.
    """

    def register(function: Callable) -> Callable:
        KERNELS[name] = Record(function, layouts)
        return function

    return register
