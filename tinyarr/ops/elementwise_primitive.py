"""`@elementwise`: a function in the scalar language becomes an operation on tensors.

Shapes broadcast, dtypes follow from typing the expression, and the gradient is derived by differentiating it: it is
itself an elementwise primitive, so it runs as one kernel and can be differentiated again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from .. import views
from ..dtypes import Dtype
from ..errors import ArgumentError
from ..tensor import Tensor
from ..views import Shape
from .primitive import Call, Primitive, Rule, apply, is_built_in, parameter_key, registry
from .scalar import Expr, as_expr, derivative, substitute, variable, variables, with_gradient
from .typing import Typed, type_expression


class Pointwise(Primitive):
    """A primitive that goes through its operands element by element, as its expression says."""

    def __init__(self, name: str, infer: Callable, inputs: Sequence[str], outputs: Sequence[str], derived: bool):
        super().__init__(name, infer, inputs=inputs, outputs=outputs, derived=derived, reads="elements", cheap=True)

    def typed(self, shapes: tuple[Shape, ...], dtypes: tuple[Dtype | str, ...], params: dict[str, Any]) -> Typed:
        """The expression for backends: typed for these operands, 0-d ones (and Python scalars) uniform."""
        raise NotImplementedError


class Elementwise(Pointwise):
    """A primitive defined by a scalar expression.

    function(*inputs, **params) is written in the scalar language and returns an expression or a tuple of them.
    Called on tensors, the primitive is applied; called on expressions, it is inlined. The parameter `shape`, where
    the function has one, widens the result's shape (for draws, which have no tensor operand of that shape).
    """

    zeros: Callable[..., Tensor]  # which create.py puts here: creation is built on this module

    def __init__(
        self, name: str, function: Callable, inputs: Sequence[str], outputs: Sequence[str], derived: bool = False
    ):
        # Kernels are not found by name, so a user's operation may be called as one of tinyarr's own.
        unlisted = derived or (name in registry and not is_built_in(function))
        super().__init__(name, self._infer, inputs, outputs, unlisted)
        self.built_in = is_built_in(function)
        self.function = function
        self.__name__ = self.__qualname__ = name
        names = [f"x{i}" for i in range(len(self.inputs))] if derived else self.inputs
        positional = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names]
        options = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.__signature__ = inspect.Signature(positional + options)
        self._defaults = {p.name: p.default for p in options if p.default is not p.empty}
        self._by_hand: Callable | None = None
        self._vjps: dict[tuple, Callable] = {}
        self._expressions: dict[tuple, tuple[Expr, ...]] = {}
        self._derived: dict[tuple, tuple[Elementwise | None, tuple, tuple]] = {}

    def __reduce__(self):
        """By name: of tinyarr's own in the registry, of a user's as a function, in its module."""
        return (_registered, (self.name,)) if registry.get(self.name) is self and self.built_in else self.__qualname__

    def __repr__(self) -> str:
        return f"<elementwise operation {self.name}{self.__signature__}>"

    def __call__(self, *operands: Any, out: Any = None, **params: Any) -> Any:
        if self._defaults:
            params = self._defaults | params
        for x in operands:
            if isinstance(x, Expr):
                return self._inlined(tuple(map(as_expr, operands)), params)
        return apply(self, *operands, out=out, **params)

    def _inlined(self, operands: tuple[Expr, ...], params: dict[str, Any]) -> Any:
        """The expression of the operands, with this operation's own gradient where that isn't derived."""
        result = self.function(*operands, **params)
        if self._by_hand is None and not self.non_differentiable:
            return result
        outputs = result if isinstance(result, tuple) else (result,)
        wrapped = tuple(
            with_gradient(as_expr(o), operands, self._inlined_vjp(i, params)) for i, o in enumerate(outputs)
        )
        return wrapped if isinstance(result, tuple) else wrapped[0]

    def _inlined_vjp(self, output: int, params: dict[str, Any]) -> Callable:
        """The gradient through one output, the same object for the same parameters, so that equal nodes are shared."""
        key = (output, parameter_key(params))
        if key not in self._vjps:

            def vjp(g: Expr, out: Expr, *operands: Expr) -> list[Expr | None]:
                if self.non_differentiable:
                    return [None] * len(operands)
                cotangents = [g if i == output else as_expr(0) for i in range(len(self.outputs))]
                results = self.function(*operands, **params)
                return self._gradients_by_hand(
                    params, operands, cotangents, results if isinstance(results, tuple) else (out,)
                )

            self._vjps[key] = vjp
        return self._vjps[key]

    def __get__(self, instance, owner=None):
        return self if instance is None else MethodType(self, instance)

    def gradient(self, function: Callable) -> Callable:
        """Decorator: a gradient by hand, `(g, saved...) -> gradients`, in the scalar language.

        The parameters after `g` are named after inputs or outputs, as in `Primitive.gradient`. It returns an
        expression for each input, or the expression alone where there is one input.
        """
        others = {"g", *(f"g_{name}" for name in self.outputs), *self.outputs}
        if taken := sorted(others.intersection(self.inputs)):
            raise ArgumentError(
                f"{self.name}.gradient: an operand is called {taken[0]!r}, as a gradient or a result is: rename it"
            )
        known = {*others, *self.inputs}
        for p in inspect.signature(function).parameters.values():
            if p.name not in known and p.kind is not p.KEYWORD_ONLY:
                raise ArgumentError(f"{self.name}.gradient: parameter {p.name!r} is none of {sorted(known)}")
        self._by_hand = function
        return function

    @property
    def has_gradient(self) -> bool:
        return not self.non_differentiable

    def expressions(self, params: dict[str, Any]) -> tuple[Expr, ...]:
        """The outputs' expressions, traced once for each value of the parameters."""
        if "shape" in params:  # says how far to broadcast, not what to compute
            params = params | {"shape": None}
        key = parameter_key(params)
        if key not in self._expressions:
            result = self.function(*map(variable, range(len(self.inputs))), **params)
            self._expressions[key] = result if isinstance(result, tuple) else (result,)
        return self._expressions[key]

    def typed(self, shapes: tuple[Shape, ...], dtypes: tuple[Dtype | str, ...], params: dict[str, Any]) -> Typed:
        return _typed(self.name, self.expressions(params), dtypes, tuple(not shape for shape in shapes))

    def _infer(self, shapes, dtypes, **params):
        shape = views.broadcast_shapes(self.name, *shapes, *([params["shape"]] if "shape" in params else []))
        return [(shape, dtype) for dtype in self.typed(shapes, dtypes, params).dtypes]

    def rule(self, call: Call, needs: tuple[bool, ...]) -> Rule:
        """The derived gradient as one elementwise primitive over (cotangents, saved values)."""
        n, m = len(self.inputs), len(self.outputs)
        params = call.params
        key = (needs, parameter_key(params))
        if key not in self._derived:
            self._derived[key] = self._derive(params, needs)
        primitive, operands, slots = self._derived[key]
        saved = tuple((i >= n + m, (i - n - m) if i >= n + m else i) for i in operands if not n <= i < n + m)

        def backward(call, needs, gs, values):
            if any(gs[i - n] is None for i in operands if n <= i < n + m):
                gs = [
                    g if g is not None else self.zeros(call.out_shapes[i], dtype=call.out_dtypes[i], device=call.device)
                    for i, g in enumerate(gs)
                ]
            remaining = iter(values)
            arguments = [gs[i - n] if n <= i < n + m else next(remaining) for i in operands]
            if primitive is None:
                results: tuple = ()
            else:
                extra = {"shape": call.out_shapes[0]} if "shape" in call.params else {}
                results = apply(primitive, *arguments, **extra)
                results = results if isinstance(results, tuple) else (results,)
            picked: list[Tensor | None] = []
            for slot in slots:
                if slot is None:
                    picked.append(None)
                else:
                    kind, number = slot
                    picked.append(gs[number] if kind == "g" else results[number])
            return picked

        return Rule(saved, backward)

    def _derive(self, params: dict[str, Any], needs: tuple[bool, ...]):
        """(gradient primitive or None, numbers of its operands, where each input's gradient is found).

        Operand numbers count this primitive's inputs, then its cotangents, then its outputs. A gradient that is just a
        cotangent is passed through without a kernel.
        """
        n, m = len(self.inputs), len(self.outputs)
        outputs = self.expressions(params)
        cotangents = tuple(variable(n + j) for j in range(m))
        wanted = [i for i, need in enumerate(needs) if need]
        if self._by_hand is not None:
            operands_, results = map(variable, range(n)), map(variable, range(n + m, n + 2 * m))
            every = self._gradients_by_hand(params, tuple(operands_), cotangents, tuple(results))
            grads = [every[i] for i in wanted]
        else:
            grads = derivative(outputs, cotangents, wanted)
        given = [g for g in grads if g is not None and g not in set(cotangents)]
        saved_outputs = {o: variable(n + m + j) for j, o in enumerate(outputs) if o.args}
        through_outputs = substitute(given, saved_outputs)
        if any(i < n for i in variables(given)) and not any(i < n for i in variables(through_outputs)):
            grads = [g if g is None else substitute([g], saved_outputs)[0] for g in grads]
            given = list(through_outputs)
        operands = tuple(variables(given))
        slots: list = [None] * n
        for i, g in zip(wanted, grads, strict=True):
            if g is not None:
                passed = [j for j, c in enumerate(cotangents) if g is c]
                slots[i] = ("g", passed[0]) if passed else ("result", [h is g for h in given].index(True))
        if not given:
            return None, (), tuple(slots)
        names = self.inputs + tuple(f"g_{o}" for o in self.outputs) + self.outputs
        compact = {variable(i): variable(k) for k, i in enumerate(operands)}
        expressions = substitute(given, compact)
        primitive = Elementwise(
            f"{self.name}_gradient",
            lambda *_, **__: expressions,
            inputs=[names[i] for i in operands],
            outputs=[f"grad{i}" for i in range(len(given))],
            derived=True,
        )
        primitive.gradient_of = self
        return primitive, operands, tuple(slots)

    def _gradients_by_hand(self, params: dict[str, Any], operands, cotangents, results) -> list[Expr | None]:
        assert self._by_hand is not None
        named = dict(zip(self.inputs, operands, strict=True)) | dict(zip(self.outputs, results, strict=True))
        named |= {f"g_{name}": g for name, g in zip(self.outputs, cotangents, strict=True)} | {"g": cotangents[0]}
        names = inspect.signature(self._by_hand).parameters
        found = self._by_hand(*[named[k] for k in names if k in named], **{k: params[k] for k in names if k in params})
        return list(found) if isinstance(found, tuple) else [found]


_typed = functools.lru_cache(maxsize=4096)(type_expression)


def _registered(name: str) -> Primitive:
    return registry[name]


def elementwise(function: Callable | None = None, *, outputs: Sequence[str] = ("out",)) -> Any:
    """Decorator: makes an operation on tensors of a function in the scalar language.

    The positional parameters are the operands (tensors or Python scalars, broadcast together); keyword-only ones are
    parameters, fixed while tracing. One that returns several expressions names them: `@elementwise(outputs=...)`.

    >>> import tinyarr
    >>> @tinyarr.elementwise
    ... def cube(x):
    ...     return x * x * x
    >>> cube(tinyarr.Tensor([1.0, 2.0])).tolist()
    [1.0, 8.0]
    """
    if function is None:
        return functools.partial(elementwise, outputs=outputs)
    name = getattr(function, "__name__", type(function).__name__)
    inputs = []
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            continue
        if p.default is not p.empty or p.kind is p.VAR_POSITIONAL:
            raise ArgumentError(f"elementwise: {name}: {p.name} is no plain operand: put options behind a *")
        inputs.append(p.name)
    primitive = Elementwise(name.strip("_"), function, inputs, outputs)
    functools.update_wrapper(primitive, function)
    return primitive
