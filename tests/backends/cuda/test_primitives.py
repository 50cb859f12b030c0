"""What every primitive promises, on a GPU: the records of tests/samples, forward and backward, against float64."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tinyarr
from tests.backends.cuda.place import misaligned, on
from tests.samples import SAMPLES
from tests.test_primitives import (
    DIFFERENTIABLE,
    FUSED,
    assert_exact,
    assert_same_bits,
    distance,
    in_both_precisions,
    in_tuple,
    operands,
    recorded,
    values_of,
)
from tinyarr import dtypes, eager, vjp
from tinyarr.tensor import Tensor, result_tensor

pytestmark = pytest.mark.cuda
GPU = "cuda:0"
few = settings(max_examples=12, phases=(Phase.explicit, Phase.generate))  # a GPU is too dear for shrinking
each_sample = pytest.mark.parametrize("name", SAMPLES)


@each_sample
def test_the_result_is_the_exact_one_rounded_and_the_same_bits_again(name):
    sample = SAMPLES[name]

    @few
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        lying = operands(data.draw, case, dtype)
        inputs = [on(GPU, x) for x in lying]
        with tinyarr.use_device(GPU), recorded() as ran:
            results = in_tuple(sample.function(*inputs, **case.params))
            if name in ("uniform", "normal", "bits", "integers", "dropout"):
                again = results  # each call draws anew
            else:
                again = in_tuple(sample.function(*inputs, **case.params))
        for x, y in zip(results, again):
            assert x.device is tinyarr.Device(GPU)
            assert_same_bits(x, y)
        calls = [call for call, _ in ran[: max(len(ran) // 2, 1)] if call.primitive.name == name]
        assert_exact(name, case, dtype, calls, lying, results)

    check()


DRAWN = ("uniform", "normal", "bits", "integers", "dropout")
# The library chooses the algorithm of products by strides and alignment too, and of what is composed of them.
COMPOSED = ("scaled_dot_product_attention", "scaled_dot_product_attention_gradient", "linear_cross_entropy",
            "linear_cross_entropy_with_gradients", "matmul_wide", "matmul_add")  # fmt: skip


def in_order(copy):
    """The copy of a matrix that is transposed in memory, transposed in memory."""
    return lambda x: copy(x.mT).mT if x.ndim > 1 and x.array.strides[-1] != 1 == x.array.strides[-2] else copy(x)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in DRAWN + COMPOSED])
def test_the_bits_do_not_depend_on_where_the_operands_lie_in_memory(name):
    sample = SAMPLES[name]
    copies = (tinyarr.copy, misaligned)
    if name == "matmul":  # cuBLASLt adds up otherwise where a matrix is transposed in memory
        copies = tuple(map(in_order, copies))

    @few
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        dtype = data.draw(st.sampled_from(sample.takes)) if sample.takes else None
        inputs = [on(GPU, x) for x in operands(data.draw, case, dtype)]
        with tinyarr.use_device(GPU):
            results, dense, shifted = (
                in_tuple(sample.function(*map(lay, inputs), **case.params)) for lay in (lambda x: x, *copies)
            )
        for x, y, z in zip(results, dense, shifted, strict=True):
            assert_same_bits(x, y)
            assert_same_bits(x, z)

    check()


def gradients(function, inputs, seed):
    """The gradients of a function's floating results along fixed cotangents, in float64."""
    floating = [i for i, x in enumerate(inputs) if x.dtype.is_float]

    def of_floating(*variables):
        arguments = list(inputs)
        for i, x in zip(floating, variables):
            arguments[i] = x
        return tuple(o for o in in_tuple(function(*arguments)) if o.dtype.is_float)

    outputs, pull = vjp(of_floating, *(inputs[i] for i in floating))
    rng = np.random.default_rng(seed)
    cotangents = [Tensor(rng.uniform(-1, 1, o.shape)).astype(dtypes.bfloat16) for o in outputs]
    placed = [c.to(o.device).astype(o.dtype) for c, o in zip(cotangents, outputs)]
    return [g.numpy().astype(np.float64) for g in pull(*placed)]


@in_both_precisions([name for name in DIFFERENTIABLE if name != "dropout"])
def test_a_gradient_errs_at_most_twice_as_much_as_on_the_cpu(name, dtype):
    """And by a rounding of the largest term: on small operands the CPU may be exact by luck, and terms may cancel."""
    sample = SAMPLES[name]

    @settings(few, max_examples=6)
    @given(st.data())
    def check(data):
        case = data.draw(sample.cases)
        params = case.params | sample.smooth
        inputs = operands(data.draw, case, dtype)
        function = lambda *x: sample.function(*x, **params)  # noqa: E731
        wide = [x.astype(dtypes.float64) if x.dtype.is_float else x for x in inputs]
        exact, naive = gradients(function, wide, 0), gradients(function, inputs, 0)
        with tinyarr.use_device(GPU):
            found = gradients(function, [on(GPU, x) for x in inputs], 0)
        unit = float(ml_dtypes.finfo(dtype.numpy).eps)
        operand = max((np.abs(x.numpy().astype(np.float64)).max(initial=0) for x in wide), default=0)
        size = max(operand, *(np.linalg.norm(e) for e in exact))
        for e, n, f in zip(exact, naive, found):
            if np.isfinite(e).all():
                assert np.linalg.norm(f - e) <= 2 * np.linalg.norm(n - e) + 2 * unit * size

    check()


@in_both_precisions(FUSED)
def test_a_fused_kernel_errs_at_most_twice_as_much_as_its_composite(name, dtype):
    sample, rng = SAMPLES[name], np.random.default_rng(0)
    case = sample.large
    kinds = [o.dtype or dtype for o in case.operands]
    inputs = [Tensor(values_of(o, d)(rng, o.shape), dtype=d, device=GPU) for o, d in zip(case.operands, kinds)]
    with tinyarr.use_device(GPU), recorded() as ran:
        sample.function(*inputs, **case.params)
        found = [(c, a) for c, a in ran if c.primitive.name == name]
        if not found:
            return  # a composite differentiates itself
        call, arrays = found[0]
        tensors = [result_tensor(x) for x in arrays]
        wide = [x.astype(dtypes.float64) if x.dtype.is_float else x for x in tensors]
        exact = in_tuple(call.primitive.composite(*wide, **call.params))
        naive = in_tuple(call.primitive.composite(*tensors, **call.params))
        fused = eager.run(call, arrays, None)
        if fused is None:
            return  # the composite is what runs
    for e, n, f in zip(exact, naive, map(result_tensor, fused)):
        assert f.dtype is n.dtype
        assert distance(f, e) <= 2 * distance(n, e)
