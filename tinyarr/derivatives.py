"""Derivatives of functions, built of vjp: gradients, jvp, and whole Jacobians and Hessians by vmap. Floor 5."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .batching.mapping import vmap
from .errors import ArgumentError, GradientError, describe
from .ops.create import ones_like, zeros_like
from .ops.more.spacing import eye
from .ops.shape import reshape
from .tape import is_nested, nested
from .tensor import Tensor, require_tensors
from .transforms import detached, vjp
from .trees import leaves, mapped, rebuilt


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
        chosen, of_chosen = _chosen("grad", function, numbers, args, kwargs)
        value, pull, *aux = vjp(of_chosen, *chosen, has_aux=has_aux)
        if not isinstance(value, Tensor) or value.size != 1:
            raise GradientError(
                f"grad: {describe(f'what {function.__name__} returned', value)}: it must have one element"
            )
        grads = pull(ones_like(value))
        return (value, *aux) if has_aux else value, grads[0] if isinstance(argnums, int) else grads

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


def jvp(function: Callable, primals: Sequence[Any], tangents: Sequence[Any], *, has_aux: bool = False) -> tuple:
    """`function(*primals)`, and how it changes in the direction of the tangents, one for each primal.

    Primals, tangents and result are tensors, or lists, tuples and dicts of them. With `has_aux` the function returns a
    tuple of its result and of anything else, which comes last.

    The vjp is linear in the gradient that it is given, and its own vjp is the Jacobian-vector product: no second
    system of rules is needed. Source: Townsend 2017, "A new trick for calculating Jacobian vector products".

    A product of the Hessian with a vector, without the Hessian:

    >>> import tinyarr
    >>> f = lambda x: (x * x * x).sum()
    >>> x, v = tinyarr.Tensor([1.0, 2.0]), tinyarr.Tensor([1.0, 0.5])
    >>> tinyarr.jvp(tinyarr.grad(f), (x,), (v,))[1]
    Tensor([6., 6.])
    """
    at, along = leaves(primals), leaves(tangents)
    require_tensors("jvp", **{f"primal {i}": x for i, x in enumerate(at)})
    require_tensors("jvp", **{f"tangent {i}": t for i, t in enumerate(along)})
    if len(at) != len(along):
        raise ArgumentError(f"jvp: {len(at)} primals, {len(along)} tangents: give one for each")
    for i, (x, t) in enumerate(zip(at, along, strict=True)):
        if x.shape != t.shape or x.dtype is not t.dtype:
            given = f"{describe(f'primal {i}', x)}, {describe(f'tangent {i}', t)}"
            raise ArgumentError(f"jvp: {given}: give a tangent of the primal's shape and dtype")
    token = nested.set(nested.get() + 1)
    try:
        result, pull, *aux = vjp(function, *primals, has_aux=has_aux)
        _, push = vjp(pull, mapped(result, zeros_like))
        (changes,) = push(*along)
    finally:
        nested.reset(token)
    if not is_nested() and not any(x._requires_grad for x in (*at, *along)):
        result, changes, aux = detached(result), detached(changes), detached(aux)
    return result, changes, *aux


def jacobian(function: Callable, argnums: int | Sequence[int] = 0, *, has_aux: bool = False) -> Callable:
    """A function that returns the Jacobian of `function` with respect to the arguments `argnums`.

    For a result of shape (M...) and an argument (N...) it is (M..., N...), in the argument's dtype: the derivative of
    each element of the one by each of the other. Of lists, tuples and dicts there is one for each pair: arranged as the
    result, and in it as the argument. One argument number gives one, a sequence a tuple. With `has_aux` the function
    returns a tuple of its result and of anything else, and so does this.

    The function runs once; its vjp is mapped over the rows of the identity, so it costs memory as M passes of backward
    at once do. Source: torch.func.jacrev.

    >>> import tinyarr
    >>> tinyarr.jacobian(lambda x: x * x.sum())(tinyarr.Tensor([1.0, 2.0]))
    Tensor([[4., 1.],
            [2., 5.]])
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(function, updated=())
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        chosen, of_chosen = _chosen("jacobian", function, numbers, args, kwargs)
        result, pull, *aux = vjp(of_chosen, *chosen, has_aux=has_aux)
        outputs = leaves(result)

        def rows(i: int) -> Any:
            """The Jacobian of one output: the gradients of each of its elements."""
            out = outputs[i]
            others = [zeros_like(o) for o in outputs]
            units = reshape(eye(out.size, dtype=out.dtype, device=out.device), (out.size, *out.shape))
            of_unit = vmap(lambda unit: pull(*others[:i], unit, *others[i + 1 :]), randomness="same")
            found = mapped(of_unit(units), lambda g: reshape(g, (*out.shape, *g.shape[1:])))
            return found[0] if isinstance(argnums, int) else found

        found = rebuilt(result, map(rows, range(len(outputs))))
        return (found, *aux) if has_aux else found

    return evaluate


def hessian(function: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """A function that returns the Hessian of `function`: the Jacobian of its gradient, (N..., N...) for an x (N...).

    The function must return a tensor of one element. Arguments as for jacobian. Source: torch.func.hessian.

    >>> import tinyarr
    >>> tinyarr.hessian(lambda x: x[0] ** 2 * x[1])(tinyarr.Tensor([1.0, 3.0]))
    Tensor([[6., 2.],
            [2., 0.]])
    """
    return jacobian(grad(function, argnums), argnums)


def _chosen(
    operation: str, function: Callable, numbers: Sequence[int], args: tuple, kwargs: dict[str, Any]
) -> tuple[list[Any], Callable]:
    """The arguments with these numbers, and the function of them alone. Raises ArgumentError for other than tensors.

    Of the outermost transformation nobody differentiates further: leaves are detached, so that no graph is kept.
    """
    for n in numbers:
        found = leaves(args[n]) if -len(args) <= n < len(args) else []
        wrong = [type(x).__name__ for x in found if not isinstance(x, Tensor)]
        if wrong or not found:
            came = (wrong or [type(args[n]).__name__ if -len(args) <= n < len(args) else "missing"])[0]
            raise ArgumentError(
                f"{operation}: argument {n} of {function.__name__} is {came}: it must be a tensor, or a list, tuple or "
                "dict of tensors, given by position; name the arguments to differentiate with argnums"
            )

    def of_chosen(*chosen: Any) -> Any:
        filled = list(args)
        for n, x in zip(numbers, chosen, strict=True):
            filled[n] = x
        return function(*filled, **kwargs)

    chosen = [args[n] for n in numbers]
    return chosen if is_nested() else mapped(chosen, lambda x: x.detach() if x.is_leaf else x), of_chosen
