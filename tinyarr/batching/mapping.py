"""vmap: tensors on their way into the function that is mapped and out of it, and its gradient. Floor 5.

What is differentiated inside is a function of one example. For a gradient from outside the whole map is one operation:
it carries the gradient of each example back through what was recorded inside, and sums that of what all share.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from .. import views
from ..autograd import walk
from ..errors import ArgumentError, ShapeError
from ..ops.shape import moveaxis
from ..tape import Edge, edge_of, gradient_spec, numbers, reachable, record_custom, recording
from ..tensor import Tensor, result_tensor
from ..trees import leaves, rebuilt
from .executor import Batch

RANDOMNESS = ("error", "different", "same")


class _Map:
    """One call of a mapped function: how tensors come in and out, and its gradient.

    entries: the edge of each tensor inside that stands for one with a history, and that one.
    """

    def __init__(self, size: int, randomness: str):
        self.level = object()
        self.size = size
        self.randomness = randomness
        self.oldest = next(numbers)
        self.entries: dict[Edge, Tensor] = {}

    def enter(self, batch: Batch, x: Tensor) -> Tensor:
        """One example of those along the first axis."""
        inside = result_tensor(batch.one(x.array))
        if x._requires_grad:
            inside._requires_grad = True
            self.entries[inside, 0] = x
        return inside

    def leave(self, batch: Batch, results: Sequence[Tensor], is_summed: Sequence[bool]) -> list[Tensor]:
        """All examples of tensors from inside, along the first axis, or their sum; one operation is their history."""
        left = [
            batch.total(x.array) if s else result_tensor(batch.whole(x.array))
            for x, s in zip(results, is_summed, strict=True)
        ]
        kept = [i for i, x in enumerate(results) if x._requires_grad] if recording.get() else []
        roots = [edge_of(results[i]) for i in kept]
        inside = reachable(roots, self.oldest)
        for node in inside:
            node.line = None  # one example can't be looked at: the node of the whole map is watched instead
        found = dict.fromkeys(roots + [edge for node in inside for edge in node.edges if edge is not None])
        targets = [edge for edge in found if self._is_target(batch, edge)]
        if not targets:
            return left
        edges = [edge_of(self.entries[edge]) if edge in self.entries else edge for edge in targets]
        are_summed = [is_summed[i] for i in kept]

        def rule(gs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return self._carried_back(list(zip(roots, are_summed, gs, strict=True)), targets)

        record_custom("vmap", rule, [gradient_spec(e) for e in edges], edges, [left[i] for i in kept], ())
        return left

    def _is_target(self, batch: Batch, edge: Edge) -> bool:
        """Returns whether a gradient leaves by an edge: to an entry, or to what the function found outside."""
        parent = edge[0]
        if isinstance(parent, Tensor):
            return edge in self.entries or not batch.holds(parent.array)
        return parent.number < self.oldest

    def _carried_back(
        self, roots: Sequence[tuple[Edge, bool, Tensor | None]], targets: Sequence[Edge]
    ) -> Sequence[Tensor | None]:
        """The gradients of the targets: an entry's of each example, that of what is the same for all summed.

        roots: what left, whether it was summed, which every example's part of the sum has the gradient of, and that.
        """
        again = copy.copy(self)
        again.entries = dict(self.entries)
        batch = Batch(self.level, self.size, self.randomness, is_summed=True)
        with batch.running():
            pairs = [(edge, g if s else again.enter(batch, g)) for edge, s, g in roots if g is not None]
            found = walk(pairs, targets, recording.get(), True, self.oldest)
        arrived = [(edge, g) for edge, g in zip(targets, found, strict=True) if g is not None]
        left = iter(again.leave(batch, [g for _, g in arrived], [edge not in self.entries for edge, _ in arrived]))
        return [None if g is None else next(left) for g in found]


def vmap(function: Callable, in_axes: Any = 0, out_axes: Any = 0, *, randomness: str = "error") -> Callable:
    """A function that applies `function`, which takes one example, to all examples along an axis of its arguments.

    in_axes: the axis of the examples, an int, or None for an argument that is the same for all: one for every
    positional argument, or a tuple with one for each, which may be a list, tuple or dict as the argument is. Keyword
    arguments are the same for all. out_axes: in the same way the axis at which results are joined; None for one that is
    the same for all. randomness: of random draws in the function: "error", "different" (each example its own), "same".

    The function runs once, on tensors with the shapes of one example: it can't ask for their elements (`item`, `if`).
    Operations run for all examples at once; a primitive of your own that has neither a composite nor a batching rule
    (tinyarr.batching.rules) runs for one after the other. A map may be nested, compiled and differentiated, and what
    it maps may differentiate. Raises ShapeError where arguments have different numbers of examples, ArgumentError for
    axes that do not fit. Source: torch.func.vmap.

    Each example's own gradient:

    >>> import tinyarr
    >>> loss = lambda w, x, y: (w @ x - y) ** 2
    >>> w, X, Y = tinyarr.Tensor([1.0, 2.0]), tinyarr.Tensor([[1.0, 0.0], [3.0, 1.0]]), tinyarr.Tensor([0.0, 4.0])
    >>> tinyarr.vmap(tinyarr.grad(loss), in_axes=(None, 0, 0))(w, X, Y)
    Tensor([[2., 0.],
            [6., 2.]])
    """
    if randomness not in RANDOMNESS:
        raise ArgumentError(f"vmap: randomness is {randomness!r}: use one of {', '.join(RANDOMNESS)}")

    @functools.wraps(function, updated=())
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        axes = _axes("in_axes", in_axes, args)
        given = [x if axis is None else _in_front(x, axis) for x, axis in zip(leaves(args), axes, strict=True)]
        sizes = {x.shape[0] for x, axis in zip(given, axes, strict=True) if axis is not None}
        if len(sizes) != 1:
            came = f"arguments have {sorted(sizes)} examples" if sizes else "no argument has an axis of examples"
            raise ShapeError(f"vmap: {came}, in_axes is {in_axes}: all that are mapped must have equally many")
        this = _Map(sizes.pop(), randomness)
        with Batch(this.level, this.size, randomness).running() as batch:
            inside = [x if axis is None else this.enter(batch, x) for x, axis in zip(given, axes, strict=True)]
            result = function(*rebuilt(args, inside), **kwargs)
        axes = _axes("out_axes", out_axes, result)
        for x, axis in zip(leaves(result), axes, strict=True):
            if not isinstance(x, Tensor):
                raise ArgumentError(f"vmap: the function returned {type(x).__name__}: return tensors")
            if axis is None and batch.holds(x.array):
                raise ArgumentError("vmap: out_axes is None for a result that differs between examples: give an axis")
        leaving = [x for x, axis in zip(leaves(result), axes, strict=True) if axis is not None]
        left = iter(this.leave(batch, leaving, [False] * len(leaving)))
        joined = [x if axis is None else _moved(next(left), 0, axis) for x, axis in zip(leaves(result), axes)]
        return rebuilt(result, joined)

    return evaluate


def _axes(name: str, axes: Any, tree: Any) -> list[int | None]:
    """The axis of each tensor in lists, tuples and dicts of any depth, where one may stand for all below it."""
    if axes is None or (isinstance(axes, int) and not isinstance(axes, bool)):
        return [axes] * len(leaves(tree))
    if isinstance(tree, dict) and isinstance(axes, dict) and axes.keys() == tree.keys():
        return [a for key, part in tree.items() for a in _axes(name, axes[key], part)]
    if isinstance(tree, list | tuple) and isinstance(axes, list | tuple) and len(axes) == len(tree):
        return [a for spec, part in zip(axes, tree) for a in _axes(name, spec, part)]
    raise ArgumentError(f"vmap: {name} is {axes!r}: give an int or None, or one for each tensor, arranged as they are")


def _in_front(x: Any, axis: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"vmap: an argument holds {type(x).__name__}: make it a tensor, or give None in in_axes")
    if not x.ndim:
        raise ShapeError("vmap: an argument is 0-d, and has no axis of examples: give None in in_axes")
    return _moved(x, axis, 0)


def _moved(x: Tensor, start: int, to: int) -> Tensor:
    start, to = (views.normalize_axis("vmap", axis, x.ndim) for axis in (start, to))
    return x if start == to else moveaxis(x, start, to)
