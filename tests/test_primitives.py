"""Promises of every primitive, proved for each record in samples.py.

A result may differ from the exact one, which NumPy computes in float64 from the same operands, by `count` roundings of
numbers of its size in the dtype that it is computed in; what comes of that is rounded to the result's dtype once more.

Example: exp(2.0) in bfloat16 is computed in float32. The exact result is 7.389, exp counts 4 roundings, eps is 2**-23,
so the error is at most 4 * 2**-23 * 7.389 = 3.5e-6. Both 7.389 - 3.5e-6 and 7.389 + 3.5e-6 round to 7.375 in bfloat16,
whose neighbours there are 2**-5 apart: so 7.375 is the only right answer. A sum of n elements counts n roundings, each
of a number as large as the result and the elements' absolute values together (`conditioning`).
"""

import contextlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyarr
from tests.samples import SAMPLES, Case, Operand, Sample
from tests.tiers import at_most
from tinyarr import Device, dtypes, eager, use_device, views
from tinyarr.array import Array, empty
from tinyarr.backends.numpy.registry import KERNELS
from tinyarr.dtypes import Dtype
from tinyarr.errors import DeviceError, DtypeError, TinyarrError
from tinyarr.ops import scalar
from tinyarr.ops.elementwise_primitive import Elementwise, elementwise
from tinyarr.ops.primitive import Primitive, executor, registry
from tinyarr.ops.rowwise import Rowwise
from tinyarr.tensor import Tensor, result_tensor
from tinyarr.testing import gradcheck, gradgradcheck, tensors

OWN = {name: primitive for name, primitive in registry.items() if primitive.built_in}
DERIVED = [f"{name}_gradient" for name, primitive in OWN.items() if isinstance(primitive, Rowwise)]  # not registered
DIFFERENTIABLE = [name for name, primitive in OWN.items() if not primitive.non_differentiable] + DERIVED
FUSED = [name for name, primitive in OWN.items() if primitive.composite is not None and primitive.parts is None]
PROMOTING = [
    name for name, p in OWN.items() if set(p.inputs) == {"x", "y"} and not name.startswith(("log", "matmul_"))
]
NOT_POINTWISE = ("where", "dropout", "copysign", "rotate", "leaky_relu", "lstm_step")  # NaN need not reach every result
POINTWISE = [n for n in DIFFERENTIABLE if isinstance(OWN.get(n), Elementwise) and n not in NOT_POINTWISE]
BY_THE_COMPILER = ("wait",)  # no function applies it
pytestmark = pytest.mark.property
each_sample = pytest.mark.parametrize("name", SAMPLES)
few = at_most(12)


def in_both_precisions(names):
    """Decorator: name and dtype, for those of float32 and bfloat16 that an operation takes."""
    pairs = [(name, dtype) for name in names for dtype in (dtypes.float32, dtypes.bfloat16)]
    taken = [pytest.param(n, d, id=f"{n}-{d.name}") for n, d in pairs if d in SAMPLES[n].takes]
    return pytest.mark.parametrize(("name", "dtype"), taken)


def operands(draw, case: Case, dtype) -> list[Tensor]:
    """Tensors for a case, in memory of any layout."""
    kinds = [o.dtype or dtype for o in case.operands]
    return [
        draw(tensors(o.shape, kind, values=values_of(o, kind), repeats=o.repeats))
        for o, kind in zip(case.operands, kinds)
    ]


def values_of(operand: Operand, dtype: Dtype):
    """(rng, shape) -> the elements of an operand of a dtype."""
    if dtype.is_float:
        return operand.values
    low, high = (0, 2) if dtype.kind == "bool" else operand.integers
    return lambda rng, shape: rng.integers(0 if dtype.kind == "unsigned" else low, high, shape)


def in_tuple(result) -> tuple:
    return result if isinstance(result, tuple | list) else (result,)


def as_reference(operand: Operand, x: Tensor, result: Dtype) -> np.ndarray:
    """Floating operands in float64, and integers where the result is floating; indices and the like as they are."""
    wide = x.dtype.is_float or (result.is_float and operand.dtype is None)
    return x.numpy().astype(np.float64) if wide else x.numpy()


def rounding_count(call) -> int:
    """How many roundings an expression makes: one an operation, 4 for those that NumPy promises within 4 ulp."""
    library = {name for name, operation in scalar.OPERATIONS.items() if operation.typing == "float"} | {"power"}
    library -= {"divide", "sqrt", "copysign"}
    nodes = [node for node in scalar.topological(call.primitive.expressions(call.params)) if node.args]
    return sum(4 if node.op in library else 1 for node in nodes)


