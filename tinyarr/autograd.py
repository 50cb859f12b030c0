"""Backward: walking the tape from the last recorded operation to the first. Floor 1.

Nodes are walked in the reverse of the order in which they were recorded, so every node has the whole gradient of its
outputs before it is asked for that of its inputs. Rules are written with public operations, so a walk can itself be
recorded (`create_graph=True`) and differentiated again.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import eager
from .errors import ArgumentError, GradientError, TraceError, describe
from .ops.create import copy, ones_like, zeros
from .ops.elementwise import add, astype, isnan
from .ops.primitive import executor
from .ops.reduce import sum_to
from .ops.shape import reshape
from .tape import CustomCall, Edge, TapeNode, edge_of, numbers, reachable, recording, set_recording
from .tensor import Tensor, require_tensors, result_tensor
from .views import is_contiguous


class _Walk:
    """One walk: the gradients of `roots` are carried back to `targets`, or, without targets, into leaves' `.grad`.

    With `oldest`, only the nodes numbered so or above are walked. The targets, leaves or older than that, get what
    arrives at them: it is a part of their gradients, so their hooks are left to the walk that collects the whole.
    """

    def __init__(
        self,
        roots: Sequence[tuple[Edge, Tensor]],
        targets: Sequence[Edge] | None,
        create_graph: bool,
        retain_graph: bool,
        oldest: int | None,
    ):
        self.roots = roots
        self.targets = targets
        self.create_graph = create_graph
        self.retain_graph = retain_graph
        self.partial = oldest is not None
        self.oldest = oldest or 0
        self.wanted: set[Edge] = set(targets or ())
        nodes = reachable([edge for edge, _ in roots], self.oldest)
        self.leading = set(nodes) if targets is None else _leading(nodes, self.wanted)
        self.uses = _uses_of_leaves(nodes)
        self.pending: dict[Edge, Tensor] = {}
        self.captured: dict[Edge, Tensor] = {}
        self.shared: set[int] = {id(g.array.storage) for _, g in roots}
        self.heap: list[tuple[int, TapeNode]] = []
        self.queued: set[TapeNode] = set()

    def run(self) -> list[Tensor | None]:
        with set_recording(self.create_graph):
            for edge, g in self.roots:
                self.arrive(edge, g)
            while self.heap:
                _, node = heapq.heappop(self.heap)
                gs = self.gradients_of_outputs(node)
                if node in self.leading:
                    self.pass_through(node, gs)
            for parent, _ in list(self.pending):  # roots, and what waits for nodes that no gradient reached
                if isinstance(parent, Tensor):
                    self.settle(parent)
        return [self.captured.get(edge, self.pending.get(edge)) for edge in self.targets or ()]

    def arrive(self, edge: Edge, g: Tensor) -> None:
        """Adds `g` to the gradient of what `edge` names."""
        parent = edge[0]
        if isinstance(parent, Tensor) and parent._has_wide_grad:
            is_result = self.targets is not None and not self.partial
            g = astype(g, parent.dtype if is_result else parent.grad_dtype, copy=False)
            if self.targets is None and parent.grad is not None and not parent._hooks:  # as it comes, in place
                parent.grad = self.accumulated(parent.grad, g)
                return
        self.pending[edge] = add(self.pending[edge], g) if edge in self.pending else g
        if isinstance(parent, TapeNode) and parent.number >= self.oldest and parent not in self.queued:
            self.queued.add(parent)
            heapq.heappush(self.heap, (-parent.number, parent))

    def gradients_of_outputs(self, node: TapeNode) -> list[Tensor | None]:
        """The gradients of a node's outputs, complete now, after their hooks."""
        gs: list[Tensor | None] = []
        for i in range(len(node.call.out_shapes)):
            g = self.pending.pop((node, i), None)
            if g is not None:
                if node.hooks is not None:
                    g = _hooked(node.hooks.get(i), g, self.shared)
                if (node, i) in self.wanted:
                    self.captured[node, i] = g
            gs.append(g)
        return gs

    def pass_through(self, node: TapeNode, gs: Sequence[Tensor | None]) -> None:
        """Carries a node's gradients on to its operands."""
        grads = _backward(node, gs, self.create_graph)
        if node.line is not None:
            _require_numbers(node, gs, grads)
        if isinstance(node.call, CustomCall):  # a user's function may keep what it returns
            self.shared.update(id(g.array.storage) for g in grads if g is not None)
        if not self.retain_graph:
            node.saved = node.rule = None
            node.versions = ()  # which hold the memory of what was saved
        for i, (edge, g) in enumerate(zip(node.edges, grads, strict=True)):
            if edge is None:
                continue
            if g is not None:
                self.arrive(edge, _fitted(node, i, g))
            if isinstance(edge[0], Tensor):
                self.uses[edge[0]] -= 1
                if not self.uses[edge[0]]:
                    self.settle(edge[0])

    def settle(self, leaf: Tensor) -> None:
        """All of a leaf's gradient has arrived."""
        edge = (leaf, 0)
        if self.partial or edge not in self.pending or (self.targets is not None and edge not in self.wanted):
            return
        g = _hooked(leaf._hooks, self.pending.pop(edge), self.shared)
        if self.targets is not None:
            self.captured[edge] = g
        elif leaf.grad is not None:
            leaf.grad = self.accumulated(leaf.grad, g)
        else:
            leaf.grad = copy(g) if self.create_graph else _owned(g, self.shared)  # what the new graph saves stays

    def accumulated(self, old: Tensor, g: Tensor) -> Tensor:
        """The sum of a leaf's gradient and more: in place, unless a graph or this walk may still need the old one.

        So a gradient stays where it is over many batches, and a compiled product can add to it there.
        """
        a = old.array
        needed = self.create_graph or old._requires_grad or id(a.storage) in self.shared
        fits = a.dtype is g.array.dtype and is_contiguous(a.view)
        return add(old, g) if needed or not fits else add(old, g, out=old)


