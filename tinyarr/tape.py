"""The tape: what is remembered of each operation so that gradients can be carried back through it. Floor 1.

`apply` puts a Node on the tape for each operation that a gradient passes through. A node knows its operands' nodes,
what it saved, and its rule. `autograd.py` walks the nodes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from .dtypes import Dtype
from .tensor import Tensor, result_tensor
from .views import Shape

recording: ContextVar[bool] = ContextVar("recording", default=True)
nested: ContextVar[int] = ContextVar("nested", default=0)  # how many transformations run, as grad in grad
numbers = itertools.count()

# Which run of a checkpointed function this is in backward, by a number; 0 outside of any. A compiler must not take what
# it computes from the first run.
repetition: ContextVar[int] = ContextVar("repetition", default=0)


def is_nested() -> bool:
    """Returns whether a function runs that a transformation differentiates: then those inside keep their history."""
    return nested.get() > 0


class TapeNode:
    """One recorded operation: what backward needs of it.

    number: nodes are numbered as they are recorded, so every user of a node has a higher number than it.
    edges: for each operand that needs a gradient (parent, output): the node and which output of it the operand was,
    or the leaf tensor itself and 0; None for the others.
    saved, versions: the saved values, and for each tensor its storage and that one's version when it was saved.
    """

    __slots__ = ("__weakref__", "call", "edges", "hooks", "line", "needs", "number", "rule", "saved", "versions")

    def __init__(self, call, rule, needs, edges, saved, versions):
        self.number = next(numbers)
        self.call = call
        self.rule = rule
        self.needs = needs
        self.edges = edges
        self.saved = saved
        self.versions = versions
        self.hooks: dict[int, list[Callable]] | None = None
        self.line: str | None = None

    @property
    def name(self) -> str:
        return self.call.primitive.name


Edge = tuple[Any, int]


def record(call, operands: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Puts a node on the tape: `outputs` were computed from `operands` by `call`."""
    # Written out in loops: each comprehension and call would add 0.1 µs to every recorded operation.
    edges: list[Edge | None] = []
    mask: list[bool] = []
    for x in operands:
        if isinstance(x, Tensor) and x._requires_grad:
            edges.append((x, 0) if x.node is None else (x.node, x.node_output))
            mask.append(True)
        else:
            edges.append(None)
            mask.append(False)
    needs = tuple(mask)
    rule = call.rules.get(needs) or call.rule(needs)
    saved: list = []
    versions: list = []
    for is_output, i in rule.saved:
        value = outputs[i] if is_output else operands[i]
        if isinstance(value, Tensor):
            # An output is saved without its node: the node must not hold itself alive.
            saved.append(result_tensor(value.array) if is_output else value)
            versions.append((value.array.storage, value.array.storage.version))
        else:
            saved.append(value)
            versions.append(None)
    attach(TapeNode(call, rule, needs, edges, saved, versions), outputs)


def edge_of(x: Tensor) -> Edge:
    """Returns the edge to which a tensor's gradient goes: (its node, which output of it), or (the leaf itself, 0)."""
    return (x, 0) if x.node is None else (x.node, x.node_output)


def gradient_spec(edge: Edge) -> tuple[Shape, Dtype]:
    """Shape and dtype of the gradient of what an edge names."""
    parent, output = edge
    if isinstance(parent, Tensor):
        return parent.shape, parent.grad_dtype
    return parent.call.out_shapes[output], parent.call.out_dtypes[output]


def attach(node: TapeNode, outputs: Sequence[Tensor]) -> None:
    """Makes `node` the one that computed `outputs`."""
    if _watched:
        node.line = _caller()
    for i, t in enumerate(outputs):
        if t.array.dtype.is_float:
            t.node = node
            t.node_output = i
            t._requires_grad = True


_watched = 0  # how many detect_anomaly() blocks are open; a plain number, as every recorded operation looks at it


@contextlib.contextmanager
def detect_anomaly() -> Iterator[None]:
    """Context manager: backward raises where a gradient becomes NaN, and names the line that computed the value.

    It covers operations recorded inside it, whenever backward reaches them. Each costs a look at the stack and a
    check of its gradients: for finding a mistake, not for training. Compiled functions run as they are written.
    """
    global _watched
    _watched += 1
    try:
        yield
    finally:
        _watched -= 1


def watched() -> bool:
    """Returns whether a detect_anomaly() block is open."""
    return _watched > 0


def _caller() -> str:
    """The innermost line outside of tinyarr, as `file:line: source`."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_FOLDER):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"


_FOLDER = os.path.dirname(__file__) + os.sep


class CustomCall:
    """Stand-in for a Call where a Python function, not a primitive, says how to go backward: see CustomRule.

    `specs` gives shape and dtype of the operands. `read` are the tensors that the function will read, which must not be
    overwritten until then; `again` those that it reads too where the gradient is to be differentiated.
    """

    composite = None

    def __init__(self, name: str, specs, outputs: Sequence[Tensor], read, again):
        self.primitive = self
        self.name = name
        self.again = again
        self.in_shapes, self.in_dtypes = zip(*specs, strict=True)
        self.out_shapes = tuple(o.shape for o in outputs)
        self.out_dtypes = tuple(o.dtype for o in outputs)
        self.inputs = ("a tensor",) * len(read)


class CustomRule:
    """Gradient rule that is a Python function; freed with what it holds when its node is.

    `function` maps the gradients of the outputs (None where there is none) to those of the operands.
    """

    def __init__(self, function: Callable, read: Sequence[Tensor]):
        self.function = function
        self.saved = tuple((False, i) for i in range(len(read)))

    def backward(self, call, needs, gs, values):
        return self.function(gs)


def record_custom(
    name: str, function: Callable, specs, edges: Sequence[Edge | None], outputs, read: Sequence[Tensor], again=()
) -> None:
    """Puts a node on the tape whose rule is `function`; see CustomCall."""
    call = CustomCall(name, specs, outputs, read, again)
    needs = tuple(edge is not None for edge in edges)
    versions = [(x.array.storage, x.array.storage.version) for x in read]
    attach(TapeNode(call, CustomRule(function, read), needs, edges, list(read), versions), outputs)


class set_recording:
    """Context manager and decorator: operations inside are recorded (True) or not (False)."""

    def __init__(self, on: bool):
        self._on = on
        self._tokens: list[Any] = []

    def __enter__(self) -> None:
        self._tokens.append(recording.set(self._on))

    def __exit__(self, *exception: object) -> None:
        recording.reset(self._tokens.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with set_recording(self._on):
                return function(*args, **kwargs)

        return wrapped


def no_grad() -> set_recording:
    """Context manager and decorator: operations inside are not recorded."""
    return set_recording(False)


def enable_grad() -> set_recording:
    """Context manager and decorator: operations inside are recorded, also within no_grad()."""
    return set_recording(True)


def reachable(roots: Sequence[Edge], oldest: int = 0) -> list[TapeNode]:
    """The nodes from which the roots were computed, numbered `oldest` or above, latest first."""
    found: dict[int, TapeNode] = {}
    stack = [parent for parent, _ in roots if isinstance(parent, TapeNode)]
    while stack:
        node = stack.pop()
        if node.number < oldest or node.number in found:
            continue
        found[node.number] = node
        stack.extend(edge[0] for edge in node.edges if edge is not None and isinstance(edge[0], TapeNode))
    return [found[n] for n in sorted(found, reverse=True)]