def conditioning(sample: Sample, arrays, params, expected) -> list:
    """Sum over the elements x of the operands of |x df/dx|: how far their relative changes move the results."""
    moved = [np.zeros(np.shape(e)) for e in expected]
    step = 1e-6
    for k, x in enumerate(arrays):
        if x.dtype.kind != "f":
            continue
        for at in np.ndindex(x.shape):
            nudged = x.copy()
            nudged[at] += step * x[at]
            changed = in_tuple(sample.reference(*arrays[:k], nudged, *arrays[k + 1 :], **params))
            for total, new, old in zip(moved, changed, expected):
                total += np.abs(new - old) / step
    return moved


def error_factors(sample: Sample, calls, arrays, params, expected) -> tuple[int, list]:
    """How many roundings make each result, and how large what is rounded is."""
    scale = sample.scale(*arrays) if sample.scale else 0
    if sample.roundings is None:
        return sum(map(rounding_count, calls)), [np.abs(e) + scale for e in expected]
    count = sample.roundings(*arrays, **params)
    moved = conditioning(sample, arrays, params, expected) if count else expected
    return count, [np.abs(e) + scale + m for e, m in zip(expected, moved)]


def assert_rounded(out: Tensor, exact, error) -> None:
    """out is what some value within `error` of the exact one rounds to; NaN and infinities are equal."""
    found, stored = out.numpy().astype(np.float64), out.dtype.numpy
    error = np.where(np.isfinite(exact), error, 0)
    with np.errstate(all="ignore"):
        low, high = ((exact + sign * error).astype(stored).astype(np.float64) for sign in (-1, 1))
        inside = (low <= found) & (found <= high)
    undefined = np.isnan(low) | np.isnan(high)
    assert np.all(inside | (np.isnan(found) & undefined)), f"{found} is outside [{low}, {high}]"


def assert_same_bits(x: Tensor, y: Tensor) -> None:
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert x.numpy().tobytes() == y.numpy().tobytes(), f"{x} != {y}"


class Recorder:
    """An executor that runs eagerly and keeps what it ran: (call, operands)."""

    def __init__(self):
        self.ran = []

    def __getattr__(self, name):
        return getattr(eager, name)

    def run(self, call, arrays, outs):
        self.ran.append((call, list(arrays)))
        return eager.run(call, arrays, outs)


@contextlib.contextmanager
def recorded():
    recorder = Recorder()
    token = executor.set(recorder)
    try:
        yield recorder.ran
    finally:
        executor.reset(token)


@each_sample
def test_the_result_is_the_exact_one_rounded(name, request):
    """With --backend NAME on that device; what it needn't have is skipped."""
    device = Device(request.config.getoption("--backend"))
    try:
        check_results(name, device)
    except DeviceError as error:
        if device.kind == "cpu" or "and no composite" not in str(error):
            raise
        pytest.skip(str(error))


def check_results(name, device, max_examples=12):
    """Draws cases of a sample, and compares what a device makes of them with the exact results, rounded."""
    sample = SAMPLES[name]

    @at_most(max_examples, first=2)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = operands(data.draw, case, dtype)
        moved = inputs if device.kind == "cpu" else [moved_to(device, x) for x in inputs]
        with recorded() as ran, use_device(device):
            results = in_tuple(sample.function(*moved, **case.params))
        assert all(out.device is device for out in results)
        calls = [call for call, _ in ran if call.primitive.name == name]
        assert_exact(name, case, dtype, calls, inputs, results)

    check()


def assert_exact(name, case, dtype, calls, inputs, results):
    """The results of a sample's case are the exact ones, rounded. calls: of its primitive, which made them."""
    sample = SAMPLES[name]
    stored = sample.gives(dtype, **case.params)
    stored = stored if isinstance(stored, tuple) else (stored,) * len(results)
    arrays = [as_reference(o, x, stored[0]) for o, x in zip(case.operands, inputs)]
    with np.errstate(all="ignore"):
        expected = [np.asarray(e) for e in in_tuple(sample.reference(*arrays, **case.params))]
    assert [(o.shape, o.dtype) for o in results] == [(e.shape, d) for e, d in zip(expected, stored, strict=True)]
    if not stored[0].is_float:
        for out, exact in zip(results, expected):
            np.testing.assert_array_equal(out.numpy(), exact)
        return
    count, largest = error_factors(sample, calls, arrays, case.params, expected)
    for out, exact, size in zip(results, expected, largest):
        # The logits of a block are held in x's dtype.
        kept = dtype if name.startswith("linear_cross_entropy") else sample.precision(out.dtype)
        unit = ml_dtypes.finfo(kept.numpy)
        of_both = 2 if unit.bits == 64 else 1  # the reference rounds as often
        error = of_both * count * (float(unit.eps) * size + float(unit.smallest_subnormal))
        assert_rounded(out, exact.astype(np.float64), error)


