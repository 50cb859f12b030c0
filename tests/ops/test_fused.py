"""Operations made of their composite: shapes, gradients of any order and bounds are derived."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, dtypes
from tinyarr.backends.numpy import KERNELS
from tinyarr.backends.numpy.registry import kernel
from tinyarr.device import memory_stats
from tinyarr.errors import OutOfBounds
from tinyarr.ops.fused import fused
from tinyarr.ops.primitive import Bounds, apply
from tinyarr.testing import gradcheck, gradgradcheck


@fused(outputs=("out", "largest"), saved=("w", "x", "largest"))
def weighted_sine(x, w, *, by):
    largest = ta.max(ta.abs(x.detach()), axis=-1)
    return ta.sin(x) * w * by, largest


@fused(variables=("x",), bounds=lambda shapes, params: Bounds(1, 0, shapes[0][0], name="row"))
def picked(x, rows):
    return ta.exp(ta.embedding(x, rows))


def operands(dtype=dtypes.float64):
    generator = ta.Generator()  # the same ones whichever tests drew before: C's sine is not NumPy's to the last bit
    return ta.uniform((2, 3), generator=generator, dtype=dtype), ta.uniform((3,), generator=generator, dtype=dtype)


def test_shapes_and_dtypes_are_those_of_the_composite():
    x, w = operands(dtypes.float32)
    out, largest = weighted_sine(x, w, by=2)
    assert (out.shape, out.dtype, largest.shape) == ((2, 3), dtypes.float32, (2,))
    compiled = ta.compile(lambda x, w: weighted_sine(x, w, by=2)[0])
    assert (compiled(x, w) == out).all()


def test_gradients_are_those_of_the_composite():
    x, w = operands()
    assert gradcheck(lambda x, w: weighted_sine(x, w, by=2)[0], x, w)
    assert gradgradcheck(lambda x, w: weighted_sine(x, w, by=2)[0], x, w)
    assert ta.grad(lambda x: weighted_sine(x, w, by=2)[1].sum())(x).tolist() == [[0] * 3] * 2  # a cache has none


def test_a_kernel_and_one_of_the_gradient_take_the_place_of_the_composite():
    def on_cpu(x, w, out, largest, *, by):
        np.multiply(np.sin(x) * w, by, out)
        np.max(np.abs(x), axis=-1, out=largest)

    def gradient_on_cpu(g, w, x, largest, dx, dw, *, by):
        np.multiply(g * w * by, np.cos(x), dx)
        np.sum(g * np.sin(x) * by, axis=0, out=dw)
        assert np.array_equal(largest, np.abs(x).max(axis=-1))

    x, w = operands()
    find = ta.grad(lambda x, w: weighted_sine(x, w, by=3)[0].sum(), argnums=(0, 1))
    wanted = [g.numpy() for g in find(x, w)]
    kernel(weighted_sine)(on_cpu)
    kernel(weighted_sine.derived_gradient)(gradient_on_cpu)
    try:
        for caches in (weighted_sine, weighted_sine.derived_gradient):
            caches._calls.clear()
        for found, right in zip(find(x, w), wanted, strict=True):
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-14)
        assert gradgradcheck(lambda x, w: weighted_sine(x, w, by=3)[0], x, w)
    finally:
        for made in (weighted_sine, weighted_sine.derived_gradient):
            del KERNELS[made]
            made._calls.clear()


def test_indices_are_checked_before_a_composite_runs_and_before_its_gradient():
    x = ta.ones((2, 3), dtype=dtypes.float64)
    with pytest.raises(OutOfBounds, match="picked: row 1 is 2: use 0 to 1"):
        picked(x, Tensor([0, 2]))
    with pytest.raises(OutOfBounds, match="picked_gradient: row 0 is -1"):
        apply(picked.derived_gradient, ta.ones((1, 3)), ta.ones((2, 3)), Tensor([-1]))
    assert gradcheck(lambda x: picked(x, Tensor([1, 0, 1])), x)


def test_eager_attention_and_a_models_head_hold_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("tinyarr.backends.numpy.NumpyBackend.block", 1 << 14)
    q = ta.uniform((2, 4, 256, 8), requires_grad=True)
    x, w, y = ta.uniform((2048, 8), requires_grad=True), ta.uniform((512, 8), requires_grad=True), ta.arange(2048) % 512
    for function, whole in (
        (lambda: ta.scaled_dot_product_attention(q, q, q, is_causal=True), 2 * 4 * 256 * 256 * 4),
        (lambda: ta.linear_cross_entropy(x, w, y), 2048 * 512 * 4),
    ):
        held = []
        before = memory_stats().in_use
        out = function().sum()
        held.append(memory_stats().in_use - before)
        out.backward()
        assert max(held) < whole / 4


def test_blocks_change_gradients_by_rounding_alone(monkeypatch):
    q, k, v = (ta.uniform((2, heads, 6, 4), dtype=dtypes.float64) for heads in (6, 2, 2))
    x, w, y = ta.uniform((300, 4), dtype=dtypes.float64), ta.uniform((7, 4), dtype=dtypes.float64), ta.arange(300) % 7

    def attention(q, k, v):
        return ta.sin(ta.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)).sum()

    def head(x, w):
        return ta.linear_cross_entropy(x, w, y)

    for function, given in ((attention, (q, k, v)), (head, (x, w))):
        find = ta.value_and_grad(function, argnums=tuple(range(len(given))))
        value, grads = find(*given)
        with monkeypatch.context() as small:
            small.setattr("tinyarr.backends.numpy.NumpyBackend.block", 8 * 40)
            small.setattr("tinyarr.backends.numpy.NumpyBackend.even", 8)
            for again, in_blocks in (find(*given), ta.compile(find)(*given)):
                assert abs(value - again) < 1e-13
                for g, h in zip(grads, in_blocks, strict=True):
                    np.testing.assert_allclose(h.numpy(), g.numpy(), rtol=1e-11, atol=1e-13)


def test_a_bad_target_is_named_by_its_number_among_all():
    x, w, y = ta.zeros((1200, 2)), ta.zeros((20_000, 2)), ta.zeros(1200, dtype=dtypes.int64)
    y[1100] = 20_000
    with pytest.raises(OutOfBounds, match="target 1100 is 20000: use 0 to 19999"):
        ta.linear_cross_entropy(x, w, y)