def walk(
    roots: Sequence[tuple[Edge, Tensor]],
    targets: Sequence[Edge] | None,
    create_graph: bool,
    retain_graph: bool,
    oldest: int | None = None,
) -> list[Tensor | None]:
    """Carries gradients back; returns those of `targets`, or adds to leaves' `.grad`. See _Walk."""
    return _Walk(roots, targets, create_graph, retain_graph, oldest).run()


def _leading(nodes: Sequence[TapeNode], targets: set[Edge]) -> set[TapeNode]:
    """The nodes from which a gradient flows on to one of the targets."""
    stops = {parent for parent, _ in targets}
    leading: set[TapeNode] = set()
    for node in reversed(nodes):
        if any(edge is not None and (edge[0] in leading or edge[0] in stops) for edge in node.edges):
            leading.add(node)
    return leading


def _uses_of_leaves(nodes: Sequence[TapeNode]) -> dict[Tensor, int]:
    """Returns the number of gradients that each leaf waits for."""
    uses: dict[Tensor, int] = {}
    for node in nodes:
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Tensor):
                uses[edge[0]] = uses.get(edge[0], 0) + 1
    return uses


def _backward(node: TapeNode, gs: Sequence[Tensor | None], create_graph: bool) -> Sequence[Tensor | None]:
    """The gradients of a node's operands from those of its outputs."""
    if node.saved is None:
        raise GradientError(
            f"backward: the graph through {node.name} was freed by an earlier backward: give that one retain_graph=True"
        )
    values = []
    for (is_output, i), value, version in zip(node.rule.saved, node.saved, node.versions, strict=True):
        is_written = version is not None and version != (value.array.storage, value.array.storage.version)
        if is_written and (not hasattr(node.rule, "reads") or node.rule.reads(i, gs)):
            which = (node.call.primitive.outputs if is_output else node.call.primitive.inputs)[i]
            raise GradientError(
                f"backward: {node.name} saved {which} {value.shape}, which was overwritten since "
                f"(version {version[1]}, now {value.array.storage.version}): write before the forward pass, or a copy"
            )
        if is_output and create_graph:
            value = result_tensor(value.array)
            value.node, value.node_output, value._requires_grad = node, i, True
        values.append(value)
    saves_inputs = any(not is_output for is_output, _ in node.rule.saved)
    primitive = node.call.primitive
    if create_graph and primitive.composite is not None and not primitive.gradients_are_derived and saves_inputs:
        return _backward_of_composite(node, gs, values)
    return node.rule.backward(node.call, node.needs, gs, values)


