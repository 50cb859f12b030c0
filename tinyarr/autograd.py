"""The tape and what walks it: backward, grad, value_and_grad, vjp, no_grad, custom gradients, checkpoint, hooks.

`apply` puts a Node on the tape for each operation that a gradient passes through. A node knows its operands' nodes,
what it saved, and its rule; walking the nodes from the last recorded to the first gives every node the whole gradient
of its outputs before it is asked for that of its inputs. Rules are written with public operations, so a walk can
itself be recorded (`create_graph=True`) and differentiated again.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from . import random
from .dtypes import Dtype
from .errors import ArgumentError, GradientError, describe
from .tensor import Tensor, method, result_tensor
from .views import Shape

recording: ContextVar[bool] = ContextVar("recording", default=True)
_nested: ContextVar[int] = ContextVar("nested", default=0)
_numbers = itertools.count()


class Node:
    """One recorded operation: what backward needs of it.

    number: nodes are numbered as they are recorded, so every user of a node has a higher number than it.
    edges: for each operand that needs a gradient (parent, output): the node and which output of it the operand was,
    or the leaf tensor itself and 0; None for the others.
    saved, versions: the saved values, and the version of their storage when they were saved.
    """

    __slots__ = ("call", "edges", "hooks", "needs", "number", "rule", "saved", "versions")

    def __init__(self, call, rule, needs, edges, saved, versions):
        self.number = next(_numbers)
        self.call = call
        self.rule = rule
        self.needs = needs
        self.edges = edges
        self.saved = saved
        self.versions = versions
        self.hooks: dict[int, list[Callable]] | None = None

    @property
    def name(self) -> str:
        return self.call.primitive.name


Edge = tuple[Any, int]


def record(call, operands: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Puts a node on the tape: `outputs` were computed from `operands` by `call`."""
    needs: list[bool] = []
    edges: list[Edge | None] = []
    for x in operands:
        if isinstance(x, Tensor) and x._requires_grad:
            needs.append(True)
            edges.append(edge_of(x))
        else:
            needs.append(False)
            edges.append(None)
    key = tuple(needs)
    rule = call.rules.get(key) or call.rule(key)
    saved: list = []
    versions: list = []
    for is_output, i in rule.saved:
        value = outputs[i] if is_output else operands[i]
        if isinstance(value, Tensor):
            # An output is saved without its node: the node must not hold itself alive.
            saved.append(result_tensor(value.array) if is_output else value)
            versions.append(value.array.storage.version)
        else:
            saved.append(value)
            versions.append(None)
    attach(Node(call, rule, key, edges, saved, versions), outputs)


def edge_of(x: Tensor) -> Edge:
    """Where the gradient of a tensor goes: (its node, which output of it), or (the leaf itself, 0)."""
    return (x, 0) if x.node is None else (x.node, x.node_output)


def attach(node: Node, outputs: Sequence[Tensor]) -> None:
    """Makes `node` the one that computed `outputs`."""
    for i, t in enumerate(outputs):
        if t.array.dtype.is_float:
            t.node = node
            t.node_output = i
            t._requires_grad = True


@contextlib.contextmanager
def _recording(on: bool):
    token = recording.set(on)
    try:
        yield
    finally:
        recording.reset(token)


def no_grad():
    """Context manager and decorator: operations inside are not recorded."""
    return _recording(False)


def enable_grad():
    """Context manager and decorator: operations inside are recorded, also within no_grad()."""
    return _recording(True)


def _reachable(roots: Sequence[Edge], oldest: int = 0) -> list[Node]:
    """The nodes from which the roots were computed, numbered `oldest` or above, latest first."""
    found: dict[int, Node] = {}
    stack = [parent for parent, _ in roots if isinstance(parent, Node)]
    while stack:
        node = stack.pop()
        if node.number < oldest or node.number in found:
            continue
        found[node.number] = node
        stack.extend(edge[0] for edge in node.edges if edge is not None and isinstance(edge[0], Node))
    return [found[n] for n in sorted(found, reverse=True)]


def _leading(nodes: Sequence[Node], targets: set[Edge]) -> set[Node]:
    """The nodes from which a gradient flows on to one of the targets."""
    stops = {parent for parent, _ in targets}
    leading: set[Node] = set()
    for node in reversed(nodes):
        if any(edge is not None and (edge[0] in leading or edge[0] in stops) for edge in node.edges):
            leading.add(node)
    return leading


