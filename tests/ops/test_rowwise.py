"""Row expressions: random ones against float64 with derived bounds, in eager mode and in C, and their gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import Tensor, row
from tinyarr.backends.c import kernel
from tinyarr.errors import ArgumentError, ShapeError
from tinyarr.ops import scalar
from tinyarr.ops.norm import _layer_norm, _limits
from tinyarr.ops.rowwise_composite import composed
from tinyarr.testing import gradcheck, gradgradcheck

EPS = 2.0**-23

# Expressions as tuples, over a row x, a statistic m, weights w and a number s

LEAVES = st.sampled_from(["x", "m", "w", "s", 0.5, -2])
UNARY, BINARY = ("tanh", "negative", "sum", "max", "min", "mean"), ("add", "subtract", "multiply", "maximum", "where")
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.tuples(st.sampled_from(UNARY), inner) | st.tuples(st.sampled_from(BINARY), inner, inner),
    max_leaves=8,
)
FUNCTIONS = {
    "tanh": ta.tanh, "negative": lambda x: -x, "sum": row.sum, "max": row.max, "min": row.min, "mean": row.mean,
    "add": lambda x, y: x + y, "subtract": lambda x, y: x - y, "multiply": lambda x, y: x * y, "maximum": ta.maximum,
    "where": lambda x, y: ta.where(y > x, x, y),
}  # fmt: skip


def traced(e, given):
    """The expression in the language of rows."""
    if not isinstance(e, tuple):
        return given[e] if isinstance(e, str) else scalar.as_expr(e)
    name, *args = e
    return FUNCTIONS[name](*(traced(a, given) for a in args))


def bounded(e, given, shape):
    """(value in float64, what float32 may err by): each operation errs by a unit, tanh by four, a sum by n."""
    if not isinstance(e, tuple):
        x = np.broadcast_to(np.asarray(given[e] if isinstance(e, str) else e, np.float64), shape)
        return x, np.zeros(shape)
    name, *args = e
    (x, a), *second = (bounded(arg, given, shape) for arg in args)
    n = shape[-1]
    if name in ("sum", "mean"):
        parts = x, a + n * EPS * np.abs(x)
        total, error = (np.broadcast_to(p.sum(axis=-1, keepdims=True), shape) for p in parts)
        by = n if name == "mean" else 1
        return total / by, error / by + EPS * np.abs(total / by)
    if name in ("max", "min"):
        found = getattr(x, name)(axis=-1, keepdims=True)
        return np.broadcast_to(found, shape), np.broadcast_to(a.max(axis=-1, keepdims=True, initial=0), shape)
    if name == "negative":
        return -x, a
    if name == "tanh":
        return np.tanh(x), a + 4 * EPS
    (y, b) = second[0]
    if name == "multiply":
        return x * y, np.abs(x) * b + np.abs(y) * a + a * b + EPS * np.abs(x * y)
    if name in ("add", "subtract"):
        z = x + y if name == "add" else x - y
        return z, a + b + EPS * np.abs(z)
    return (np.maximum if name == "maximum" else np.minimum)(x, y), np.maximum(a, b)


SHAPES = st.sampled_from([(3, 1), (4, 5), (2, 3, 40), (33, 70), (2, 1100)])


def operation(*expressions):
    names = [f"out{i}" for i in range(len(expressions))]

    def function(x, m, w, s):
        found = tuple(traced(e, {"x": x, "m": m, "w": w, "s": s}) for e in expressions)
        return found if len(found) > 1 else found[0]

    return ta.rowwise(function, outputs=names)


def values(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    sizes = {"x": shape, "m": (*shape[:-1], 1), "w": shape[-1:], "s": ()}
    return {name: rng.uniform(-1, 1, size).astype(np.float32).astype(dtype) for name, size in sizes.items()}


@at_most(12)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3), SHAPES)
def test_an_expression_is_that_of_float64_in_eager_mode_and_compiled_and_composed(expressions, shape):
    function, given_ = operation(*expressions), values(shape)
    tensors = [Tensor(v) for v in given_.values()]
    for f in (function, ta.compile(function), lambda *operands: composed(function, operands, {})):
        results = f(*tensors)
        for e, found in zip(expressions, results if isinstance(results, tuple) else (results,), strict=True):
            right, error = bounded(e, given_, shape)
            found = found.astype(ta.float64).numpy()
            assert found.shape in (shape, (*shape[:-1], 1))
            assert (np.abs(found - right) <= error + 1e-37).all(), e


@at_most(20)
@given(EXPRESSIONS, st.sampled_from([(3, 1), (2, 4), (2, 2, 3), (5,)]))
def test_gradients_are_those_of_finite_differences(e, shape):
    function = operation(("add", e, "x"))
    inputs = [Tensor(v) for v in values(shape, np.float64).values()]
    gradcheck(function, *inputs)
    gradgradcheck(function, *inputs)


@at_most(8)
@given(EXPRESSIONS, st.sampled_from([(4, 5), (2, 3, 40), (33, 70)]))
def test_compiled_gradients_are_those_of_eager_mode(e, shape):
    function, tensors = operation(("add", e, "x")), [Tensor(v) for v in values(shape).values()]

    def gradients(*inputs):
        out, pull = ta.vjp(function, *inputs)
        return pull(ta.tanh(out))

    wide = gradients(*(t.astype(ta.float64) for t in tensors))
    for found, compiled, exact in zip(gradients(*tensors), ta.compile(gradients)(*tensors), wide, strict=True):
        # Each is near the exact one, measured by the largest of it: sums over rows cancel.
        unit = 512 * EPS * (1 + np.abs(exact.numpy()).max(initial=0) * np.prod(shape))
        np.testing.assert_allclose(found.numpy(), exact.numpy(), rtol=0, atol=unit)
        np.testing.assert_allclose(compiled.numpy(), exact.numpy(), rtol=0, atol=unit)


def test_operands_broadcast_and_their_gradients_are_summed():
    @ta.rowwise
    def f(x, y, w, s):
        return row.sum(x * y) * w * s + row.max(y)

    rng = np.random.default_rng(0)
    x, y, w = (Tensor(rng.standard_normal(s)) for s in ((3, 1, 5), (1, 2, 1), (1, 5)))
    for s in (Tensor(0.5, dtype=ta.float64), Tensor([[[0.5]]], dtype=ta.float64)):
        assert f(x, y, w, s).shape == (3, 2, 5)
        gradcheck(f, x, y, w, s)
        gradgradcheck(f, x, y, w, s)


def test_a_gradient_saves_outputs_and_is_one_kernel():
    @ta.rowwise(outputs=("out", "mean", "rstd"))
    def norm(x, weight, *, eps):
        mean = row.mean(x)
        rstd = ta.rsqrt(row.mean((x - mean) * (x - mean)) + eps)
        return (x - mean) * rstd * weight, mean, rstd

    x, w = (Tensor(np.random.default_rng(0).standard_normal(s)) for s in ((4, 5), (5,)))
    x.requires_grad = w.requires_grad = True
    out, mean, _ = norm(x, w, eps=0.1)
    assert mean.shape == (4, 1)
    assert out.node.rule.saved == ((False, 0), (False, 1), (True, 1), (True, 2))  # x, weight, mean, rstd
    program = ta.compile(lambda x, w, g: ta.vjp(lambda *a: norm(*a, eps=0.1)[0], x, w)[1](g))
    program(x.detach(), w.detach(), x.detach())
    assert str(program.programs[0]).count("norm") == 2
    gradcheck(lambda *a: norm(*a, eps=0.1)[0], x, w)
    np.testing.assert_allclose(out.numpy(), ta.layer_norm(x, w, eps=0.1).numpy(), atol=1e-14)


def test_softmax_of_the_difference_to_logsumexp_saves_its_result_alone():
    @ta.rowwise
    def softmax(x):
        return ta.exp(x - row.logsumexp(x))

    x = Tensor(np.random.default_rng(0).standard_normal((3, 4)), requires_grad=True)
    assert softmax(x).node.rule.saved == ((True, 0),)
    gradgradcheck(softmax, x.detach())
    np.testing.assert_allclose(softmax(x).numpy(), ta.softmax(x).numpy(), atol=1e-15)


@pytest.mark.parametrize("dtype", [ta.bfloat16, ta.float16, ta.float32, ta.float64], ids=lambda d: d.name)
def test_a_row_has_its_own_dtype_and_a_statistic_that_in_which_it_is_computed(dtype):
    @ta.rowwise(outputs=("out", "total"))
    def f(x):
        return x / row.sum(x), row.sum(x)

    x = ta.ones((2, 1000), dtype=dtype) / 64
    for g in (f, ta.compile(f)):
        out, total = g(x)
        assert (out.dtype, total.dtype) == (dtype, dtype.compute)
        assert total.tolist() == [[1000 / 64]] * 2


def test_positions_sizes_and_elements():
    @ta.rowwise(outputs=("back", "picked", "size"))
    def f(x, i):
        return x * (row.size - 1 - row.index), row.at(x, i), row.size + 0 * row.sum(x)

    x, i = Tensor([[1.0, 2.0, 4.0]] * 2), Tensor([[2], [-1]])
    for g in (f, ta.compile(f)):
        back, picked, size = g(x, i)
        assert (back[0].tolist(), picked.tolist(), size.tolist()) == ([2, 2, 0], [[4], [0]], [[3], [3]])


def test_no_rows_and_empty_rows():
    @ta.rowwise(outputs=("out", "total"))
    def f(x, w):
        return x * w, row.sum(x * w)

    for shape in ((0, 3), (2, 0)):
        x, w = ta.zeros(shape), ta.ones(shape[-1:])
        for g in (f, ta.compile(f)):
            out, total = g(x, w)
            assert out.shape == shape and total.shape == (shape[0], 1) and not total.numpy().any()
        gradient = ta.vjp(lambda w, x=x: f(x, w)[0], w)[1](x)[0]
        assert gradient.shape == w.shape and not gradient.numpy().any()


def test_a_branch_between_statistics_computes_one_side_with_the_same_bits():
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((5, 300)) * np.array([[1], [1e30], [1], [1e-30], [1]]), dtype=ta.float32)
    one, zero = ta.ones(300), ta.zeros(300)
    function = ta.compile(lambda x: _layer_norm(x, one, zero, eps=0.0, limits=_limits(x)))
    whole = function(x)
    for i in range(5):
        for part, of_all in zip(ta.compile(lambda x: function(x))(x[i : i + 1]), whole, strict=True):
            assert (part == of_all[i : i + 1]).all()


def test_a_row_expression_inside_another_keeps_its_gradient():
    @ta.rowwise
    def qk_normed(x, w):
        return _layer_norm(x, w, 0.0, eps=1e-2, limits=(2.0**500, 2.0**700, 2.0**-1022))[0] * 2

    x, w = (Tensor(np.random.default_rng(0).standard_normal(s)) for s in ((4, 5), (5,)))
    np.testing.assert_allclose(qk_normed(x, w).numpy(), 2 * ta.layer_norm(x, w, eps=1e-2).numpy(), rtol=1e-12)
    gradcheck(qk_normed, x, w)


def test_what_is_wrong_is_said():
    with pytest.raises(TypeError, match=r"elementwise: f: row_sum .*use @rowwise"):
        named(lambda x: row.sum(x) * x, ta.elementwise)(ta.ones(3))
    with pytest.raises(ShapeError, match="f: the operands have no axis"):
        named(lambda x: row.sum(x))(Tensor(1.0))
    with pytest.raises(ArgumentError, match="rowwise: f: y is no plain operand"):
        named(lambda x, y=1: x)
    for function, outputs in ((lambda x: (x, row.sum(x)), ("out",)), (lambda x: x, ("out", "sum"))):
        with pytest.raises(ArgumentError, match=r"f: returned . expressions, its outputs are"):
            named(function, ta.rowwise(outputs=outputs))(ta.ones(3))
    for outputs in ("out", ("out", "out")):
        with pytest.raises(ArgumentError, match=r"rowwise: outputs is .*: give a sequence of names"):
            ta.rowwise(lambda x: x, outputs=outputs)
    with pytest.raises(AttributeError, match=r"has no 'sum': .* tinyarr.row's in @rowwise"):
        named(lambda x: x.sum())(ta.ones(3))
    with pytest.raises(ShapeError, match="f"):
        named(lambda x, w: x * w)(ta.ones((2, 3)), ta.ones(4))


def named(function, decorator=ta.rowwise):
    function.__name__ = "f"
    return decorator(function)


def test_a_number_for_all_of_many_rows_has_its_gradient_in_a_program_too():
    @ta.rowwise
    def f(x, s):
        return row.sum(x * s)

    rows = kernel.FOLDED + 1
    x, s = ta.ones(rows, 2), ta.full((1, 1), 3.0)
    gradient = ta.grad(lambda s: f(x, s).sum())
    assert gradient(s).tolist() == ta.compile(gradient)(s).tolist() == [[2 * rows]]