def _require_numbers(node: TapeNode, gs: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> None:
    """Raises GradientError where a gradient is NaN now and was none before."""
    if executor.get() is not eager:
        raise TraceError(
            f"backward: detect_anomaly() was opened in a function that is being compiled, whose gradients are not "
            f"there yet to be looked at (of {node.name}, computed at {node.line}), or vmap maps a gradient: open it "
            "around the call, or differentiate the map"
        )
    with set_recording(False):
        came, made = ([g for g in group if g is not None and isnan(g).any()] for group in (gs, grads))
    if made and not came:
        raise GradientError(f"backward: the gradient of {node.name} became NaN; it was computed at {node.line}")


def _backward_of_composite(
    node: TapeNode, gs: Sequence[Tensor | None], values: Sequence[Any]
) -> Sequence[Tensor | None]:
    """The gradients as the vjp of the primitive's plain definition, which can be differentiated again.

    Outputs saved beside inputs are caches and recomputed; without any, they are what the gradient is made of. An input
    that the rule did not save cannot influence the gradient, so zeros may stand in for its value.
    """

    call, since = node.call, next(numbers)
    known = {i: value for (is_output, i), value in zip(node.rule.saved, values, strict=True) if not is_output}
    operands: list[Any] = []
    for i, (shape, dtype) in enumerate(zip(call.in_shapes, call.in_dtypes, strict=True)):
        operand = known.get(i)
        if operand is None:
            operand = zeros(shape, dtype=dtype, device=call.device)
        operands.append(independent(operand)[0] if node.needs[i] else operand)
    with set_recording(True):
        outputs = call.primitive.composite(*operands, **call.params)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [edge_of(x) for x, need in zip(operands, node.needs, strict=True) if need]
    roots = [(edge_of(o), g) for o, g in zip(outputs, gs, strict=False) if g is not None and o._requires_grad]
    found = iter(walk(roots, wanted, create_graph=True, retain_graph=True, oldest=since))
    return [next(found) if need else None for need in node.needs]


def _fitted(node: TapeNode, i: int, g: Tensor) -> Tensor:
    """A gradient summed back over broadcast axes and cast to its operand's dtype."""

    shape, dtype = node.call.in_shapes[i], node.call.in_dtypes[i]
    if g.array.shape != shape:
        g = sum_to(g, shape, operation=f"{node.name}.gradient")
    return g if g.array.dtype is dtype else astype(g, dtype)


def _owned(g: Tensor, shared: set[int]) -> Tensor:
    """`g` in memory of its own, so that a write into one leaf's gradient can't change another's or anything else.

    shared: the ids of the storages that another leaf has already taken, or that code outside this file has seen.
    """
    storage = g.array.storage
    if id(storage) in shared or not is_contiguous(g.array.view) or storage.nbytes != g.nbytes:
        return copy(g)
    shared.add(id(storage))
    return g


def _hooked(hooks: Sequence[Callable] | None, g: Tensor, shared: set[int]) -> Tensor:
    """Returns a gradient after the hooks, which may keep it or write into it: so they get a copy of their own."""
    if hooks:
        g = copy(g)
    for hook in tuple(hooks or ()):
        replaced = hook(g)
        if replaced is not None:
            if not isinstance(replaced, Tensor) or replaced.shape != g.shape or replaced.dtype is not g.dtype:
                raise GradientError(
                    f"hook: returned {describe('the gradient', replaced)}: "
                    f"it must be None or a tensor of shape {g.shape}, dtype {g.dtype.name}"
                )
            g = replaced
        shared.add(id(g.array.storage))
    return g


def _root_gradients(operation: str, outputs: Sequence[Tensor], given: Sequence[Tensor | None] | None):
    given = [None] * len(outputs) if given is None else given
    require_tensors(operation, **{f"output {i}": x for i, x in enumerate(outputs)})
    require_tensors(operation, **{f"gradient {i}": g for i, g in enumerate(given) if g is not None})
    if len(given) != len(outputs):
        raise ArgumentError(f"{operation}: {len(outputs)} outputs, {len(given)} gradients: give one for each")
    pairs = []
    for output, g in zip(outputs, given, strict=True):
        if not output._requires_grad:
            raise GradientError(f"{operation}: the output does not depend on any tensor with requires_grad=True")
        if g is None:
            if output.size != 1:
                raise GradientError(
                    f"{operation}: the output has shape {output.shape}: only a single element has a gradient "
                    "by itself; reduce it (mean, sum) or pass the gradient to start from"
                )
            g = ones_like(output)
        elif g.shape != output.shape or g.dtype is not output.dtype:
            raise GradientError(
                f"{operation}: {describe('output', output)}, {describe('gradient', g)}: they must be equal"
            )
        pairs.append((edge_of(output), g))
    return pairs


def backward(
    tensor: Tensor, gradient: Tensor | None = None, *, retain_graph: bool | None = None, create_graph: bool = False
):
    """Adds d(tensor)/d(leaf) to `.grad` of every leaf with requires_grad=True that `tensor` was computed from.

    What is added has the leaf's `grad_dtype`, and a gradient that is there already is added to in place. `gradient`, of
    the tensor's shape and dtype, is what the derivative is multiplied by; needed unless the tensor has one element.
    With `create_graph=True` the gradients can themselves be differentiated, and a new one is made of both. The graph is
    freed unless `retain_graph=True`. Raises GradientError where the tensor has no graph, or a saved value was
    overwritten.
    """
    roots = _root_gradients("backward", [tensor], [gradient])
    walk(roots, None, create_graph, create_graph if retain_graph is None else retain_graph)


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    output_gradients: Sequence[Tensor | None] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor | None]:
    """The gradients of `outputs` with respect to `inputs` (leaves or not), without touching any `.grad`.

    Returns one tensor for each input, or None where no output depends on it.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if not outputs:
        return [None] * len(inputs)
    require_tensors("gradients", **{f"input {i}": x for i, x in enumerate(inputs)})
    roots = _root_gradients("gradients", outputs, output_gradients)
    keep = create_graph if retain_graph is None else retain_graph
    found = walk(roots, [edge_of(x) for x in inputs], create_graph, keep)
    seen: set[int] = set()
    for i, g in enumerate(found):
        if g is not None:
            found[i] = copy(g) if id(g.array.storage) in seen else g
            seen.add(id(g.array.storage))
    return found


def independent(x: Tensor) -> tuple[Tensor, bool]:
    """`x` as a variable of its own, still connected to x's history if it has any; and whether it has."""
    if x._requires_grad and recording.get():
        return reshape(x, x.shape), True
    leaf = x.detach()
    leaf.requires_grad = True
    return leaf, False


class HookHandle:
    """Result of register_hook: `remove()` takes the hook away."""

    def __init__(self, hooks: list[Callable], hook: Callable):
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


def register_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
    """Calls `hook(gradient)` once the tensor's gradient is complete; what it returns, if not None, replaces it."""
    if not callable(hook):
        raise TypeError(f"register_hook: hook is {type(hook).__name__}: give a function of the gradient")
    if not tensor._requires_grad:
        raise GradientError("register_hook: the tensor does not require a gradient: set requires_grad=True first")
    if tensor.node is None:
        tensor._hooks = tensor._hooks or []
        hooks = tensor._hooks
    else:
        tensor.node.hooks = tensor.node.hooks or {}
        hooks = tensor.node.hooks.setdefault(tensor.node_output, [])
    hooks.append(hook)
    return HookHandle(hooks, hook)


def retain_grad(tensor: Tensor) -> None:
    """Makes backward add the gradient of a result to its `.grad`, as it does for leaves."""
    if not tensor.requires_grad or tensor.is_leaf:
        return
    reference = weakref.ref(tensor)

    def keep(g: Tensor) -> None:
        result = reference()
        if result is not None:
            result.grad = g if result.grad is None else result.grad + g

    register_hook(tensor, keep)