def moved_to(device, x: Tensor) -> Tensor:
    """x on a device, with its last two axes exchanged in memory where it is not row-major here."""
    if x.ndim < 2 or views.is_contiguous(x.array.view):
        return x.to(device)
    return tinyarr.copy(x.mT).to(device).mT


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_agrees_with_finite_differences(name):
    sample = SAMPLES[name]

    @few
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        params = case.params | sample.smooth
        inputs = operands(data.draw, case, dtypes.float64)
        assert gradcheck(lambda *x: sample.function(*x, **params), *inputs)

    check()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_of_the_gradient_agrees_with_finite_differences(name):
    sample = SAMPLES[name]

    @at_most(6, first=1)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        params = case.params | sample.smooth
        inputs = operands(data.draw, case, dtypes.float64)
        assert gradgradcheck(lambda *x: sample.function(*x, **params), *inputs)

    check()


@elementwise
def guarded_root(x):
    return scalar.where(x > 0, scalar.sqrt(x), 0)


KINKS = [  # (operation, operands, their gradients) where the derivative is a decision
    (tinyarr.abs, [[-1.0, 0.0, 2.0]], [[-1, 0, 1]]),
    (tinyarr.relu, [[-1.0, 0.0, 2.0]], [[0, 0, 1]]),
    (tinyarr.maximum, [[1.0, 2.0], [1.0, 3.0]], [[0.5, 0], [0.5, 1]]),
    (tinyarr.minimum, [[1.0, 2.0], [1.0, 3.0]], [[0.5, 1], [0.5, 0]]),
    (lambda x: tinyarr.clip(x, 0, 1), [[-1.0, 0.0, 0.5, 1.0, 2.0]], [[0, 0.5, 1, 0.5, 0]]),
    (tinyarr.max, [[2.0, 1.0, 2.0, 2.0]], [[1 / 3, 0, 1 / 3, 1 / 3]]),
    (tinyarr.min, [[1.0, 1.0, 2.0]], [[0.5, 0.5, 0]]),
    (tinyarr.pow, [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0]], [[0, 1, 0], [0, 0, 0]]),
    (tinyarr.sqrt, [[0.0]], [[np.inf]]),
    (tinyarr.sigmoid, [[0.0]], [[0.25]]),
    (tinyarr.softplus, [[0.0]], [[0.5]]),
    (tinyarr.leaky_relu, [[-1.0, 0.0, 2.0]], [[0.01, 0.01, 1]]),
    (tinyarr.silu, [[-np.inf, np.inf]], [[0, 1]]),
    (tinyarr.prod, [[2.0, 0.0, 3.0]], [[0, 6, 0]]),
    (tinyarr.prod, [[0.0, 0.0, 3.0]], [[0, 0, 0]]),
    (lambda x: tinyarr.cumulative_prod(x, axis=0), [[2.0, 0.0, 3.0]], [[1, 8, 0]]),
    (tinyarr.vector_norm, [[0.0, 0.0]], [[0, 0]]),
    (lambda x: tinyarr.l1_loss(x, tinyarr.zeros_like(x), reduction="sum"), [[-2.0, 0.0]], [[-1, 0]]),
    (guarded_root, [[-1.0, 0.0, 4.0]], [[0, 0, 0.25]]),
    (tinyarr.hypot, [[3.0, 0.0], [4.0, 1.0]], [[0.6, 0], [0.8, 1]]),
]


@pytest.mark.parametrize(("operation", "values", "expected"), KINKS)
def test_kinks_and_ties_have_the_gradient_that_the_documentation_says(operation, values, expected):
    operands = [tinyarr.Tensor(np.array(v), requires_grad=True) for v in values]
    (2 * operation(*operands)).sum().backward()
    for x, gradient in zip(operands, expected):
        np.testing.assert_array_equal(x.grad.numpy(), 2 * np.array(gradient))


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in DIFFERENTIABLE])
def test_no_gradient_flows_through_what_is_declared_non_differentiable(name):
    sample = SAMPLES[name]

    @settings(max_examples=3)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = dtypes.float64 if dtypes.float64 in sample.takes else (sample.takes or (None,))[0]
        inputs = operands(data.draw, case, dtype)
        for x in inputs:
            x.requires_grad = x.dtype.is_float
        assert not any(o.requires_grad for o in in_tuple(sample.function(*inputs, **case.params)))

    check()


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.takes])
def test_a_dtype_that_the_operation_does_not_take_is_refused_by_name(name):
    sample = SAMPLES[name]
    refused = set(dtypes.ALL) - set(sample.takes) if sample.refuses is None else sample.refuses

    @settings(max_examples=1)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        for dtype in refused:
            with pytest.raises(TinyarrError, match=dtype.name):
                sample.function(*operands(data.draw, case, dtype), **case.params)

    check()


