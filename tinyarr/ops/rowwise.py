"""`@rowwise`: a function of rows and statistics becomes an operation on tensors. Floor 1.

Operands broadcast as those of an elementwise operation do, and the last axis is the row. So an operand (..., n) is a
row, (..., 1) a number for each row, (n,) one for each column, as weights are. A result that varies along the row has
the shape of the whole, and its dtype as in elementwise operations; a statistic is (..., 1), and keeps the dtype in
which it is computed, float32 for half types.

The gradient is derived: where an operand was broadcast, its gradient is summed over the row, or over the rows. It is
itself a row expression, so it runs as one kernel and can be differentiated again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import views
from ..dtypes import Dtype
from ..errors import ShapeError
from ..tensor import Tensor
from ..views import Shape
from .expressed import Expressed, operation
from .primitive import Bounds, Call, Rule, apply, parameter_key
from .row import Variation, size
from .scalar import (
    Expr,
    as_expr,
    cast,
    column_sum,
    derivative,
    row_sum,
    substitute,
    topological,
    variable,
    variables,
    without_gradients,
)
from .shape import broadcast_to, reshape
from .typing import Typed, type_expression


class Gradient(NamedTuple):
    """A derived gradient: its primitive, the numbers of its operands, and where each input's gradient is found.

    Numbers count the differentiated primitive's inputs, then its cotangents, then its outputs. A place is ("result", i)
    or, for a gradient that is just a cotangent, ("cotangent", i). saves_rows: it is made of rows that are outputs.
    """

    primitive: Rowwise | None
    operands: tuple[int, ...]
    places: tuple[tuple[str, int] | None, ...]
    saves_rows: bool = False


class Rowwise(Expressed):
    """A primitive defined by a row expression.

    stored: the dtypes of the results, where they don't follow from the expression.
    The parameter `shape`, which gradients have, widens the operands' common shape.
    """

    # (primitive, operands, params) -> its results by other operations, which rowwise_composite.py puts here
    composed: Callable[[Rowwise, Sequence[Any], dict[str, Any]], Any]

    def __init__(
        self,
        name: str,
        function: Callable,
        inputs: Sequence[str],
        outputs: Sequence[str],
        derived: bool = False,
        stored: tuple[Dtype, ...] | None = None,
        overwrites: int | None = 0,
        bounds: Callable[..., Bounds] | None = None,
    ):
        super().__init__(
            name, self._infer, inputs=inputs, outputs=outputs, derived=self.is_unlisted(name, function, derived),
            composite=self._composed, reads="runs" if overwrites == 0 else "any", overwrites=overwrites, cheap=True,
            bounds=bounds,
        )  # fmt: skip
        self.define(function, derived)
        self._stored = stored
        self._typed: dict[tuple, Typed] = {}
        self._sized: dict[tuple, tuple[Expr, ...]] = {}
        self._variations: dict[tuple[bool, ...], Variation] = {}

    def check(self, outputs: tuple[Expr, ...]) -> None:
        for node in topological(outputs):
            if any(a.op == "column_sum" for a in node.args):
                raise TypeError(f"rowwise: {self.name}: a sum over rows can only be a result")

    def shape(self, shapes: Sequence[Shape], params: dict[str, Any]) -> Shape:
        """The shape of all rows: (..., n)."""
        shape = views.broadcast_shapes(self.name, *shapes, *([params["shape"]] if "shape" in params else []))
        if not shape:
            raise ShapeError(f"{self.name}: the operands have no axis: it goes over the last one")
        return shape

    def variation(self, shapes: Sequence[Shape], params: dict[str, Any]) -> Variation:
        """Tells which expressions of operands of these shapes vary along the row."""
        row = self.shape(shapes, params)[-1:]
        varying = tuple(s[-1:] == row for s in shapes)
        if varying not in self._variations:
            self._variations[varying] = Variation(varying)
        return self._variations[varying]

    @staticmethod
    def parameter_key(params: dict[str, Any]) -> tuple:
        """Equal for parameters that give equal expressions."""
        return parameter_key({k: v for k, v in params.items() if k != "shape"})

    def expressions(self, params: dict[str, Any]) -> tuple[Expr, ...]:
        return super().expressions({k: v for k, v in params.items() if k != "shape"})

    def sized(self, shapes: Sequence[Shape], params: dict[str, Any]) -> tuple[Expr, ...]:
        """The outputs' expressions for operands of these shapes: with the size of a row as a number."""
        n = self.shape(shapes, params)[-1]
        key = n, self.parameter_key(params)
        if key not in self._sized:
            outputs = without_gradients(self.expressions(params))
            self._sized[key] = tuple(substitute(outputs, {size: as_expr(n)}))
        return self._sized[key]

    def typed(self, shapes: tuple[Shape, ...], dtypes: tuple[Dtype | str, ...], params: dict[str, Any]) -> Typed:
        """The expression for backends: typed for these operands, 0-d ones (and Python scalars) uniform."""
        uniform = tuple(not s for s in shapes)
        key = self.parameter_key(params), dtypes, uniform, self.shape(shapes, params)[-1]
        if key not in self._typed:
            outputs = self.sized(shapes, params)
            if self._stored:  # float8 has no implicit casts, and a gradient mixes it with statistics
                inputs = {variable(k): d for k, d in enumerate(dtypes) if isinstance(d, Dtype) and d.compute is not d}
                outputs = substitute(outputs, {x: cast(x, d.compute) for x, d in inputs.items()})
            typed = type_expression(self.name, outputs, dtypes, uniform)
            varies = Variation([True] * len(self.inputs))
            found = [t if varies(o) else t.compute for o, t in zip(outputs, typed.dtypes, strict=True)]
            self._typed[key] = Typed(typed.values, typed.outputs, self._stored or tuple(found))
        return self._typed[key]

    def _infer(self, shapes, dtypes, **params):
        *rows, n = self.shape(shapes, params)
        varies = self.variation(shapes, params)
        found = []
        for o, dtype in zip(self.expressions(params), self.typed(shapes, dtypes, params).dtypes, strict=True):
            width = (n if varies(o) else 1,)
            found.append((width if o.op == "column_sum" else (*rows, *width), dtype))
        return found

    # The gradient

    def rule(self, call: Call, needs: tuple[bool, ...]) -> Rule:
        """The derived gradient as one row expression of (cotangents, saved values)."""
        n, m = len(self.inputs), len(self.outputs)
        floats = tuple(d.is_float for d in call.out_dtypes)
        every = self._gradient(call, needs, floats)
        saves = [i for i in every.operands if not n <= i < n + m]

        def backward(call, needs, gs, values):
            made = self._gradient(call, needs, tuple(g is not None for g in gs), every.saves_rows)
            known = dict(zip(saves, values, strict=True)) | {n + j: g for j, g in enumerate(gs)}
            results: tuple = ()
            if made.primitive is not None:
                shape = self.shape(call.in_shapes, call.params)
                found = apply(made.primitive, *(known[i] for i in made.operands), shape=shape)
                results = found if isinstance(found, tuple) else (found,)
            grads: list[Tensor | None] = []
            for place, shape in zip(made.places, call.in_shapes, strict=True):
                if place is None:
                    grads.append(None)
                else:
                    kind, number = place
                    grads.append(_fitted(results[number] if kind == "result" else gs[number], shape))
            return grads

        return Rule(tuple((i >= n + m, (i - n - m) if i >= n + m else i) for i in saves), backward)

    def _gradient(self, call: Call, needs: tuple[bool, ...], given: tuple[bool, ...], saves_rows=True) -> Gradient:
        """The gradient from the cotangents that are `given`; derived once for operands that broadcast alike."""
        *rows, n = self.shape(call.in_shapes, call.params)
        broadcast = []
        for shape in call.in_shapes:
            is_column = tuple(shape[:-1]) != tuple(rows) and math.prod(shape[:-1]) == 1
            broadcast.append((shape[-1:] == (n,), is_column))
        key = (needs, given, saves_rows, tuple(broadcast), call.in_dtypes, self.parameter_key(call.params))
        if key not in self._derived:
            self._derived[key] = self._derive(call.params, needs, given, saves_rows, broadcast, call.in_dtypes)
        return self._derived[key]

    def _derive(self, params, needs, given, saves_rows, broadcast, dtypes) -> Gradient:
        n, m = len(self.inputs), len(self.outputs)
        outputs = self.expressions(params)
        forward = Variation([along for along, _ in broadcast])
        of_outputs = [forward(o) for o in outputs]
        varies = Variation([*(along for along, _ in broadcast), *of_outputs, *of_outputs])

        def fitted(node: Expr, argument: Expr, contribution: Expr) -> Expr:
            """Sums over the row what goes to a statistic that the node broadcast along it, as row.sum does too."""
            is_broadcast = varies(node) or varies(contribution) or node.op in ("row_sum", "row_max", "row_min")
            if varies(argument) or not is_broadcast:
                return contribution
            return row_sum(contribution) if varies(contribution) else contribution * size

        cotangents = [variable(n + j) if g else None for j, g in enumerate(given)]
        wanted = [i for i, need in enumerate(needs) if need]
        grads: list[Expr | None] = [None] * n
        if self._by_hand is not None:
            operands_, results = map(variable, range(n)), map(variable, range(n + m, n + 2 * m))
            zeros = [as_expr(0) if c is None else c for c in cotangents]
            by_hand = self.gradients_by_hand(params, tuple(operands_), zeros, tuple(results))
            for i in wanted:
                g = None if by_hand[i] is None else _without_zeros(as_expr(by_hand[i]))
                if g is not None and not (g.op == "constant" and g.value == 0):
                    grads[i] = g if broadcast[i][0] or not varies(g) else row_sum(g)
        else:
            found = derivative(outputs, tuple(cotangents), wanted, fitted)
            saved = {o: variable(n + m + j) for j, o in enumerate(outputs) if o.args}
            statistics = {o: v for o, v in saved.items() if not varies(o)}
            for i, g in zip(wanted, found, strict=True):
                grads[i] = g if g is None else substitute([g], statistics)[0]
            # A row that is an output is saved where the inputs then needn't be.
            every = [g for g in grads if g is not None]
            through = substitute(every, saved)
            saves_rows &= any(i < n for i in variables(every)) and not any(i < n for i in variables(through))
            if saves_rows:
                grads = [g if g is None else substitute([g], saved)[0] for g in grads]
        places: list[tuple[str, int] | None] = [None] * n
        made: list[Expr] = []
        kept = []
        for i, g in enumerate(grads):
            if g is None:
                continue
            passed = [j for j, c in enumerate(cotangents) if g is c and not broadcast[i][1]]
            if passed:
                places[i] = "cotangent", passed[0]
                continue
            places[i] = "result", len(made)
            made.append(column_sum(g) if broadcast[i][1] else g)
            kept.append(i)
        if not made:
            return Gradient(None, (), tuple(places), saves_rows)
        operands = variables(made)
        operands = [i for i in operands if n <= i < n + m] + [i for i in operands if not n <= i < n + m]
        names = [*self.inputs, "g", *(f"g_{o}" for o in self.outputs[1:]), *self.outputs]
        compact = {variable(i): variable(k) for k, i in enumerate(operands)}
        expressions = substitute(made, compact)
        primitive = Rowwise(
            f"{self.name}_gradient",
            lambda *_, **__: expressions,
            inputs=[names[i] for i in operands],
            outputs=[f"d{self.inputs[i]}" for i in kept],
            derived=True,
            stored=tuple(dtypes[i] for i in kept),
            overwrites=None if any(e.op == "column_sum" for e in expressions) else 0,
        )
        primitive.gradient_of = self
        return Gradient(primitive, tuple(operands), tuple(places), saves_rows)

    def _composed(self, *operands: Any, **params: Any) -> Any:
        return Rowwise.composed(self, operands, params)


