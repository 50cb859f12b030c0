"""The table of CUDA kernels: what plans the launches of each primitive, filled by `@kernel`. Floor 3.

A plan is data: which functions of which sources run, on which grid, with which arguments, and which library calls. It
depends on the operands' shapes, strides, dtypes and alignment, and on the parameters, never on addresses nor on a
device. So eager mode keeps it and binds new addresses at each call, a compiled program holds the same launches, and
every kernel can be planned and compiled without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ....dtypes import Dtype
from ....groups import Group
from ....ops.primitive import Primitive, defined
from ....views import Shape


class Operand(NamedTuple):
    """Tensor as a plan sees it: strides count elements; aligned: the address is a multiple of 16 bytes.

    dtype is a Dtype, or the kind ('bool', 'signed', 'float') of a Python scalar, which has shape ().
    """

    shape: Shape
    strides: Shape
    dtype: Any
    aligned: bool = True


class Input(NamedTuple):
    """An argument: the address of input `number` plus `offset` bytes; of a Python scalar its value, int64 or double."""

    number: int
    offset: int = 0


class Output(NamedTuple):
    """An argument: the address of output `number` plus `offset` bytes."""

    number: int
    offset: int = 0


class Scratch(NamedTuple):
    """An argument: the address of the plan's scratch block `number` plus `offset` bytes."""

    number: int
    offset: int = 0


class Struct(tuple[Any, ...]):
    """An argument: a struct passed by value, whose members are arguments of 8 bytes each."""


class Report(NamedTuple):
    """An argument: the address at which a kernel leaves what it found wrong (report.cuh).

    message: what to raise then, with {value} and {position}, the indices of the element in a tensor of `shape`.
    """

    message: str = "a kernel met a value outside its range ({value}, at {position})"
    shape: Shape = ()


@dataclass(frozen=True)
class Source:
    """CUDA source files beside this one, pasted together: headers, the macros that specialise the rest, .cu files.

    `text`, generated code, comes before the .cu files, which may use it; `kernels` behind them.
    """

    files: tuple[str, ...] = ()
    macros: tuple[tuple[str, str], ...] = ()
    text: str = ""
    kernels: str = ""


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    arguments: Input, Output, Scratch, Report, Struct, or, passed by value, NumPy scalars, and arrays as structs.
    slots: the macros that give the types of some arguments, and their numbers. Such an argument is a pointer, in place
    of which an expression may come (prologues.py).
    """

    source: Source
    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Any, ...]
    shared_bytes: int = 0
    slots: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class LibraryCall:
    """One call into a library: LIBRARIES[name](spec) prepares it once, arguments are the addresses that it gets."""

    name: str
    spec: Hashable
    arguments: tuple[Input | Output | Scratch, ...]


class Begin(NamedTuple):
    """One call of NCCL.

    elements: how many each rank gives, or gets from reduce_scatter. ticket: by which it is waited for; None where that
    is done at once.
    """

    operation: str
    group: Group
    dtype: Dtype
    elements: int
    op: str
    root: int
    ticket: int | None


@dataclass(frozen=True)
class LaunchPlan:
    """Launches of one call, in order, and the bytes of each scratch block that it works in."""

    steps: Sequence[Launch | LibraryCall]
    scratch: tuple[int, ...] = ()


@dataclass(frozen=True)
class CudaKernel:
    """plan(inputs, outputs, **params) -> Plan, or None: the composite serves.

    layouts: what it takes its inputs in, as in the CPU's registry. out_layout(call): what it can write its outputs in.
    updates: its first output has the elements of its first input before the plan runs.
    """

    plan: Callable[..., LaunchPlan | None]
    layouts: tuple[str, ...] | str | None
    out_layout: Callable[[Any], str]
    updates: bool


KERNELS: dict[Primitive, CudaKernel] = {}

# Of derived gradients, by what is differentiated, and the names of their operands and results.
GRADIENTS: dict[tuple[Primitive, tuple[str, ...], tuple[str, ...]], CudaKernel] = {}

# prepare(spec) -> run(stream, *addresses). What a library works in is a scratch block of the plan.
LIBRARIES: dict[str, Callable[[Any], Callable[..., None]]] = {}


def kernel(
    primitive: Primitive | str, *, layouts: tuple[str, ...] | str | None = None,
    out_layout: Callable[[Any], str] = lambda call: "dense", updates: bool = False,
) -> Callable[[Callable], Callable]:
    """Decorator: the function plans a primitive, which is given itself or by its name.

    It gets the inputs' and outputs' Operands (which a primitive with any number of them lists) and the call's
    parameters by keyword. It returns None for operands that only the composite can serve.
    """

    def register(function: Callable) -> Callable:
        KERNELS[defined(primitive)] = CudaKernel(function, layouts, out_layout, updates)
        return function

    return register


def gradient_kernel(
    primitive: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[[Callable], Callable]:
    """Decorator: as `kernel`, for the derived gradient of a primitive that has these operands and results."""

    def register(function: Callable) -> Callable:
        GRADIENTS[defined(primitive), inputs, outputs] = CudaKernel(function, "dense", lambda call: "dense", False)
        return function

    return register


def record_of(primitive: Primitive) -> CudaKernel | None:
    """The kernel written by hand for a primitive."""
    derived = (primitive.gradient_of, primitive.inputs, primitive.outputs)
    return KERNELS.get(primitive) or GRADIENTS.get(derived)  # type: ignore[arg-type]


def library(name: str) -> Callable[[Callable], Callable]:
    """Decorator: the function prepares calls into the library `name`."""

    def register(function: Callable) -> Callable:
        LIBRARIES[name] = function
        return function

    return register
