"""Data parallelism: each rank computes the gradients of batches of its own, and all update with the mean. Floor 4.

Gradients travel in buckets, filled in the order in which backward finishes them. Where the step is compiled, a bucket
is on its way as soon as its last gradient is there, while backward goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ..groups import Group, world
from ..ops.collective import all_reduce, broadcast
from ..ops.create import zeros
from ..ops.elementwise import astype
from ..ops.shape import reshape, stack
from ..optim.clipping import grad_norm
from ..optim.optimizer import Optimizer, parameter_groups
from ..segments import SEGMENT, buckets, join, layout, padded, part
from ..tape import no_grad
from ..tensor import Tensor

BUCKET = SEGMENT  # bytes: enough for a network's full rate; what is one on its way is then one in the optimizer too


class Part(NamedTuple):
    """Share of a parameter that a rank updates: elements start to stop, in row-major order, which `tensor` holds."""

    parameter: Tensor
    start: int
    stop: int
    tensor: Tensor


class OneRank:
    """Data parallelism of a single process: methods leave all as it is, and subclasses with several ranks replace them.

    groups: parameters, or groups of them as an optimizer takes them; `groups` is then what the optimizer gets. A step
    is backward(), reduce(), clipping by gradient_norm(), optimizer.step() and gather(). With several batches a step
    reduce() comes after the last, or after each if `reduces_each_batch`.
    """

    reduces_each_batch = False

    def __init__(self, groups: Iterable[Any]):
        self.groups = [{**g, "parameters": list(g["parameters"])} for g in parameter_groups(groups)]
        self.parameters: list[Tensor] = [p for g in self.groups for p in g["parameters"]]

    @property
    def parts(self) -> list[Part]:
        """Parts of the parameters that this rank updates."""
        return [Part(p, 0, p.size, p) for p in self.parameters]

    def reduce(self) -> None:
        """Makes gradients the means over the ranks; where only some ranks have one, the others count as zero."""

    def gradient_norm(self) -> Tensor:
        """The joint Euclidean norm of the gradients that reduce() has made: the same on every rank."""
        return grad_norm(self.parameters)

    def gather(self) -> None:
        """Gives every rank all of what the optimizers have updated."""

    def scatter(self) -> None:
        """Takes what this rank updates from the parameters, after something else has written them."""

    def mean(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The means over the ranks of 0-d float32 tensors."""
        return values

    def load_masters(self, optimizer: Optimizer, weights: Mapping[Tensor, Tensor]) -> None:
        """Optimizer.load_masters for what this rank updates, from whole weights by parameter."""
        with no_grad():
            flat = [reshape(weights[p], (p.size,))[start:stop] for p, start, stop, _ in self.parts]
            tensors = [part.tensor for part in self.parts]
            optimizer.load_masters(tensors, [reshape(x, t.shape) for x, t in zip(flat, tensors, strict=True)])


class DataParallel(OneRank):
    """Ranks that hold the same parameters and update them by the means of their gradients. Rank 0's values are taken.

    bucket: bytes that travel together, at least.
    """

    def __init__(self, groups: Iterable[Any], group: Group | None = None, *, bucket: int = BUCKET):
        super().__init__(groups)
        self.group = world() if group is None else group
        self._bucket = bucket
        if len(set(self.parameters)) < len(self.parameters):
            raise ArgumentError(f"{type(self).__name__}: a parameter came twice: name each one once")
        replicate(self.parameters, group=self.group)

    def reduce(self) -> None:
        # The last are averaged first, but the last group last: matrices come first, and it is small beside them.
        parameters = [p for g in reversed(self.groups) for p in g["parameters"]]
        average_gradients(parameters, group=self.group, bucket=self._bucket)

    def mean(self, *values: Tensor) -> tuple[Tensor, ...]:
        together = all_reduce(stack(values), "mean", group=self.group)
        return tuple(together[i] for i in range(len(values)))


def replicate(tensors: Iterable[Tensor], root: int = 0, *, group: Group | None = None) -> None:
    """Writes rank `root`'s elements into the tensors of every rank, which must have the same shapes there."""
    group = world() if group is None else group
    if group.size == 1:
        return
    tensors = list(tensors)
    kinds = str([(t.shape, t.dtype.name) for t in tensors])
    for rank, other in enumerate(group.exchange(kinds)):
        if other != kinds:
            raise ArgumentError(f"replicate: rank {rank} has tensors of other shapes or dtypes: build the same model")
    with no_grad():
        for t in tensors:
            t.assign(broadcast(t.detach(), root, group=group))


def average_gradients(
    parameters: Iterable[Tensor], *, group: Group | None = None, bucket: int = BUCKET
) -> None:
    """Replaces the `.grad` of each parameter by its mean over the ranks of a group.

    Where some ranks have none they count as zero; where no rank has one it stays None. bucket: bytes that travel
    together, at least. All ranks must name the same parameters in the same order.
    """
    group = world() if group is None else group
    with no_grad():
        for bucketful in buckets(having_gradients(list(parameters), group), bucket):
            offsets, size = layout(bucketful)
            flat = join([gradient_or_zeros(p) for p in bucketful], offsets, size)
            mean = padded(all_reduce(flat, "mean", group=group))
            for p, offset in zip(bucketful, offsets, strict=True):
                p.grad = part(mean, p.shape, offset)


def having_gradients(parameters: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Returns the parameters that have a gradient on some rank."""
    own = [int(p.grad is not None) for p in parameters]
    return [p for p, *found in zip(parameters, *group.exchange(own), strict=True) if any(found)]


def gradient_or_zeros(p: Tensor) -> Tensor:
    """A parameter's gradient in the dtype in which it is kept."""
    if p.grad is None:
        return zeros(p.shape, dtype=p.grad_dtype, device=p.device)
    return astype(p.grad, p.grad_dtype, copy=False)
