"""The Backend interface: memory, copies and kernels on one device. Nothing in it knows of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..array import Array
from ..dtypes import Dtype
from ..program import Graph, Plan
from ..views import Shape


@dataclass(frozen=True)
class Kernel:
    """How a backend runs one Call.

    function(inputs, outputs): handles (and Python scalars) in, nothing out; it allocates nothing.
    layouts(call): what each operand's strides must suit (see eager.fit); None where any do.
    in_place: whether an output may be exactly the memory of an input, and have any strides; else it is row-major.
    """

    function: Callable[[Sequence[Any], Sequence[Any]], None]
    layouts: Callable[[Any], Sequence[str]] | None = None
    in_place: bool = False


@dataclass(frozen=True)
class MemoryStats:
    """Bytes: in use now, the most ever in use at once, and held by the pool for reuse."""

    in_use: int
    peak: int
    pooled: int


class Backend(Protocol):
    """What a device must do.

    joins: whether kernels of one kind that follow each other in a program run as one, where none needs another's
    result.
    stops: whether a program ends at a bad index, in place of saying so when it is waited for.
    block: the elements of a large temporary (logits, weights of attention) that an operation made of others holds at
    once: so many that the kernels of a block are worth their overhead.
    even: the number of elements of which a matrix's rows should be a multiple, for fast products.
    """

    joins: bool
    stops: bool
    block: int
    even: int

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        """A contiguous array over uninitialized memory, which returns to the backend when its last user is gone."""

    def handle(self, array: Array) -> Any:
        """What kernels take for an array (on CPU an np.ndarray, on CUDA a pointer with strides)."""

    def copy(self, source: Array, target: Array) -> None:
        """Copies elements between arrays of this device with equal shape and dtype."""

    def from_numpy(self, data: Any, target: Array) -> None:
        """Copies an np.ndarray of the target's shape and dtype into it."""

    def to_numpy(self, array: Array) -> Any:
        """A fresh np.ndarray with the array's elements."""

    def copy_to_host_async(self, array: Array) -> None:
        """Begins the copy that the next to_numpy of the array needs, if it isn't written before."""

    def kernel(self, call: Any) -> Kernel | None:
        """The kernel for a call, or None where this backend has none for its primitive."""

    def holds(self, call: Any) -> bool:
        """Whether a program can hold a call; else its composite is traced in its place."""

    def program(self, graph: Graph, plan: Plan) -> Any | None:
        """What runs a graph as planned, `run(states, draws, floats) -> results` as the Interpreter's; None: it must."""

    def out_layouts(self, call: Any) -> Sequence[str]:
        """What the results of a call can be made in by the kernel that programs use (layouts of eager.fit)."""

    def scratch(self, graph: Graph, plan: Plan) -> int:
        """The bytes in which kernels of a program work, beside what the plan gives to values."""

    def synchronize(self) -> None:
        """Waits until everything launched has run."""

    def memory_stats(self) -> MemoryStats:
        """The device's memory as this process uses it."""