@pytest.mark.parametrize("name", PROMOTING)
def test_operands_of_two_dtypes_are_promoted_first(name):
    sample = SAMPLES[name]

    @few
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        x, y = (operands(data.draw, case, data.draw(st.sampled_from(sample.takes)))[i] for i in (0, 1))
        try:
            common = tinyarr.result_type(x, y)
        except DtypeError:
            with pytest.raises(DtypeError):
                sample.function(x, y)
        else:
            assert_same_bits(sample.function(x, y), sample.function(x.astype(common), y.astype(common)))

    check()


@pytest.mark.parametrize("name", [name for name in PROMOTING if name != "matmul"])
def test_a_python_scalar_takes_the_dtype_of_the_tensor_unless_it_is_of_a_higher_kind(name):
    sample = SAMPLES[name]

    numbers = (2, 2.5) if dtypes.float32 in sample.takes else (2,)

    @few
    @given(tensors((2, 3), st.sampled_from(sample.takes)), st.sampled_from(numbers))
    def check(x, number):
        common = tinyarr.result_type(x, number)
        strong = tinyarr.Tensor(number, dtype=common)
        assert_same_bits(sample.function(x, number), sample.function(x.astype(common), strong))
        assert_same_bits(sample.function(number, x), sample.function(strong, x.astype(common)))

    check()


@pytest.mark.parametrize("name", POINTWISE)
def test_nan_goes_through(name):
    sample, arity = SAMPLES[name], len(OWN[name].inputs)
    params = {"integer_power": {"n": 3}, "inverse_power": {"n": 2}, "astype": {"dtype": dtypes.float32}}.get(name, {})
    for i in range(arity):
        operands = [tinyarr.Tensor(float("nan") if k == i else 0.5) for k in range(arity)]
        assert np.isnan(sample.function(*operands, **params).item())


@each_sample
def test_the_bits_do_not_depend_on_where_the_operands_lie_in_memory(name):
    sample = SAMPLES[name]
    # A BLAS adds up in another order where a matrix is transposed.
    copy_of = packed_as_it_lies if name.startswith("matmul") else tinyarr.copy

    @few
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = operands(data.draw, case, dtype)
        results = in_tuple(sample.function(*inputs, **case.params))
        packed = in_tuple(sample.function(*map(copy_of, inputs), **case.params))
        for x, y in zip(results, packed, strict=True):
            assert_same_bits(x, y)

    check()


def packed_as_it_lies(x: Tensor) -> Tensor:
    """A copy without gaps, whose matrices are transposed where those of `x` are."""
    if x.ndim < 2 or not eager.suits(x.array.view, "matrix") or x.array.strides[-1] == 1:
        return tinyarr.copy(x)
    return tinyarr.copy(x.mT).mT


@pytest.mark.parametrize("name", ["atan", "cosh", "tanh", "exp"])
def test_a_single_element_seen_backwards_has_the_bits_that_it_has_forwards(name):
    function = getattr(tinyarr, name)
    for x in np.random.default_rng(0).uniform(0.5, 1, 100).astype(np.float32):
        one = tinyarr.Tensor([x])
        assert_same_bits(function(tinyarr.flip(one)), function(one))


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_sum_adds_in_an_order_that_depends_on_the_shape_alone(axis):
    x = tinyarr.Tensor(np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32))
    for view in (x.mT, x[::2, ::-1], x[0].broadcast_to((200, 300))):
        assert_same_bits(view.sum(axis=axis), tinyarr.copy(view).sum(axis=axis))


