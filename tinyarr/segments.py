"""Segment: many tensors of one dtype in one stretch of memory.

Parameters of one optimizer group, or the optimizer's state for them, are contiguous, each start aligned and
the whole padded to a multiple of the number of ranks. So one launch can update all of them, and a communication
bucket or an optimizer's shard is a segment or a part of one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from . import views
from .array import Array
from .errors import ArgumentError, DeviceError, DtypeError
from .ops.create import empty, full
from .tensor import Tensor, result_tensor

ALIGNMENT = 128  # bytes: a full memory transaction of a GPU, two cache lines of a CPU


class Segment:
    """Tensors packed in order into one flat tensor.

    `flat` is the 1-d tensor over all of the memory, `offsets` where each tensor starts in it (in elements), `shapes`
    their shapes.
    """

    def __init__(self, flat: Tensor, offsets: tuple[int, ...], shapes: tuple[views.Shape, ...]):
        self.flat = flat
        self.offsets = offsets
        self.shapes = shapes

    def view(self, i: int) -> Tensor:
        """Tensor `i`, sharing the segment's memory."""
        return result_tensor(self._array(i))

    def _array(self, i: int) -> Array:
        shape = self.shapes[i]
        return self.flat.array.through(views.View(shape, views.contiguous_strides(shape), self.offsets[i]))

    def zeros(self, dtype=None) -> Segment:
        """A segment of the same layout filled with zeros, of another dtype if one is given (optimizer state)."""
        flat = full(self.flat.shape, 0, dtype=dtype or self.flat.dtype, device=self.flat.device)
        return Segment(flat, self.offsets, self.shapes)


def pack(tensors: Sequence[Tensor], *, ranks: int = 1) -> Segment:
    """Moves `tensors`, all of one dtype and device, into a new segment, in the given order, and returns it.

    Each tensor keeps its identity and values but is a view of the segment's memory afterwards. Views taken of it
    before do not follow. Raises DtypeError, DeviceError or ArgumentError where the tensors do not belong together.
    """
    if not tensors:
        raise ArgumentError("pack: needs at least one tensor")
    if operator.index(ranks) < 1:
        raise ArgumentError(f"pack: ranks is {ranks}: it must be at least 1")
    dtype, device = tensors[0].dtype, tensors[0].device
    step = max(ALIGNMENT // dtype.itemsize, 1)
    offsets, end = [], 0
    for i, t in enumerate(tensors):
        if t.dtype is not dtype:
            raise DtypeError(f"pack: tensor 0 has dtype {dtype.name}, tensor {i} {t.dtype.name}: they must be equal")
        if t.device is not device:
            raise DeviceError(f"pack: tensor 0 is on {device}, tensor {i} on {t.device}: they must be on one device")
        if t.node is not None:
            raise ArgumentError(f"pack: tensor {i} is the result of recorded operations: only leaves can be moved")
        offsets.append(end)
        end += -(-t.size // step) * step
    total = -(-end // (step * ranks)) * step * ranks
    flat = empty((total,), dtype=dtype, device=device)
    segment = Segment(flat, tuple(offsets), tuple(t.shape for t in tensors))
    for i, (t, following) in enumerate(zip(tensors, [*offsets[1:], total], strict=True)):
        place = segment._array(i)
        device.backend.copy(t.array, place)
        gap = slice(offsets[i] + t.size, following)
        if gap.start < gap.stop:
            flat[gap] = 0
        t.array = place
    return segment