def _uses_of_leaves(nodes: Sequence[Node]) -> dict[Tensor, int]:
    """How many gradients each leaf waits for."""
    uses: dict[Tensor, int] = {}
    for node in nodes:
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Tensor):
                uses[edge[0]] = uses.get(edge[0], 0) + 1
    return uses


def _walk(
    roots: Sequence[tuple[Edge, Tensor]],
    targets: Sequence[Edge] | None,
    create_graph: bool,
    retain_graph: bool,
    oldest: int | None = None,
) -> list[Tensor | None]:
    """Carries the gradients of `roots` back. With `targets`, returns their gradients; else adds to leaves' `.grad`.

    With `oldest`, only the nodes numbered so or above are walked. The targets, leaves or older than that, get what
    arrives at them: it is a part of their gradients, so their hooks are left to the walk that collects the whole.
    """
    from .ops.elementwise import add  # here: operations are built on the tape

    partial, oldest = oldest is not None, oldest or 0
    nodes = _reachable([edge for edge, _ in roots], oldest)
    wanted: set[Edge] = set(targets or ())
    leading = set(nodes) if targets is None else _leading(nodes, wanted)
    uses = _uses_of_leaves(nodes)

    pending: dict[Edge, Tensor] = {}
    shared: set[int] = {id(g.array.storage) for _, g in roots}
    heap: list[tuple[int, Node]] = []
    queued: set[Node] = set()
    captured: dict[Edge, Tensor] = {}

    def arrive(edge: Edge, g: Tensor) -> None:
        pending[edge] = add(pending[edge], g) if edge in pending else g
        parent = edge[0]
        if isinstance(parent, Node) and parent.number >= oldest and parent not in queued:
            queued.add(parent)
            heapq.heappush(heap, (-parent.number, parent))

    def settle(leaf: Tensor) -> None:
        """All of a leaf's gradient has arrived."""
        if partial or (leaf, 0) not in pending or (targets is not None and (leaf, 0) not in wanted):
            return
        g = pending.pop((leaf, 0))
        g = _hooked(leaf._hooks, g, shared)
        if targets is not None:
            captured[leaf, 0] = g
        else:
            leaf.grad = _owned(g, shared) if leaf.grad is None else add(leaf.grad, g)

    with _recording(create_graph):
        for edge, g in roots:
            arrive(edge, g)
        for (parent, _), _ in roots:
            if isinstance(parent, Tensor) and parent not in uses:
                settle(parent)
        while heap:
            _, node = heapq.heappop(heap)
            gs: list[Tensor | None] = []
            for i in range(len(node.call.out_shapes)):
                arrived = pending.pop((node, i), None)
                if arrived is not None:
                    if node.hooks is not None:
                        arrived = _hooked(node.hooks.get(i), arrived, shared)
                    if (node, i) in wanted:
                        captured[node, i] = arrived
                gs.append(arrived)
            if node not in leading:
                continue
            grads = _backward(node, gs, create_graph)
            if isinstance(node.rule, _Custom):
                shared.update(id(g.array.storage) for g in grads if g is not None)
            if not retain_graph:
                node.saved = node.rule = None
            for i, (edge, found) in enumerate(zip(node.edges, grads, strict=True)):
                if edge is None:
                    continue
                if found is not None:
                    arrive(edge, _fitted(node, i, found))
                if isinstance(edge[0], Tensor):
                    uses[edge[0]] -= 1
                    if not uses[edge[0]]:
                        settle(edge[0])
    return [captured.get(edge, pending.get(edge)) for edge in targets or ()]