@each_sample
def test_a_given_output_receives_the_same_bits_also_in_place(name):
    sample = SAMPLES[name]
    reached = []

    @at_most(12, first=5)  # of few draws none may apply the primitive
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = operands(data.draw, case, dtype)
        with recorded() as ran:
            sample.function(*inputs, **case.params)
        for call, arrays in ran:
            if call.primitive.name != name:
                continue
            reached.append(call)
            if call.primitive.view is not None:
                continue
            plain = eager.run(call, arrays, None)
            if plain is None:
                continue  # the composite is what runs
            outs = [empty(o.device, o.shape[::-1], o.dtype) for o in plain]
            outs = [o.through(views.permute(o.view, tuple(range(len(o.shape)))[::-1])) for o in outs]
            eager.run(call, arrays, outs)
            for out, expected in zip(outs, plain):
                assert_same_bits(result_tensor(out), result_tensor(expected))
                assert out.storage.version == 1
            for k, x in enumerate(arrays):
                if isinstance(x, Array) and len(plain) == 1 and (x.shape, x.dtype) == (plain[0].shape, plain[0].dtype):
                    own = eager.contiguous_copy(x)
                    others = [*arrays[:k], own, *arrays[k + 1 :]]
                    (expected,) = eager.run(call, others, None)
                    eager.run(call, others, [own])
                    assert_same_bits(result_tensor(own), result_tensor(expected))

    check()
    recorded_as_others = name in DERIVED or (OWN[name].composite is not None and OWN[name] not in KERNELS)
    assert reached or recorded_as_others, f"the sample's function never applies {name}"


@pytest.mark.parametrize(
    ("name", "error"), [pytest.param(n, e, id=f"{n}-{i}") for n, s in SAMPLES.items() for i, e in enumerate(s.errors)]
)
def test_a_bad_argument_is_refused_with_a_message_that_says_what_came(name, error):
    with pytest.raises(error.kind) as caught:
        error.call()
    for fragment in error.fragments:
        assert fragment in str(caught.value)


@in_both_precisions([name for name in FUSED if OWN[name] in KERNELS])
def test_a_fused_kernel_errs_at_most_twice_as_much_as_its_composite(name, dtype):
    sample, rng = SAMPLES[name], np.random.default_rng(0)
    case = sample.large
    kinds = [o.dtype or dtype for o in case.operands]
    inputs = [tinyarr.Tensor(values_of(o, d)(rng, o.shape), dtype=d) for o, d in zip(case.operands, kinds)]
    with recorded() as ran:
        sample.function(*inputs, **case.params)
    ((call, arrays),) = [(c, a) for c, a in ran if c.primitive.name == name]
    operands = [result_tensor(x) for x in arrays]
    wide = [x.astype(dtypes.float64) if x.dtype.is_float else x for x in operands]
    exact = in_tuple(call.primitive.composite(*wide, **call.params))
    naive = in_tuple(call.primitive.composite(*operands, **call.params))
    fused = eager.run(call, arrays, None)
    for e, n, f in zip(exact, naive, map(result_tensor, fused)):
        assert f.dtype is n.dtype
        assert distance(f, e) <= 2 * distance(n, e)


def distance(x: Tensor, exact: Tensor) -> float:
    return float(np.linalg.norm(x.numpy().astype(np.float64) - exact.numpy()))


def missing(primitives, samples, kernels) -> list[str]:
    """What primitives lack of what each must have."""
    lacks = [f"{name}: no sample record" for name in primitives if name not in samples]
    lacks += [f"{name}: a sample record, but no primitive" for name in samples if name not in {*primitives, *DERIVED}]
    for name, p in primitives.items():
        if not (p.has_gradient or p.non_differentiable or p.composite):
            lacks.append(f"{name}: no gradient, and not declared non_differentiable")
        if not (p.view or p.composite or p in kernels or isinstance(p, Elementwise)):
            lacks.append(f"{name}: no CPU kernel and no composite")
    known = {*primitives, *BY_THE_COMPILER}
    return lacks + [f"{p.name}: a CPU kernel, but no primitive" for p in kernels if p.name not in known]


def test_every_primitive_has_a_kernel_a_gradient_and_a_sample():
    own = {p: kernel for p, kernel in KERNELS.items() if p.built_in}  # an example's, run by another test, is not
    assert missing(OWN, SAMPLES, own) == []


def test_what_a_primitive_lacks_is_reported():
    bare = Primitive("bare", lambda shapes, dtypes: [(shapes[0], dtypes[0])], derived=True)
    assert missing({"bare": bare}, {}, {}) == [
        "bare: no sample record",
        "bare: no gradient, and not declared non_differentiable",
        "bare: no CPU kernel and no composite",
    ]
    assert len(missing({}, {"gone": None}, {bare: None})) == 2


def test_memory_that_kernels_write_into_is_poisoned():
    for n in (3, 100_000):
        assert np.isnan(tinyarr.empty(n).numpy()).all()
