"""Row expressions printed as CUDA: they compile without a GPU, and on one are right, the same bits each time."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.ops.test_rowwise import EXPRESSIONS, SHAPES, bounded, operation, values
from tests.test_primitives import recorded
from tests.tiers import at_most
from tinyarr import Tensor, row
from tinyarr.backends.cuda.planning import compiler, plans
from tinyarr.backends.cuda.planning.registry import Launch
from tinyarr.ops.norm import _layer_norm, _limits, _rms_norm
from tinyarr.ops.rowwise import Rowwise
from tinyarr.ops.softmax import _log_softmax, _softmax


def printed(primitive):
    """The same definition, for which there is no kernel by hand."""
    name = f"printed_{primitive.name}"
    other = Rowwise(name, primitive.function, primitive.inputs, primitive.outputs, derived=True)
    other.gradient(primitive._by_hand)
    return other


OURS = [_layer_norm, _rms_norm, _softmax, _log_softmax]


@ta.rowwise
def capped(x, target, *, cap):
    """A loss of capped logits."""
    x = cap * ta.tanh(x / cap)
    return row.logsumexp(x) - row.at(x, target)


def operands(primitive, rows, columns, dtype, device=None):
    rng = np.random.default_rng(0)
    sizes = {"x": (rows, columns), "weight": (columns,), "bias": (columns,)}
    drawn = [rng.standard_normal(sizes[name]) for name in primitive.inputs]
    return [Tensor(x, dtype=dtype, device=device) for x in drawn]


def differentiated(function, *inputs, **options):
    """The first result, and its gradients."""

    def first(*inputs):
        results = function(*inputs, **options)
        return results[0] if isinstance(results, tuple) else results

    out, pull = ta.vjp(first, *inputs)
    return out, *pull(ta.sin(out))


def options_of(primitive, x):
    return {"eps": 1e-5, "limits": _limits(x)} if "eps" in primitive.__signature__.parameters else {}


def compile_all(ran):
    """Compiles what is printed for the row expressions among calls."""
    for call, _ in ran:
        if isinstance(call.primitive, Rowwise) and (plan := plans.planner(call)):
            for step in plan(*plans.dense_operands(call)).steps:
                if isinstance(step, Launch):
                    compiler.compile_source(step.source, "sm_90")


@pytest.mark.parity
@at_most(8)
@example(("max", -2), (3, 1))
@given(EXPRESSIONS, SHAPES)
def test_an_expression_and_its_gradient_compile_without_a_gpu(e, shape):
    with recorded() as ran:
        differentiated(operation(("add", e, "x")), *map(Tensor, values(shape).values()))
    compile_all(ran)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("primitive", OURS, ids=lambda p: p.name)
def test_what_is_printed_of_our_own_compiles_without_a_gpu(primitive, dtype):
    with recorded() as ran:
        inputs = operands(primitive, 3, 1000, dtype)
        differentiated(printed(primitive), *inputs, **options_of(primitive, inputs[0]))
    compile_all(ran)


@pytest.mark.cuda
@at_most(40)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3), SHAPES)
def test_an_expression_is_that_of_float64(expressions, shape):
    function, given_ = operation(*expressions), values(shape)
    tensors = [Tensor(v, device="cuda") for v in given_.values()]
    for f in (function, ta.compile(function)):
        results = f(*tensors)
        for e, found in zip(expressions, results if isinstance(results, tuple) else (results,), strict=True):
            right, error = bounded(e, given_, shape)
            assert (np.abs(found.astype(ta.float64).numpy() - right) <= 2 * error + 1e-37).all(), e


@pytest.mark.cuda
@at_most(20)
@given(EXPRESSIONS, SHAPES)
def test_gradients_are_those_of_the_cpu_and_have_the_same_bits_each_time(e, shape):
    function, inputs = operation(("add", e, "x")), values(shape).values()
    exact = differentiated(function, *(Tensor(v, dtype=ta.float64) for v in inputs))
    on_gpu = [Tensor(v, device="cuda") for v in inputs]
    ways = [differentiated, differentiated, ta.compile(differentiated), ta.compile(differentiated)]
    found = [way(function, *on_gpu) for way in ways]
    for right, first, *others in zip(exact, *found, strict=True):
        unit = 1e-4 * (1 + np.abs(right.numpy()).max(initial=0) * np.prod(shape))
        np.testing.assert_allclose(first.numpy(), right.numpy(), rtol=0, atol=unit)
        assert all((first == x).all() for x in others)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(5, 40), (300, 768), (70, 1000), (9, 5000), (3, 20000)])
@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16, ta.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("primitive", OURS, ids=lambda p: p.name)
def test_what_is_printed_of_our_own_agrees_with_the_kernel_by_hand(primitive, dtype, shape):
    inputs = operands(primitive, *shape, dtype, device="cuda")
    options, unit = options_of(primitive, inputs[0]), float(ta.finfo(dtype).eps)
    by_hand = differentiated(primitive, *inputs, **options)
    for way in (differentiated, ta.compile(differentiated)):
        for x, y in zip(by_hand, way(printed(primitive), *inputs, **options), strict=True):
            x, y = (t.astype(ta.float64).numpy() for t in (x, y))
            np.testing.assert_allclose(y, x, rtol=8 * unit, atol=64 * unit * np.abs(x).max())


@pytest.mark.cuda
@pytest.mark.parametrize("classes", [7, 1000, 50257])
def test_a_capped_loss(classes):
    rng = np.random.default_rng(0)
    x, target = 20 * rng.standard_normal((33, classes)), rng.integers(0, classes, (33, 1))
    def loss(x, target):
        return differentiated(lambda x: capped(x, target, cap=15.0), x)

    cpu = loss(Tensor(x, dtype=ta.float64), Tensor(target))
    for way in (loss, ta.compile(loss)):
        found = way(Tensor(x, dtype=ta.float32, device="cuda"), Tensor(target, device="cuda"))
        for right, y in zip(cpu, found, strict=True):
            np.testing.assert_allclose(y.numpy(), right.numpy(), rtol=1e-4, atol=1e-5)