def _backward(node: Node, gs: Sequence[Tensor | None], create_graph: bool) -> Sequence[Tensor | None]:
    """The gradients of a node's operands from those of its outputs."""
    if node.saved is None:
        raise GradientError(
            f"backward: the graph through {node.name} was freed by an earlier backward: give that one retain_graph=True"
        )
    values = []
    for (is_output, i), value, version in zip(node.rule.saved, node.saved, node.versions, strict=True):
        if version is not None and value.array.storage.version != version:
            which = (node.call.primitive.outputs if is_output else node.call.primitive.inputs)[i]
            raise GradientError(
                f"backward: {node.name} saved {which} {value.shape}, which was overwritten since "
                f"(version {version}, now {value.array.storage.version}): write before the forward pass or into a copy"
            )
        if is_output and create_graph:
            value = result_tensor(value.array)
            value.node, value.node_output, value._requires_grad = node, i, True
        values.append(value)
    if create_graph and node.call.primitive.composite is not None:
        return _backward_of_composite(node, gs, values)
    return node.rule.backward(node.call, node.needs, gs, values)


def _backward_of_composite(node: Node, gs: Sequence[Tensor | None], values: Sequence[Any]) -> Sequence[Tensor | None]:
    """The gradients as the vjp of the primitive's plain definition, which can be differentiated again.

    Saved outputs are caches and recomputed. An input that the rule did not save cannot influence the gradient, so
    zeros may stand in for its value.
    """
    from .ops.create import zeros

    call, since = node.call, next(_numbers)
    known = {i: value for (is_output, i), value in zip(node.rule.saved, values, strict=True) if not is_output}
    operands: list[Any] = []
    for i, (shape, dtype) in enumerate(zip(call.in_shapes, call.in_dtypes, strict=True)):
        operand = known.get(i)
        if operand is None:
            operand = zeros(shape, dtype=dtype, device=call.device)
        operands.append(_independent(operand)[0] if node.needs[i] else operand)
    with _recording(True):
        outputs = call.primitive.composite(*operands, **call.params)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [edge_of(x) for x, need in zip(operands, node.needs, strict=True) if need]
    roots = [(edge_of(o), g) for o, g in zip(outputs, gs, strict=False) if g is not None and o._requires_grad]
    found = iter(_walk(roots, wanted, create_graph=True, retain_graph=True, oldest=since))
    return [next(found) if need else None for need in node.needs]


def _fitted(node: Node, i: int, g: Tensor) -> Tensor:
    """A gradient summed back over broadcast axes and cast to its operand's dtype."""
    from .ops.elementwise import astype
    from .ops.reduce import sum_to

    shape, dtype = node.call.in_shapes[i], node.call.in_dtypes[i]
    if g.array.shape != shape:
        g = sum_to(g, shape, operation=f"{node.name}.gradient")
    return g if g.array.dtype is dtype else astype(g, dtype)


def _owned(g: Tensor, shared: set[int]) -> Tensor:
    """`g` in memory of its own, so that a write into one leaf's gradient can't change another's or anything else.

    shared: the ids of the storages that another leaf has already taken, or that code outside this file has seen.
    """
    from .ops.create import copy
    from .views import is_contiguous

    storage = g.array.storage
    if id(storage) in shared or not is_contiguous(g.array.view) or storage.nbytes != g.nbytes:
        return copy(g)
    shared.add(id(storage))
    return g


def _hooked(hooks: Sequence[Callable] | None, g: Tensor, shared: set[int]) -> Tensor:
    """What the hooks make of a gradient, which they may keep."""
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
    from .ops.create import ones_like

    given = [None] * len(outputs) if given is None else given
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


@method()
def backward(
    tensor: Tensor, gradient: Tensor | None = None, *, retain_graph: bool | None = None, create_graph: bool = False
):
    """Adds d(tensor)/d(leaf) to `.grad` of every leaf with requires_grad=True that `tensor` was computed from.

    `gradient`, of the tensor's shape and dtype, is what the derivative is multiplied by; needed unless the tensor
    has one element. With `create_graph=True` the gradients can themselves be differentiated. The graph is freed unless
    `retain_graph=True`. Raises GradientError where the tensor has no graph, or a saved value was overwritten.
    """
    roots = _root_gradients("backward", [tensor], [gradient])
    _walk(roots, None, create_graph, create_graph if retain_graph is None else retain_graph)


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
    roots = _root_gradients("gradients", outputs, output_gradients)
    return _walk(
        roots, [edge_of(x) for x in inputs], create_graph, create_graph if retain_graph is None else retain_graph
    )


def _independent(x: Tensor) -> tuple[Tensor, bool]:
    """`x` as a variable of its own, still connected to x's history if it has any; and whether it has."""
    if x._requires_grad and recording.get():
        from .ops.shape import reshape

        return reshape(x, x.shape), True
    leaf = x.detach()
    leaf.requires_grad = True
    return leaf, False


