"""Segments: many tensors of one dtype in one stretch of memory, updated, clipped and sent as one. Floor 1.

Parameters of one optimizer group, or the optimizer's state for them, are contiguous, each start aligned, with
zeros between them, and the whole padded to a multiple of the number of ranks. Their gradients are joined in the same
layout, so an update is one operation over three flat tensors, and so is a bucket's way to the other ranks.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

from . import eager, views
from .array import Storage
from .dtypes import Dtype
from .errors import ArgumentError, DeviceError, DtypeError
from .ops.create import empty, full, zeros
from .ops.elementwise import astype
from .ops.primitive import executor
from .ops.shape import concat, reshape
from .tensor import Tensor, result_tensor

ALIGNMENT = 128  # bytes: a full memory transaction of a GPU, two cache lines of a CPU
SEGMENT = 2**25  # bytes: few launches for a model, and little memory beside what its backward holds

_padded: weakref.WeakSet[Storage] = weakref.WeakSet()  # memory in which there are zeros between joined tensors


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
        return part(self.flat, self.shapes[i], self.offsets[i])

    def astype(self, dtype) -> Segment:
        """Returns a segment of the same layout with the same values in another dtype (master weights)."""
        return Segment(astype(self.flat.detach(), dtype), self.offsets, self.shapes)

    def zeros(self, dtype=None) -> Segment:
        """A segment of the same layout filled with zeros, of another dtype if one is given (optimizer state)."""
        flat = full(self.flat.shape, 0, dtype=dtype or self.flat.dtype, device=self.flat.device)
        return Segment(flat, self.offsets, self.shapes)


def part(flat: Tensor, shape: views.Shape, offset: int) -> Tensor:
    """The elements of a flat tensor from an offset on, in row-major order under a shape; a view."""
    view = views.View(shape, views.contiguous_strides(shape), flat.array.offset + offset)
    return result_tensor(flat.array.through(view))


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
    for i, t in enumerate(tensors):
        if t.dtype is not dtype:
            raise DtypeError(f"pack: tensor 0 has dtype {dtype.name}, tensor {i} {t.dtype.name}: they must be equal")
        if t.device is not device:
            raise DeviceError(f"pack: tensor 0 is on {device}, tensor {i} on {t.device}: they must be on one device")
        if t.node is not None:
            raise ArgumentError(f"pack: tensor {i} is the result of recorded operations: only leaves can be moved")
    offsets, end = layout(tensors)
    step = _step(dtype)
    total = -(-end // (step * ranks)) * step * ranks
    flat = empty((total,), dtype=dtype, device=device)
    segment = Segment(flat, offsets, tuple(t.shape for t in tensors))
    for i, (t, following) in enumerate(zip(tensors, [*offsets[1:], total], strict=True)):
        place = segment.view(i).array
        device.backend.copy(t.array, place)
        gap = slice(offsets[i] + t.size, following)
        if gap.start < gap.stop:
            flat[gap] = 0
        t.array = place
    return segment


def _step(dtype: Dtype) -> int:
    """Returns the number of elements at whose multiples tensors in a segment begin."""
    return max(ALIGNMENT // dtype.itemsize, 1)


def layout(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Returns the element at which each tensor of a segment begins, and the end of the last one with its padding.

    Example: 33, 5 and 32 elements of float32 begin at 0, 64 and 96, and end at 128.
    """
    step, ends = _step(tensors[0].dtype), [0]
    for t in tensors:
        ends.append(ends[-1] + -(-t.size // step) * step)
    return tuple(ends[:-1]), ends[-1]


def buckets(parameters: Sequence[Tensor], nbytes: int) -> Iterator[list[Tensor]]:
    """Runs of parameters with gradients of one dtype, the last first, each of at least so many bytes but the last."""
    run: list[Tensor] = []
    for p in reversed(parameters):
        full = sum(q.size for q in run) * p.grad_dtype.itemsize >= nbytes
        if run and (full or p.grad_dtype is not run[0].grad_dtype):
            yield run
            run = []
        run.append(p)
    if run:
        yield run


def runs(parameters: Iterable[Tensor], beside: Callable = operator.attrgetter("grad")) -> list[list[Tensor]]:
    """Returns the parameters with a gradient in runs that are as `pack` puts them, with gradients of one dtype.

    beside: gives another tensor than the gradient that goes with a parameter.

    Example: a, b, c and d were packed together, and b has no gradient; x was not packed: [a], [c, d] and [x].
    """
    by_storage: dict[Storage, list[Tensor]] = {}
    for p in parameters:
        if beside(p) is not None:
            by_storage.setdefault(p.array.storage, []).append(p)
    found: list[list[Tensor]] = []
    for together in by_storage.values():
        behind: tuple | None = None
        for p in sorted(together, key=lambda p: (p.array.offset, p.size)):
            a, g = p.array, beside(p).array
            if g.shape != a.shape or not views.is_contiguous(a.view):
                found.append([p])
                behind = None
                continue
            if (a.offset, g.dtype, g.device) != behind:
                found.append([])
            found[-1].append(p)
            step = _step(a.dtype)
            behind = a.offset + -(-views.size(a.shape) // step) * step, g.dtype, g.device
    return found


def gradient(run: Sequence[Tensor]) -> Tensor:
    """The gradients of a run as one tensor, flat and laid out as the run is; that of a single parameter as it is."""
    gradients = [p.grad for p in run if p.grad is not None]
    return gradients[0] if len(run) == 1 else join(gradients, *layout(run))


def gradients_in_place(run: Sequence[Tensor]) -> list[Tensor]:
    """The memory of a run's gradients: in one piece, to where they are moved, or where they are.

    Each is the same tensor as before, in memory that it shares with the others. Those stay that can't be moved: what
    has a history, or what a compiled function finds outside of it.
    """
    gradients = [p.grad for p in run if p.grad is not None]
    offsets, size = layout(run)
    if len(run) == 1:
        return gradients
    found = _holding(gradients, offsets, size)
    if found is None and not any(g.requires_grad or _is_outside(g.array.storage) for g in gradients):
        found = join(gradients, offsets, size)
        for g, offset in zip(gradients, offsets, strict=True):
            g.array = part(found, g.shape, offset).array
    return gradients if found is None else [found]


def join(tensors: Sequence[Tensor], offsets: Sequence[int], size: int) -> Tensor:
    """A flat tensor of a size in which each of `tensors` begins at its offset, with zeros between them.

    It shares their memory where they are so already, and is a copy where not.
    """
    found = _holding(tensors, offsets, size)
    if found is None:
        pieces, end = [], 0
        for t, offset in zip(tensors, offsets, strict=True):
            pieces += [*_zeros(t, offset - end), reshape(t, (t.size,))]
            end = offset + t.size
        found = padded(concat([*pieces, *_zeros(tensors[0], size - end)]))
    return found


def _zeros(like: Tensor, n: int) -> list[Tensor]:
    return [zeros((n,), dtype=like.dtype, device=like.device)] if n else []


def padded(flat: Tensor) -> Tensor:
    """A flat tensor made of joined ones element by element, which has zeros between its parts as they have."""
    _padded.add(flat.array.storage)
    return flat


def _is_outside(storage: Storage) -> bool:
    """Returns whether a compiled function finds it outside, where it may be elsewhere at the next call."""
    return getattr(storage, "trace", eager) is not executor.get()


def _holding(tensors: Sequence[Tensor], offsets: Sequence[int], size: int) -> Tensor | None:
    """The flat tensor in which each of `tensors` begins at its offset, if there is one with zeros between them."""
    first = tensors[0].array
    storage, start = first.storage, first.offset - offsets[0]
    has_zeros = storage in _padded and not _is_outside(storage)
    end = start
    for t, offset in zip(tensors, offsets, strict=True):
        a = t.array
        is_there = a.storage is storage and a.offset == start + offset and views.is_contiguous(a.view)
        if not is_there or (a.offset != end and not has_zeros):
            return None
        end = a.offset + views.size(a.shape)
    if end != start + size and not has_zeros:
        return None
    return part(result_tensor(first), (size,), -offsets[0])
