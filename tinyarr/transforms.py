"""Differentiating functions: vjp; functions with their own gradient; checkpoint. Floor 1."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import random
from .autograd import gradients, independent, walk
from .errors import ArgumentError, GradientError
from .ops.create import zeros, zeros_like
from .tape import (
    TapeNode,
    edge_of,
    gradient_spec,
    is_nested,
    nested,
    no_grad,
    numbers,
    reachable,
    record_custom,
    recording,
    repetition,
    set_recording,
)  # fmt: skip
from .tensor import Tensor, require_tensors, result_tensor
from .trees import leaves, mapped, rebuilt


def _tensors(operation: str, result: Any) -> list[Tensor]:
    """Returns all that is in the result of a differentiated function."""
    outputs = leaves(result)
    for o in outputs:
        if not isinstance(o, Tensor):
            came = type(o).__name__
            raise GradientError(f"{operation}: the function returned {came}: return a tensor or a tuple of tensors")
    return outputs


def vjp(function: Callable, *primals: Any, has_aux: bool = False) -> tuple:
    """`function(*primals)`, and the function that maps a gradient of its result to the gradients of the primals.

    Primals and result are tensors, or lists, tuples and dicts of them, and so are their gradients. The second function
    takes one gradient for each element of a tuple, and returns a tuple with one for each primal. With `has_aux` the
    function returns a tuple of its result and of anything else, which comes last.
    Source: the vector-Jacobian product of Baydin et al. 2018, "Automatic differentiation in machine learning", 3.2.
    """
    given = leaves(primals)
    if not given:
        raise ArgumentError("vjp: no primals came: pass the tensors at which to differentiate")
    require_tensors("vjp", **{f"primal {i}": x for i, x in enumerate(given)})
    variables, connected = zip(*map(independent, given), strict=True)
    first, token = next(numbers), nested.set(nested.get() + 1)
    try:
        with set_recording(True):
            result = function(*rebuilt(primals, variables))
    finally:
        nested.reset(token)
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise GradientError("vjp: the function must return a tuple of two where has_aux is True")
    result, *aux = result if has_aux else (result,)
    outputs = _tensors("vjp", result)
    again = any(connected) or is_nested() or (recording.get() and _reads_history(outputs, variables, first))

    def pull(*output_gradients: Any) -> tuple:
        given = leaves(output_gradients)
        pairs = [(o, g) for o, g in zip(outputs, given, strict=True) if o._requires_grad]
        record = again or any(g._requires_grad for _, g in pairs)
        roots, gs = [o for o, _ in pairs], [g for _, g in pairs]
        found = gradients(roots, variables, gs, create_graph=record, retain_graph=True)
        return rebuilt(primals, (zeros_like(x) if g is None else g for x, g in zip(variables, found, strict=True)))

    return (result, pull, *aux) if again else (detached(result), pull, *detached(aux))


def _reads_history(outputs: Sequence[Tensor], variables: Sequence[Tensor], first: int) -> bool:
    """Returns whether outputs come from tensors that need a gradient besides the variables, as a closure's may.

    Nodes recorded from the number `first` on are the function's own.
    """
    roots = [edge_of(o) for o in outputs if o._requires_grad]
    nodes = reachable(roots, first)
    known, edges = {*nodes, *variables}, itertools.chain(roots, *(node.edges for node in nodes))
    return any(edge is not None and edge[0] not in known for edge in edges)


def detached(result: Any) -> Any:
    return mapped(result, lambda x: x.detach() if isinstance(x, Tensor) else x)


def _enclosed(function: Callable) -> list[Tensor]:
    """The tensors that a function closes over."""
    cells = getattr(function, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Tensor)]


def custom_gradient(function: Callable) -> Callable:
    """Decorator: `function(*tensors, **params)` returns `(result, backward)` and so brings its own gradient.

    The result is a tensor or a tuple of them. `backward(*gradients of the results)` returns a gradient or None for
    each positional tensor. Operations inside the function are not recorded. When a gradient of the gradient is asked
    for, the function runs once more, recorded, so that whatever `backward` reads of it has a history.
    """

    def run(args, kwargs):
        returned = function(*args, **kwargs)
        if not (isinstance(returned, tuple) and len(returned) == 2 and callable(returned[1])):
            raise GradientError(f"{function.__name__}: must return (result, backward), the second a function")
        return returned

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        with no_grad(), random.draws() as drawn:
            result, back = run(args, kwargs)
        outputs = tuple(t.detach() for t in _tensors(function.__name__, result))
        tensors = [x for x in args if isinstance(x, Tensor)]
        if recording.get() and any(x._requires_grad for x in tensors):
            results = [(o.shape, o.dtype, o.device) for o in outputs]

            def rule(gs):
                backward = back
                if recording.get():
                    with random.replay(drawn):
                        _, backward = run(args, kwargs)
                given = zip(gs, results, strict=True)
                grads = backward(*(zeros(s, dtype=t, device=d) if g is None else g for g, (s, t, d) in given))
                grads = grads if isinstance(grads, tuple | list) else (grads,)
                if len(grads) != len(tensors):
                    raise GradientError(
                        f"{function.__name__}: backward returned {len(grads)} gradients "
                        f"for {len(tensors)} tensor arguments"
                    )
                return grads

            edges = [edge_of(x) if x._requires_grad else None for x in tensors]
            specs = [(x.shape, x.dtype) for x in tensors]
            record_custom(function.__name__, rule, specs, edges, outputs, _enclosed(back), tensors)
        return rebuilt(result, outputs)

    return evaluate


def checkpoint(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, keeping none of its intermediate values: backward computes them again.

    Random draws inside are repeated exactly. The function must not write into tensors. Raises GradientError in
    backward where it does other operations the second time, or reads what was overwritten since.
    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    if not recording.get():
        return function(*args, **kwargs)
    oldest = next(numbers)
    with random.draws() as drawn:
        result = function(*args, **kwargs)
    outputs = _tensors("checkpoint", result)
    roots = [edge_of(o) for o in outputs if o._requires_grad]
    inside = reachable(roots, oldest)
    if not inside:
        return result
    ends = roots + [edge for node in inside for edge in node.edges if edge is not None]
    edges = list(dict.fromkeys(e for e in ends if isinstance(e[0], Tensor) or e[0].number < oldest))
    operations = [_operation(node) for node in inside]
    # Weak: a value made inside must not be kept, and once it is gone nobody can have written into it.
    read = [(weakref.ref(storage), version) for node in inside for storage, version in filter(None, node.versions)]

    def rule(gs):
        for reference, version in read:
            storage = reference()
            if storage is not None and storage.version != version:
                raise GradientError("checkpoint: a tensor that the function reads was overwritten before backward")
        create_graph, since = recording.get(), next(numbers)
        token = repetition.set(since)
        try:
            with set_recording(True), random.replay(drawn):
                again = _tensors("checkpoint", function(*args, **kwargs))
        finally:
            repetition.reset(token)
        if [_operation(n) for n in reachable([edge_of(o) for o in again if o._requires_grad], since)] != operations:
            raise GradientError("checkpoint: the function did other operations when it ran again: has a mode changed?")
        pairs = [(edge_of(o), g) for o, g in zip(again, gs, strict=True) if g is not None]
        return walk(pairs, edges, create_graph, create_graph, since)

    passed = [x for x in (*args, *kwargs.values(), *(parent for parent, _ in edges)) if isinstance(x, Tensor)]
    plain = tuple(result_tensor(o.array) for o in outputs)
    record_custom("checkpoint", rule, [gradient_spec(e) for e in edges], edges, plain, passed + _enclosed(function))
    return rebuilt(result, (p if o._requires_grad else o for o, p in zip(outputs, plain, strict=True)))


def _operation(node: TapeNode) -> tuple:
    """Returns what must be the same when a function runs again."""
    return node.name, node.call.in_shapes, node.call.in_dtypes
