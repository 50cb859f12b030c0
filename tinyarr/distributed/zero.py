"""ZeRO: ranks share out the optimizer's state, and if wanted the gradients, of all parameters. Floor 4.

Source: Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models", section 5,
stages 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ArgumentError
from ..groups import Group, world
from ..ops.collective import all_gather, all_reduce, reduce_scatter
from ..ops.create import copy, full
from ..ops.elementwise import add, sqrt, square
from ..ops.shape import reshape
from ..optim.clipping import grad_norm
from ..segments import Segment, buckets, join, pack, padded, part
from ..tape import no_grad
from ..tensor import Tensor
from .data_parallel import BUCKET, DataParallel, OneRank, Part, gradient_or_zeros, having_gradients


class _Bucket:
    """Parameters in one segment, of which each rank owns an equal stretch.

    parts: what this one owns of each, in memory and with gradients of its own.
    """

    def __init__(self, parameters: Sequence[Tensor], group: Group):
        self.parameters = parameters
        self.segment: Segment = pack(parameters, ranks=group.size)
        length = self.segment.flat.size // group.size
        self.low, self.high = group.rank * length, (group.rank + 1) * length
        self.offsets = dict(zip(parameters, self.segment.offsets, strict=True))
        self.parts = []
        for p, offset in self.offsets.items():
            start, stop = max(self.low - offset, 0), min(self.high - offset, p.size)
            if start < stop:
                owned = copy(reshape(p.detach(), (p.size,))[start:stop])
                owned.requires_grad = True
                if p.grad_dtype is not p.dtype:
                    owned.grad_dtype = p.grad_dtype
                self.parts.append(Part(p, start, stop, owned))

    def own_of(self, flat: Tensor, p: Tensor, start: int, stop: int) -> Tensor:
        """Elements start to stop of a parameter, of what this rank owns of a tensor laid out as the segment; a view."""
        return part(flat, (stop - start,), self.offsets[p] + start - self.low)


class Zero(DataParallel):
    """DataParallel, whose optimizer has state only for what its rank owns: 1/n of the parameters.

    stage 1: gradients are whole until reduce(), which comes once a step. stage 2: reduce() comes after each batch, and
    only the gradients of owned parts last. The optimizer must update each element by itself, as AdamW and SGD do. What
    writes parameters otherwise must be followed by scatter().
    """

    def __init__(
        self, groups: Iterable[Any], group: Group | None = None, *, stage: int = 1, bucket: int = BUCKET
    ):
        if stage not in (1, 2):
            raise ArgumentError(f"Zero: stage is {stage}: it must be 1 (state shared out) or 2 (gradients too)")
        super().__init__(groups, group, bucket=bucket)
        self.reduces_each_batch = stage == 2
        self._buckets: list[_Bucket] = []
        own = []
        for options in self.groups:
            made = [_Bucket(run, self.group) for run in buckets(options["parameters"], bucket)]
            # A bucket's part is a segment of the optimizer, in its order, which is the reverse of that of a group.
            own += [{**options, "parameters": [owned.tensor for owned in reversed(b.parts)]} for b in made if b.parts]
            self._buckets += made
        self.groups = own
        if not all(self.group.exchange(len(self.parts))):
            raise ArgumentError(f"Zero: the parameters are too few to give each of {self.group.size} ranks a part")

    @property
    def parts(self) -> list[Part]:
        return [owned for bucket in self._buckets for owned in bucket.parts]

    def reduce(self) -> None:
        with no_grad():
            present = set(having_gradients(self.parameters, self.group))
            for bucket in self._buckets:
                if present.isdisjoint(bucket.parameters):
                    continue
                gradients = [gradient_or_zeros(p) for p in bucket.parameters]
                whole = join(gradients, bucket.segment.offsets, bucket.segment.flat.size)
                own = padded(reduce_scatter(whole, "mean", group=self.group))
                for p, start, stop, owned in bucket.parts:
                    if p in present:
                        g = bucket.own_of(own, p, start, stop)
                        owned.grad = g if owned.grad is None else add(owned.grad, g, out=owned.grad)
                for p in bucket.parameters:
                    p.grad = None

    def gradient_norm(self) -> Tensor:
        parts = [owned.tensor for owned in self.parts]
        if all(p.grad is None for p in parts):
            own = full((), 0.0, device=parts[0].device)
        else:
            own = grad_norm(parts)
        with no_grad():
            return sqrt(all_reduce(square(own), group=self.group))

    def gather(self) -> None:
        with no_grad():
            for bucket in self._buckets:
                starts = [bucket.offsets[p] + start - bucket.low for p, start, _, _ in bucket.parts]
                size = bucket.high - bucket.low
                if bucket.parts:
                    own = join([owned.tensor.detach() for owned in bucket.parts], starts, size)
                else:  # this rank's part is all padding
                    own = part(bucket.segment.flat, (size,), bucket.low)
                bucket.segment.flat.assign(all_gather(own, group=self.group))

    def scatter(self) -> None:
        with no_grad():
            for p, start, stop, owned in self.parts:
                owned.assign(reshape(p.detach(), (p.size,))[start:stop])


def share_out(groups: Iterable[Any], group: Group | None = None, *, zero: int = 0) -> OneRank:
    """Shares parameters, or groups of them, out among the ranks of a group, by default all.

    zero: 0, nothing: DataParallel; 1 or 2, Zero of that stage. A single rank is OneRank.
    """
    group = world() if group is None else group
    if group.size == 1:
        return OneRank(groups)
    return Zero(groups, group, stage=zero) if zero else DataParallel(groups, group)
