"""`@elementwise`: a function in the scalar language becomes an operation on tensors. Floor 1.

Shapes broadcast, dtypes follow from typing the expression, and the gradient is derived by differentiating it: it is
itself an elementwise primitive, so it runs as one kernel and can be differentiated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from .. import views
from ..dtypes import Dtype
from ..tensor import Tensor
from ..views import Shape
from .expressed import Expressed, operation
from .primitive import Call, Primitive, Rule, apply, parameter_key
from .scalar import Expr, derivative, is_fold, substitute, topological, variable, variables
from .typing import Typed, type_expression


class Pointwise(Primitive):
    """A primitive that goes through its operands element by element, as its expression says."""

    def __init__(self, name: str, infer: Callable, inputs: Sequence[str], outputs: Sequence[str], derived: bool):
        super().__init__(name, infer, inputs=inputs, outputs=outputs, derived=derived, reads="elements", cheap=True)

    def typed(self, shapes: tuple[Shape, ...], dtypes: tuple[Dtype | str, ...], params: dict[str, Any]) -> Typed:
        """The expression for backends: typed for these operands, 0-d ones (and Python scalars) uniform."""
        raise NotImplementedError


class Elementwise(Expressed, Pointwise):
    """A primitive defined by a scalar expression.

    The parameter `shape`, where the function has one, widens the result's shape (for draws, which have no tensor
    operand of that shape).
    """

    zeros: Callable[..., Tensor]  # which create.py puts here: creation is built on this module

    def __init__(
        self, name: str, function: Callable, inputs: Sequence[str], outputs: Sequence[str], derived: bool = False
    ):
        Pointwise.__init__(self, name, self._infer, inputs, outputs, self.is_unlisted(name, function, derived))
        self.define(function, derived)

    def expressions(self, params: dict[str, Any]) -> tuple[Expr, ...]:
        if "shape" in params:  # says how far to broadcast, not what to compute
            params = params | {"shape": None}
        return super().expressions(params)

    def check(self, outputs: tuple[Expr, ...]) -> None:
        for node in topological(outputs):
            if node.op == "row_size" or is_fold(node):
                raise TypeError(f"elementwise: {self.name}: {node.op} goes over a row: use @rowwise")

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
            every = self.gradients_by_hand(params, tuple(operands_), cotangents, tuple(results))
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


_typed = functools.lru_cache(maxsize=4096)(type_expression)


def elementwise(function: Callable | None = None, *, outputs: Sequence[str] = ("out",)) -> Any:
    """Decorator: makes an operation on tensors of a function in the scalar language.

    The positional parameters are the operands (tensors or Python scalars, broadcast together); keyword-only ones are
    parameters, fixed while tracing. One that returns several expressions names them: `@elementwise(outputs=...)`.
    It is traced once for each value of these: a global variable that it reads stays as it was then.

    >>> import tinyarr
    >>> @tinyarr.elementwise
    ... def cube(x):
    ...     return x * x * x
    >>> cube(tinyarr.Tensor([1.0, 2.0])).tolist()
    [1.0, 8.0]
    """
    if function is None:
        return functools.partial(elementwise, outputs=outputs)
    primitive = Elementwise(*operation("elementwise", function, outputs))
    functools.update_wrapper(primitive, function)
    return primitive
