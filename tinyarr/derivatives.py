"""Derivatives built of vjp: jvp, and whole Jacobians and Hessians by vmap. Floor 5."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .batching.mapped import vmap
from .errors import ArgumentError, describe
from .ops.create import zeros_like
from .ops.more.spacing import eye
from .ops.shape import reshape
from .tape import is_nested, nested
from .tensor import require_tensors
from .transforms import chosen_arguments, detached, grad, leaves, mapped, rebuilt, vjp


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
        chosen, of_chosen = chosen_arguments("jacobian", function, numbers, args, kwargs)
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
