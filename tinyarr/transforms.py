"""Differentiating functions: vjp, grad, value_and_grad; functions with their own gradient; checkpoint. Floor 1."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import random
from .autograd import gradients, independent, walk
from .errors import ArgumentError, GradientError, describe
from .ops.create import ones_like, zeros, zeros_like
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


def _tensors(operation: str, result: Any) -> tuple[Tensor, ...]:
    """Returns the result of a differentiated function as a tuple."""
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
    if not primals:
        raise ArgumentError("vjp: no primals came: pass the tensors at which to differentiate")
    require_tensors("vjp", **{f"primal {i}": x for i, x in enumerate(primals)})
    variables, connected = zip(*map(independent, primals), strict=True)
    first, token = next(numbers), nested.set(nested.get() + 1)
    try:
        with set_recording(True):
            result = function(*variables)
    finally:
        nested.reset(token)
    outputs = _tensors("vjp", result)
    again = any(connected) or is_nested() or (recording.get() and _reads_history(outputs, variables, first))

    def pull(*output_gradients: Tensor) -> tuple[Tensor, ...]:
        pairs = [(o, g) for o, g in zip(outputs, output_gradients, strict=True) if o._requires_grad]
        record = again or any(g._requires_grad for _, g in pairs)
        found = gradients(
            [o for o, _ in pairs], variables, [g for _, g in pairs], create_graph=record, retain_graph=True
        )
        return tuple(zeros_like(x) if g is None else g for x, g in zip(variables, found, strict=True))

    return (result if again else _detached(result)), pull


def _reads_history(outputs: Sequence[Tensor], variables: Sequence[Tensor], first: int) -> bool:
    """Returns whether outputs come from tensors that need a gradient besides the variables, as a closure's may.

    Nodes recorded from the number `first` on are the function's own.
    """
    roots = [edge_of(o) for o in outputs if o._requires_grad]
    edges = [*roots, *(edge for node in reachable(roots, first) for edge in node.edges if edge is not None)]
    return any(
        parent.number < first if isinstance(parent, TapeNode) else all(parent is not x for x in variables)
        for parent, _ in edges
    )


def _detached(result: Any) -> Any:
    return tuple(t.detach() for t in result) if isinstance(result, tuple) else result.detach()


def jvp(function: Callable, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Any, Any]:
    """`function(*primals)`, and how it changes in the direction of the tangents, one for each primal.

    The vjp is linear in the gradient that it is given, and its own vjp is the Jacobian-vector product: no second
    system of rules is needed. Source: Townsend 2017, "A new trick for calculating Jacobian vector products".

    A product of the Hessian with a vector, without the Hessian:

    >>> import tinyarr
    >>> f = lambda x: (x * x * x).sum()
    >>> x, v = tinyarr.Tensor([1.0, 2.0]), tinyarr.Tensor([1.0, 0.5])
    >>> tinyarr.jvp(tinyarr.grad(f), (x,), (v,))[1]
    Tensor([6., 6.])
    """
    require_tensors("jvp", **{f"tangent {i}": t for i, t in enumerate(tangents)})
    if len(primals) != len(tangents):
        raise ArgumentError(f"jvp: {len(primals)} primals, {len(tangents)} tangents: give one for each")
    for i, (x, t) in enumerate(zip(primals, tangents, strict=True)):
        if x.shape != t.shape or x.dtype is not t.dtype:
            raise ArgumentError(f"jvp: {describe(f'primal {i}', x)}, {describe(f'tangent {i}', t)}: they must be equal")
    token = nested.set(nested.get() + 1)
    try:
        result, pull = vjp(function, *primals)
        outputs = _tensors("jvp", result)
        _, push = vjp(pull, *(zeros_like(o) for o in outputs))
        changes = push(*tangents)
    finally:
        nested.reset(token)
    if not is_nested() and not any(x._requires_grad for x in (*primals, *tangents)):
        result, changes = _detached(result), _detached(changes)
    return result, changes if isinstance(result, tuple) else changes[0]


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A list, tuple or dict of any depth with all that is in it changed, or what is none of these changed itself."""
    if isinstance(tree, dict):
        return tree.copy() | {key: _mapped(part, change) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [_mapped(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return change(tree)


def value_and_grad(function: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns `(function(*args), gradient)`, the gradient with respect to the arguments `argnums`.

    The function must return a tensor of one element; with `has_aux` a tuple of that and of anything else, which is
    returned as it is, but for tensors without their history. An argument is a tensor, or lists, tuples and dicts of
    them, and so is its gradient. One argument number gives one gradient, a sequence a tuple.

    Value and gradient have a history, and can be differentiated by `backward`, where an argument has one, or the
    function reads tensors besides its arguments that need a gradient. Leaves among the arguments give them none.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        at: list[Any] = []
        for n in numbers:
            known = len(at)
            if -len(args) <= n < len(args):
                _mapped(args[n], at.append)
            wrong = [type(x).__name__ for x in at[known:] if not isinstance(x, Tensor)]
            if wrong or len(at) == known:
                came = (wrong or [type(args[n]).__name__ if -len(args) <= n < len(args) else "missing"])[0]
                raise ArgumentError(
                    f"grad: argument {n} of {function.__name__} is {came}: it must be a tensor, or a list, tuple or "
                    "dict of tensors, given by position; name the arguments to differentiate with argnums"
                )
        others: list[Any] = []

        def of_variables(*variables):
            filled, left = list(args), iter(variables)
            for n in numbers:
                filled[n] = _mapped(args[n], lambda _: next(left))
            result = function(*filled, **kwargs)
            if not has_aux:
                return result
            if not isinstance(result, tuple) or len(result) != 2:
                raise GradientError(f"grad: {function.__name__} must return a tuple of two where has_aux is True")
            others.append(result[1])
            return result[0]

        if not is_nested():  # outermost, nobody differentiates further: plain results, and no graph is kept
            at = [x.detach() if x.is_leaf else x for x in at]
        value, pull = vjp(of_variables, *at)
        if isinstance(value, tuple) or value.size != 1:
            raise GradientError(
                f"grad: {function.__name__} returned {describe('the value', value)}: it must have one element"
            )
        found = iter(pull(ones_like(value)))
        grads = tuple(_mapped(args[n], lambda _: next(found)) for n in numbers)
        if has_aux:
            is_kept = value._requires_grad
            value = value, _mapped(others[0], lambda x: x if is_kept or not isinstance(x, Tensor) else x.detach())
        return value, grads[0] if isinstance(argnums, int) else grads

    return evaluate


def grad(function: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns the gradient of `function` with respect to the arguments `argnums`. See value_and_grad.

    With `has_aux` it returns a tuple of that and of what else the function returned.

    >>> import tinyarr
    >>> tinyarr.grad(lambda x: x**3)(tinyarr.Tensor(2.0)).item()
    12.0
    """
    both = value_and_grad(function, argnums, has_aux=has_aux)

    @functools.wraps(function)
    def evaluate(*args, **kwargs):
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return evaluate


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
        return outputs if isinstance(result, tuple) else outputs[0]

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
    kept = tuple(p if o._requires_grad else o for o, p in zip(outputs, plain, strict=True))
    return kept if isinstance(result, tuple) else kept[0]


def _operation(node: TapeNode) -> tuple:
    """Returns what must be the same when a function runs again."""
    return node.name, node.call.in_shapes, node.call.in_dtypes
