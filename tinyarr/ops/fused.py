"""`@fused`: a composition of operations becomes one operation, for which a backend may have one kernel. Floor 1.

The composition is the definition. The rule of shapes, the gradient primitive, that one's composite and the gradient
rule are derived from it; a backend without a kernel runs it as it is written.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .. import eager
from ..device import Device
from ..dtypes import Dtype
from ..tape import no_grad
from ..tensor import Tensor
from ..transforms import vjp
from ..views import Shape
from .create import empty
from .primitive import Bounds, Call, Primitive, Rule, apply, executor

_NUMBERS = {"bool": True, "signed": 1, "float": 1.0}  # for Python scalars among the operands
Result = tuple[Shape, Dtype]


class Fused(Primitive):
    """A primitive made of its composite; `fused` says how.

    derived_gradient: the primitive that is its gradient: of the gradient `g` of the first output and of what is saved.
    None where it has no variables.
    """

    def __init__(
        self,
        name: str,
        composite: Callable,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        variables: Sequence[str] | None = None,
        saved: Sequence[str] | None = None,
        gradient: Callable | None = None,
        gradient_overwrites: int | None = None,
        **traits: Any,
    ):
        traits["follows_composite"] = gradient is None
        infer = _of_module(composite, functools.partial(_infer, composite))
        super().__init__(name, infer, inputs=inputs, outputs=outputs, composite=composite, **traits)
        kept = self.inputs if saved is None else tuple(saved)
        self._saved = tuple(
            (True, self.outputs.index(n)) if n in self.outputs else (False, self.inputs.index(n)) for n in kept
        )
        self._variables = [self.inputs.index(n) for n in (self.inputs if variables is None else variables)]
        self._at = [kept.index(n) + 1 if n in kept else None for n in self.inputs]  # each input's place among operands
        self.derived_gradient: Primitive | None = None
        functools.update_wrapper(self, composite, updated=())
        if not self._variables:
            return
        derive = self._infer_gradient if gradient is None else functools.partial(_infer, gradient)
        self.derived_gradient = Primitive(
            f"{name}_gradient",
            _of_module(composite, functools.partial(derive)),
            inputs=("g", *kept),
            outputs=[f"d{self.inputs[i]}" for i in self._variables],
            composite=self._pull if gradient is None else gradient,
            overwrites=gradient_overwrites,
            bounds=None if self.bounds is None or None in self._at else self._gradient_bounds,
        )

    def __call__(self, *operands: Any, **params: Any) -> Any:
        return apply(self, *operands, **params)

    @property
    def has_gradient(self) -> bool:
        return self.derived_gradient is not None

    def rule(self, call: Call, needs: tuple[bool, ...]) -> Rule:
        return Rule(self._saved, self._carry_back)

    def _carry_back(self, call: Call, needs, gs, values) -> Sequence[Tensor | None]:
        found: list[Tensor | None] = [None] * len(self.inputs)
        if gs[0] is not None:
            assert self.derived_gradient is not None
            grads = apply(self.derived_gradient, gs[0], *values, **call.params)
            for i, g in zip(self._variables, grads if isinstance(grads, tuple) else (grads,), strict=True):
                found[i] = g
        return found

    def _pull(self, g: Tensor, *kept: Any, **params: Any) -> Any:
        """The gradient's composite: the vjp of the composite's first output; saved outputs are caches, and not read."""
        inputs, composite = [kept[at - 1] for at in self._at if at is not None], self.composite
        assert composite is not None

        def result(*variables: Tensor) -> Tensor:
            given = list(inputs)
            for i, x in zip(self._variables, variables, strict=True):
                given[i] = x
            made = composite(*given, **params)
            return made[0] if isinstance(made, tuple) else made

        grads = vjp(result, *(inputs[i] for i in self._variables))[1](g)
        return grads if len(grads) > 1 else grads[0]

    def _infer_gradient(self, shapes: Sequence[Shape], types: Sequence[Dtype], **params: Any) -> list[Result]:
        places = [self._at[i] for i in self._variables]
        return [(shapes[at], types[at]) for at in places if at is not None]

    def _gradient_bounds(self, shapes: Sequence[Shape], params: dict[str, Any]) -> Bounds:
        assert self.bounds is not None
        places = [at for at in self._at if at is not None]
        found = self.bounds([shapes[at] for at in places], params)
        return found._replace(operand=places[found.operand])


def _of_module(composite: Callable, function: Callable) -> Callable:
    """The function as one of the composite's module, which says whether a primitive is tinyarr's own."""
    function.__module__ = composite.__module__
    return function


def _infer(composite: Callable, shapes: Sequence[Shape], types: Sequence[Any], **params: Any) -> list[Result]:
    """The shapes and dtypes of what a composite makes, which the device `meta` finds without computing anything."""
    meta, token = Device("meta"), executor.set(eager)
    try:
        with no_grad():
            operands = [
                _NUMBERS[dtype] if isinstance(dtype, str) else empty(shape, dtype=dtype, device=meta)
                for shape, dtype in zip(shapes, types, strict=True)
            ]
            made = composite(*operands, **params)
    finally:
        executor.reset(token)
    return [(x.shape, x.dtype) for x in (made if isinstance(made, tuple) else (made,))]


def fused(function: Callable | None = None, *, outputs: Sequence[str] = ("out",), **how: Any) -> Any:
    """Decorator: makes an operation of its own of a function of tensors, its composite, which other operations make up.

    The positional parameters are the operands; keyword-only ones are parameters. The operation bears the function's
    name, under which kernels are registered, and its gradient that name with `_gradient`. A composite reads each
    operand in one place, so that the gradient adds up in one order wherever it runs.

    outputs: the results' names. The first is differentiated; those behind it are caches, which are there for the
    gradient to read.
    variables: the operands that have a gradient; all, unless given. Without any, the operation is differentiated as
    the operations of its composite are.
    saved: the operands and results that the gradient reads beside `g`, in the order in which its kernels take them;
    all operands, unless given.
    gradient: its composite, `(g, *saved, **params)`; unless given, the vjp of the composite, for which all operands
    must be saved.
    gradient_overwrites: as Primitive's overwrites. Other keywords are Primitive's traits.

    >>> import tinyarr
    >>> from tinyarr.ops.fused import fused
    >>> @fused
    ... def soft_cap(x, *, most):
    ...     return tinyarr.tanh(x / most) * most
    >>> x = tinyarr.Tensor([0.0, 100.0], requires_grad=True)
    >>> soft_cap(x, most=30.0).sum().backward()
    >>> x.grad[0].item()
    1.0
    """
    if function is None:
        return functools.partial(fused, outputs=outputs, **how)
    parameters = inspect.signature(function).parameters.values()
    inputs = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return Fused(function.__name__.strip("_"), function, inputs=inputs, outputs=outputs, **how)