def _tensors(operation: str, result: Any) -> tuple[Tensor, ...]:
    """What a differentiated function returned, as a tuple."""
    outputs = result if isinstance(result, tuple) else (result,)
    for o in outputs:
        if not isinstance(o, Tensor):
            came = type(o).__name__
            raise GradientError(f"{operation}: the function returned {came}: return a tensor or a tuple of tensors")
    return outputs


def vjp(function: Callable, *primals: Tensor) -> tuple[Any, Callable]:
    """`function(*primals)`, and the function that maps a gradient of its result to the gradients of the primals.

    The result may be a tensor or a tuple of tensors; the second function takes one gradient for each.
    Source: the vector-Jacobian product of Baydin et al. 2018, "Automatic differentiation in machine learning", 3.2.
    """
    variables, connected = zip(*map(_independent, primals), strict=True)
    token = _nested.set(_nested.get() + 1)
    try:
        with _recording(True):
            result = function(*variables)
    finally:
        _nested.reset(token)
    outputs = _tensors("vjp", result)
    again = any(connected) or _nested.get() > 0

    def pull(*output_gradients: Tensor) -> tuple[Tensor, ...]:
        from .ops.create import zeros_like

        pairs = [(o, g) for o, g in zip(outputs, output_gradients, strict=True) if o._requires_grad]
        found = gradients(
            [o for o, _ in pairs], variables, [g for _, g in pairs], create_graph=again, retain_graph=True
        )
        return tuple(zeros_like(x) if g is None else g for x, g in zip(variables, found, strict=True))

    return (result if again else _detached(result)), pull


def _detached(result: Any) -> Any:
    return tuple(t.detach() for t in result) if isinstance(result, tuple) else result.detach()


