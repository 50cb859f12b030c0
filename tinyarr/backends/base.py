"""Backend: memory, copies and kernels on one device. Nothing in it knows of gradients. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..array import Array
from ..dtypes import Dtype
from ..ops.primitive import Primitive, registry
from ..views import Shape

if TYPE_CHECKING:
    from ..program import Graph, Lowered


@dataclass(frozen=True)
class Kernel:
    """Kernel of one Call: runs it on given arrays.

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


class ProgramRules:
    """Rules by which programs are planned and lowered for a device, which needn't be there: traits of its kernels.

    stops: whether a program ends at a bad index, in place of saying so when it is waited for.
    block: the elements of a large temporary (logits, weights of attention) that an operation made of others holds at
    once: so many that the kernels of a block are worth their overhead.
    even: the number of elements of which a matrix's rows should be a multiple, for fast products.
    """

    stops: bool = True
    block: int = 1 << 24
    even: int = 1

    def kernel(self, call: Any) -> Any | None:
        """The Kernel for a call in eager mode, or None where the primitive's composite must serve."""
        raise NotImplementedError

    def holds(self, call: Any) -> bool:
        """Returns whether a program has a kernel for a call; else its composite is traced in its place."""
        return call.primitive.parts is not None or self.kernel(call) is not None

    def in_layouts(self, call: Any) -> Sequence[str]:
        """Returns the layout (of eager.fit) in which a program's kernel takes each operand; others are copied first."""
        return ("any",) * len(call.in_shapes)

    def out_layouts(self, call: Any) -> Sequence[str]:
        """Returns the layout in which a program's kernel can write each result."""
        return ("any",) * len(call.out_shapes)

    def joins_expression(self, first: Any, last: Any, stored: Sequence[int]) -> bool:
        """Returns whether one kernel runs a call with an elementwise call as the prologue that makes its first operand.

        stored: the numbers of the results of `first` that are kept in memory all the same.
        """
        return False

    def works_in(self, call: Any) -> int:
        """Returns the bytes in which a program's kernel for a call works; for many, the plan has a place."""
        return 0

    def scratch(self, graph: Graph, lowered: Lowered) -> int:
        """The bytes behind the arena in which the kernels of a program work."""
        return lowered.scratch


class Backend(ProgramRules):
    """Memory, copies and kernels of one device. What has a body here need not be written."""

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        """A contiguous array over uninitialized memory, which returns to the backend when its last user is gone."""
        raise NotImplementedError

    def handle(self, array: Array) -> Any:
        """Returns the form in which kernels take an array (on CPU an np.ndarray, on CUDA a pointer with strides)."""
        raise NotImplementedError

    def copy(self, source: Array, target: Array) -> None:
        """Copies elements between arrays of this device with equal shape and dtype."""
        raise NotImplementedError

    def from_numpy(self, data: Any, target: Array) -> None:
        """Copies an np.ndarray of the target's shape and dtype into it."""
        raise NotImplementedError

    def to_numpy(self, array: Array) -> Any:
        """A fresh np.ndarray with the array's elements."""
        raise NotImplementedError

    def copy_to_host_async(self, array: Array) -> None:
        """Begins the copy that the next to_numpy of the array needs, if it isn't written before."""

    def program(self, graph: Graph, lowered: Lowered) -> Any | None:
        """Returns the runner of a lowered graph: run(states, draws, numbers) -> results; None: the Interpreter is."""
        return None

    def synchronize(self) -> None:
        """Waits until everything launched has run."""

    def memory_stats(self) -> MemoryStats:
        """The device's memory as this process uses it."""
        return MemoryStats(0, 0, 0)


def owed() -> set[Primitive]:
    """Returns the primitives that a backend must have kernels for: no composite stands for them.

    Elementwise ones are not among them, for which there is one kernel, nor views and copies into parts.
    """
    own = {p for p in registry.values() if p.built_in and p.view is None and p.composite is None}
    return {p for p in own if p.reads != "elements"}
