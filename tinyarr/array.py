"""Array: a view over a storage, with dtype and device. No gradient: that is Tensor's business. Floor 1."""

from __future__ import annotations

from . import views
from .device import Device
from .dtypes import Dtype
from .views import Shape, View


class Storage:
    """A block of memory on one device, shared by all views of it, and the count of writes into it.

    `memory` is the backend's own object (on CPU an np.ndarray). Whoever saves a value for later remembers
    `version` with it, and so can tell whether the value has been overwritten since.
    """

    __slots__ = ("__weakref__", "device", "memory", "nbytes", "version")

    def __init__(self, memory, nbytes: int, device: Device):
        self.memory = memory
        self.nbytes = nbytes
        self.device = device
        self.version = 0


class Array:
    """Elements of one dtype at `offset` and `strides` (counted in elements) in a storage.

    `data` is the backend's handle of the view (on CPU an np.ndarray), made on first use and kept. `address` is where it
    begins, once a compiled program has asked.
    """

    __slots__ = ("_data", "address", "device", "dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, dtype: Dtype, shape: Shape, strides: Shape, offset: int, data=None):
        self.storage = storage
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.device = storage.device
        self._data = data
        self.address: int | None = None

    @property
    def data(self):
        if self._data is None:
            self._data = self.device.backend.handle(self)
        return self._data

    @property
    def view(self) -> View:
        return View(self.shape, self.strides, self.offset)

    @property
    def nbytes(self) -> int:
        return views.size(self.shape) * self.dtype.itemsize

    def through(self, view: View) -> Array:
        """The same storage seen through another view."""
        return Array(self.storage, self.dtype, view.shape, view.strides, view.offset)

    def same_place(self, other: Array) -> bool:
        """Returns whether both are exactly the same elements in the same order."""
        return self.storage is other.storage and self.view == other.view and self.dtype is other.dtype

    def overlaps(self, other: Array) -> bool:
        """Returns whether both may touch a common byte (judged by their extents, so strided neighbours count)."""
        if self.storage is not other.storage:
            return False
        (a0, a1), (b0, b1) = views.extent(self.view), views.extent(other.view)
        size_a, size_b = self.dtype.itemsize, other.dtype.itemsize
        return a0 * size_a < b1 * size_b and b0 * size_b < a1 * size_a


def empty(device: Device, shape: Shape, dtype: Dtype) -> Array:
    """A contiguous array over fresh memory with undefined contents."""
    nbytes = views.size(shape) * dtype.itemsize
    return device.backend.empty(shape, dtype, views.contiguous_strides(shape), nbytes)
