"""Tensor: an Array with a place in the graph of gradients. Floor 1.

The class is bare here: its methods and operators are the public functions of `ops/`, which `methods.py` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from . import dtypes, views
from .array import Array
from .device import Device
from .dtypes import Dtype
from .errors import DtypeError, GradientError, ShapeError

if TYPE_CHECKING:
    from .typed_methods import Methods  # written by docs/make_stubs.py
else:
    Methods = object


class Size(int):
    """A number of elements. Where it is called, as PyTorch's tensors are for their shape, the error says so."""

    def __call__(self, *axis: int) -> NoReturn:
        raise TypeError(f"size: it is the number of elements, {self}: use shape, or shape[axis] for one axis")


dtypes.SCALARS[Size] = "signed"


class Tensor(Methods):
    """An n-dimensional array of one dtype on one device that remembers how it was computed.

    `Tensor(data, dtype=None, device=None, requires_grad=False)` copies data: Python numbers in nested lists, an
    np.ndarray, or another tensor. Python numbers give bool, int64 or float32; an array or tensor keeps its dtype;
    `dtype` overrides both. With `requires_grad=True`, operations on the tensor are recorded, and `backward()` on a
    single-element result adds d(result)/d(tensor) to `.grad`.

    >>> from tinyarr import Tensor
    >>> x = Tensor([3.0, 4.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    Tensor([6., 8.])
    """

    __slots__ = ("__weakref__", "_has_wide_grad", "_hooks", "_requires_grad", "array", "grad", "node", "node_output")

    array: Array
    grad: Tensor | None
    node: Any  # the tape node that computed this tensor, None for leaves
    node_output: int  # which of the node's outputs it is
    _requires_grad: bool
    _has_wide_grad: bool  # whether `.grad` is kept in dtype.compute
    _hooks: list[Callable] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Dtype:
        return self.array.dtype

    @property
    def device(self) -> Device:
        return self.array.device

    @property
    def ndim(self) -> int:
        return len(self.array.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return Size(views.size(self.array.shape))

    @property
    def nbytes(self) -> int:
        """Number of elements times the item size, whether or not a view repeats them."""
        return self.array.nbytes

    @property
    def requires_grad(self) -> bool:
        """Returns whether gradients flow to this tensor: set by the user on leaves, inherited by results."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not self.array.dtype.is_float:
            raise GradientError(
                f"requires_grad: the tensor has dtype {self.array.dtype.name}: only floating tensors have gradients"
            )
        if self.node is not None and not value:
            raise GradientError("requires_grad: the tensor is a result of recorded operations: use detach()")
        self._requires_grad = value

    @property
    def grad_dtype(self) -> Dtype:
        """The dtype in which backward keeps `.grad`: the tensor's own unless set.

        A leaf of a half type that requires a gradient may have it set to float32, so that the gradients of many batches
        add up without being rounded in between. Raises GradientError for other tensors, and where there is a gradient
        of another dtype already, and DtypeError for other dtypes.
        """
        return self.array.dtype.compute if self._has_wide_grad else self.array.dtype

    @grad_dtype.setter
    def grad_dtype(self, value: Any) -> None:
        own, wanted = self.array.dtype, dtypes.dtype(value)
        if self.node is not None or not self._requires_grad:
            what = "does not require a gradient" if self.node is None else "is a result of recorded operations"
            raise GradientError(f"grad_dtype: the tensor {what}: set it on a leaf with requires_grad=True")
        if wanted not in (own, own.compute):
            choice = own.name if own.compute is own else f"{own.name} or {own.compute.name}"
            raise DtypeError(f"grad_dtype: {wanted.name} came, the tensor has dtype {own.name}: use {choice}")
        if self.grad is not None and self.grad.dtype is not wanted:
            raise GradientError(
                f"grad_dtype: {wanted.name} came, there is a gradient of dtype {self.grad.dtype.name}: "
                "set it before backward(), or grad = None first"
            )
        self._has_wide_grad = wanted is not own

    @property
    def is_leaf(self) -> bool:
        """Returns whether the tensor was made by the user and not by a recorded operation."""
        return self.node is None

    def detach(self) -> Tensor:
        """The same elements (shared memory) without history."""
        return result_tensor(self.array)

    def __len__(self) -> int:
        if not self.array.shape:
            raise ShapeError("len: a 0-d tensor has no length")
        return self.array.shape[0]

    # A tensor is compared elementwise by ==, but is itself a valid key of a dict or set.
    __hash__ = object.__hash__


def result_tensor(array: Array, kind: type[Tensor] = Tensor) -> Any:
    """A tensor around an array, which is shared and not copied: what every operation returns."""
    self = object.__new__(kind)
    self.array = array
    self.grad = None
    self.node = None
    self.node_output = 0
    self._hooks = None
    self._requires_grad = self._has_wide_grad = False
    return self


def require_tensors(operation: str, /, **operands: Any) -> None:
    """Raises TypeError that names the first operand that is no Tensor."""
    for name, x in operands.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{operation}: {name} is {type(x).__name__}: make it a tensor with Tensor(...)")


def add_methods(**methods: Any) -> None:
    """Makes functions, primitives and properties methods of Tensor, under the names that they are given by."""
    for name, value in methods.items():
        setattr(Tensor, name, value)