def _fitted(g: Tensor, shape: Shape) -> Tensor:
    """A gradient that may be the same along the row, or for all rows, as autograd wants it for an operand."""
    if math.prod(g.shape) == math.prod(shape):
        return reshape(g, shape)
    return broadcast_to(g, views.broadcast_shapes("rowwise", g.shape, shape))


def _without_zeros(expression: Expr) -> Expr:
    """The expression with what a cotangent of 0 makes 0 left out, whatever it is multiplied by."""
    zero = as_expr(0)
    new: dict[Expr, Expr] = {}
    for node in topological([expression]):
        args = [new[a] for a in node.args]
        is_zero = [a.op == "constant" and type(a.value) is not bool and a.value == 0 for a in args]
        found = substitute([node], dict(zip(node.args, args, strict=True)))[0] if args else node
        if (
            (node.op == "multiply" and any(is_zero))
            or (node.op == "divide" and is_zero[0])
            or (node.op in ("negative", "row_sum", "cast") and is_zero[0])
            or (node.op == "where" and is_zero[1] and is_zero[2])
        ):
            found = zero
        elif node.op in ("add", "subtract") and is_zero[1]:
            found = args[0]
        elif node.op in ("add", "subtract") and is_zero[0]:
            found = args[1] if node.op == "add" else -args[1]
        new[node] = found
    return new[expression]


def rowwise(function: Callable | None = None, *, outputs: Sequence[str] = ("out",)) -> Any:
    """Decorator: makes an operation on tensors of a function in the language of rows (tinyarr.row).

    The positional parameters are the operands, broadcast together, the last axis being the row; keyword-only ones are
    parameters, fixed while tracing. One that returns several expressions names them: `@rowwise(outputs=...)`.
    It is traced once for each value of these: a global variable that it reads stays as it was then.

    >>> import tinyarr
    >>> from tinyarr import row
    >>> @tinyarr.rowwise
    ... def normalized(x):
    ...     return x / row.sum(x)
    >>> normalized(tinyarr.Tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [[0.25, 0.75], [0.5, 0.5]]
    """
    if function is None:
        return functools.partial(rowwise, outputs=outputs)
    primitive = Rowwise(*operation("rowwise", function, outputs))
    functools.update_wrapper(primitive, function)
    return primitive