def value_and_grad(function: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns `(function(*args), gradient)`, the gradient with respect to the arguments `argnums`.

    The function must return a tensor of one element. One argument number gives a tensor, a sequence a tuple.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        for n in numbers:
            if not -len(args) <= n < len(args) or not isinstance(args[n], Tensor):
                raise ArgumentError(f"grad: argument {n} of {function.__name__} must be a positional tensor")

        def of_variables(*variables):
            filled = list(args)
            for n, variable in zip(numbers, variables, strict=True):
                filled[n] = variable
            return function(*filled, **kwargs)

        from .ops.create import ones_like

        value, pull = vjp(of_variables, *(args[n] for n in numbers))
        if isinstance(value, tuple) or value.size != 1:
            raise GradientError(
                f"grad: {function.__name__} returned {describe('the value', value)}: it must have one element"
            )
        found = pull(ones_like(value))
        return value, found[0] if isinstance(argnums, int) else found

    return evaluate


def grad(function: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the gradient of `function` with respect to the arguments `argnums`. See value_and_grad.

    >>> import tinyarr
    >>> tinyarr.grad(lambda x: x**3)(tinyarr.tensor(2.0)).item()
    12.0
    """
    both = value_and_grad(function, argnums)

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        return both(*args, **kwargs)[1]

    return evaluate


class _Custom:
    """What stands in for a Call and its Rule where a Python function, not a primitive, says how to go backward.

    `function` maps the gradients of the outputs (None where there is none) to those of the operands, of which `specs`
    gives shape and dtype. `read` are the tensors that it will read, which must not be overwritten until then.
    """

    composite = None

    def __init__(self, name: str, function: Callable, specs, outputs: Sequence[Tensor], read: Sequence[Tensor]):
        self.primitive = self
        self.name = name
        self.function = function
        self.in_shapes, self.in_dtypes = zip(*specs, strict=True)
        self.out_shapes = tuple(o.shape for o in outputs)
        self.out_dtypes = tuple(o.dtype for o in outputs)
        self.inputs = ("a tensor",) * len(read)
        self.saved = tuple((False, i) for i in range(len(read)))

    def backward(self, call, needs, gs, values):
        return self.function(gs)


def _record_custom(name: str, function: Callable, specs, edges: Sequence[Edge | None], outputs, read) -> None:
    """Puts a node on the tape whose rule is `function`; see _Custom."""
    custom = _Custom(name, function, specs, outputs, read)
    needs = tuple(edge is not None for edge in edges)
    attach(Node(custom, custom, needs, edges, list(read), [x.array.storage.version for x in read]), outputs)


def _enclosed(function: Callable) -> list[Tensor]:
    """The tensors that a function closes over."""
    cells = getattr(function, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Tensor)]


def custom_gradient(function: Callable) -> Callable:
    """Decorator: `function(*tensors, **params)` returns `(result, backward)` and so brings its own gradient.

    The result is a tensor or a tuple of them. `backward(*gradients of the results)` returns a gradient or None for
    each positional tensor. Operations inside the function are not recorded; those inside `backward` are, when a
    gradient of the gradient is asked for: it then flows through the function's arguments, not through its results.
    """

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        with no_grad():
            result, back = function(*args, **kwargs)
        outputs = tuple(t.detach() for t in _tensors(function.__name__, result))
        tensors = [x for x in args if isinstance(x, Tensor)]
        if recording.get() and any(x._requires_grad for x in tensors):
            from .ops.create import zeros

            results = [(o.shape, o.dtype, o.device) for o in outputs]

            def rule(gs):
                given = zip(gs, results, strict=True)
                grads = back(*(zeros(s, dtype=t, device=d) if g is None else g for g, (s, t, d) in given))
                grads = grads if isinstance(grads, tuple | list) else (grads,)
                if len(grads) != len(tensors):
                    raise GradientError(
                        f"{function.__name__}: backward returned {len(grads)} gradients "
                        f"for {len(tensors)} tensor arguments"
                    )
                return grads

            edges = [edge_of(x) if x._requires_grad else None for x in tensors]
            specs = [(x.shape, x.dtype) for x in tensors]
            _record_custom(function.__name__, rule, specs, edges, outputs, _enclosed(back))
        return outputs if isinstance(result, tuple) else outputs[0]

    return evaluate


def checkpoint(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, keeping none of its intermediate values: backward computes them again.

    Random draws inside are repeated exactly. The function must not write into tensors. Source: Chen et al. 2016,
    "Training deep nets with sublinear memory cost".
    """
    if not recording.get():
        return function(*args, **kwargs)
    oldest = next(_numbers)
    with random.draws() as drawn:
        result = function(*args, **kwargs)
    outputs = _tensors("checkpoint", result)
    roots = [edge_of(o) for o in outputs if o._requires_grad]
    inside = _reachable(roots, oldest)
    if not inside:
        return result
    ends = roots + [edge for node in inside for edge in node.edges if edge is not None]
    edges = list(dict.fromkeys(e for e in ends if isinstance(e[0], Tensor) or e[0].number < oldest))

    def rule(gs):
        create_graph, since = recording.get(), next(_numbers)
        with _recording(True), random.replay(drawn):
            again = _tensors("checkpoint", function(*args, **kwargs))
        pairs = [(edge_of(o), g) for o, g in zip(again, gs, strict=True) if g is not None]
        return _walk(pairs, edges, create_graph, create_graph, since)

    passed = [x for x in (*args, *kwargs.values(), *(parent for parent, _ in edges)) if isinstance(x, Tensor)]
    plain = tuple(result_tensor(o.array) for o in outputs)
    _record_custom("checkpoint", rule, [_spec(e) for e in edges], edges, plain, passed + _enclosed(function))
    kept = tuple(p if o._requires_grad else o for o, p in zip(outputs, plain, strict=True))
    return kept if isinstance(result, tuple) else kept[0]


def _spec(edge: Edge) -> tuple[Shape, Dtype]:
    """Shape and dtype of the tensor that an edge stands for."""
    parent, output = edge
    if isinstance(parent, Tensor):
        return parent.shape, parent.dtype
    return parent.call.out_shapes[output], parent.call.out_dtypes[output]


class HookHandle:
    """What register_hook returns: `remove()` takes the hook away."""

    def __init__(self, hooks: list[Callable], hook: Callable):
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


@method()
def register_hook(tensor: Tensor, hook: Callable[[Tensor], Tensor | None]) -> HookHandle:
    """Calls `hook(gradient)` once the tensor's gradient is complete; what it returns, if not None, replaces it."""
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
