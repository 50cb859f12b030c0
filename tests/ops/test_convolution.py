"""Convolutions and pooling against their definitions."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.samples.convolution import geometry, unfolded
from tests.tiers import at_most
from tinyarr import Tensor, nn
from tinyarr.errors import ArgumentError, DtypeError, ShapeError
from tinyarr.testing import gradcheck, gradgradcheck

CONVOLUTIONS = {1: ta.conv1d, 2: ta.conv2d}


def given_cases(most, first=None):
    """Decorator: some `data` and a generator of the operands' elements."""
    data = given(st.data(), st.integers(0, 99).map(np.random.default_rng))
    return lambda check: at_most(most, first=first)(data(check))


def convolution_case(draw, axes):
    """The shapes of x and weight, and the options of a convolution."""
    sizes, windows = geometry(draw, axes)
    groups, inner, outer = (draw(st.integers(1, 2)) for _ in range(3))
    shapes = (draw(st.integers(1, 2)), groups * inner, *sizes), (groups * outer, inner, *windows.pop("kernel_size"))
    return shapes, {**windows, "groups": groups}


def convolution(x, weight, bias, *, stride, padding, dilation, groups):
    """The definition: each output is the product of its weights with a window of its group's channels."""
    how = {"kernel_size": weight.shape[2:], "stride": stride, "padding": padding, "dilation": dilation}
    results = []
    for part, kernel in zip(np.split(x, groups, axis=1), np.split(weight, groups), strict=True):
        results.append(np.einsum("of,bfl->bol", kernel.reshape(len(kernel), -1), unfolded(part, **how)))
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation)]
    sizes = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(x.shape[2:], padding, reach, stride)]
    return np.concatenate(results, axis=1).reshape(len(x), len(weight), *sizes) + bias.reshape(-1, *[1] * len(sizes))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_convolution_multiplies_each_window_by_the_kernel(axes):
    @given_cases(24)
    def check(data, rng):
        (x, weight), options = convolution_case(data.draw, axes)
        arrays = rng.normal(size=x), rng.normal(size=weight), rng.normal(size=weight[0])
        found = CONVOLUTIONS[axes](*map(Tensor, arrays), **options).numpy()
        np.testing.assert_allclose(found, convolution(*arrays, **options), rtol=1e-13, atol=1e-13)

    check()


@given_cases(12, first=4)
def test_the_transpose_of_a_convolution_is_its_gradient(data, rng):
    (x, weight), options = convolution_case(data.draw, 2)
    image, kernel = Tensor(rng.normal(size=x)), Tensor(rng.normal(size=weight))
    y, pull = ta.vjp(lambda x: ta.conv2d(x, kernel, **options), image)
    g = Tensor(rng.normal(size=y.shape))
    least = [(m - 1) * s - 2 * p + (k - 1) * d + 1 for m, s, p, k, d in zip(
        y.shape[2:], options["stride"], options["padding"], weight[2:], options["dilation"])]  # fmt: skip
    left = tuple(n - m for n, m in zip(x[2:], least))
    if min(least) < 1 or any(n >= max(s, d) for n, s, d in zip(left, options["stride"], options["dilation"])):
        return
    found = ta.conv_transpose2d(g, kernel, output_padding=left, **options)
    np.testing.assert_allclose(found.numpy(), pull(g)[0].numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("function", [ta.conv1d, ta.conv2d, ta.conv_transpose2d])
def test_gradients_of_convolutions_agree_with_finite_differences(function):
    rng, axes = np.random.default_rng(0), 1 if function is ta.conv1d else 2
    x, weight, bias = (Tensor(rng.normal(size=s)) for s in ((2, 4, 5, 4)[: axes + 2], (4, 2, 2, 3)[: axes + 2], 4))
    options = {"stride": 2, "padding": 1, "groups": 2}
    assert gradcheck(functools.partial(function, **options), x, weight, bias)
    assert gradgradcheck(functools.partial(function, **options), x, weight, bias)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_padding_same_keeps_the_sizes_and_pads_more_at_the_end(kernel):
    x = np.random.default_rng(0).normal(size=(1, 1, 6))
    before, after = (kernel - 1) // 2, kernel // 2
    padded = Tensor(np.pad(x, [(0, 0), (0, 0), (before, after)]))
    weight = Tensor(np.random.default_rng(1).normal(size=(1, 1, kernel)))
    found = ta.conv1d(Tensor(x), weight, padding="same")
    assert found.shape == x.shape
    np.testing.assert_array_equal(found.numpy(), ta.conv1d(padded, weight, padding="valid").numpy())


def test_half_types_are_added_up_in_float32():
    columns = ta.ones((1, 300, 300), dtype=ta.bfloat16)
    assert ta.fold(columns, (599,), 300).max().item() == 300  # in bfloat16, 256 + 1 is 256


def test_a_batch_of_nothing_gives_nothing_and_a_gradient_of_zeros():
    x, weight = ta.zeros((0, 2, 4, 4), requires_grad=True), ta.ones((3, 2, 3, 3), requires_grad=True)
    y = ta.conv2d(x, weight)
    y.sum().backward()
    assert y.shape == (0, 3, 2, 2) and x.grad.shape == x.shape and not weight.grad.numpy().any()


def test_programs_fold_long_rows_and_large_planes_with_the_bits_of_eager_mode(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    rng = np.random.default_rng(0)
    for shape, kernel in (((1, 2, 5000), 3), ((2, 3, 40, 50), (3, 5))):
        columns = ta.unfold(Tensor(rng.normal(size=shape).astype(np.float32)), kernel, padding=1)

        def both(columns, shape=shape, kernel=kernel):
            x = ta.fold(columns, shape[2:], kernel, padding=1)
            return x, ta.unfold(x, kernel, padding=1)

        for eager, compiled in zip(both(columns), ta.compile(both)(columns), strict=True):
            np.testing.assert_array_equal(eager.numpy(), compiled.numpy())


def test_a_budget_of_memory_makes_the_windows_again():
    x, weight = ta.randn(1, 4, 64, 64), ta.randn(4, 4, 5, 5)

    def gradient(weight):
        def loss(weight):
            y = x
            for _ in range(3):
                y = ta.tanh(ta.conv2d(y, weight, padding=2))
            return y.sum()

        return ta.grad(loss)(weight)

    # The windows of a layer are 100 planes of 16 KiB, 1.6 MB: those of two fit, or those of three.
    runs = [ta.compile(gradient), ta.compile(gradient, memory_budget=4_000_000)]
    results = [run(weight).numpy() for run in runs]
    np.testing.assert_array_equal(*results)
    assert [str(run.graphs[0]).count(" = unfold(") for run in runs] == [3, 5]


def windows(x, kernel_size, stride, padding, outside):
    """The windows (B, C, places, positions) of x, padded with `outside`."""
    padded = np.pad(x, [(0, 0)] * 2 + [(p, p) for p in padding], constant_values=outside)
    columns = unfolded(padded, kernel_size, (1, 1), (0, 0), stride)
    return columns.reshape(*x.shape[:2], -1, columns.shape[-1])


@pytest.mark.parametrize(
    ("pool", "of_window", "outside"), [(ta.max_pool2d, np.max, -np.inf), (ta.avg_pool2d, np.mean, 0)]
)
def test_pooling_takes_the_largest_or_the_mean_of_each_window(pool, of_window, outside):
    @given_cases(16)
    def check(data, rng):
        sizes, how = geometry(data.draw, 2)
        kernel, stride = how["kernel_size"], how["stride"]
        padding = tuple(min(p, k // 2) for p, k in zip(how["padding"], kernel))
        x = rng.normal(size=(2, 3, *(max(n, k) for n, k in zip(sizes, kernel))))
        found = pool(Tensor(x), kernel, stride, padding)
        expected = of_window(windows(x, kernel, stride, padding, outside), axis=2)
        np.testing.assert_allclose(found.numpy().reshape(expected.shape), expected, rtol=1e-15)
        assert gradcheck(lambda x: pool(x, kernel, stride, padding), Tensor(x))

    check()


def test_what_is_padded_is_never_the_largest_and_ties_split_the_gradient():
    x = Tensor(np.full((1, 1, 2, 2), -np.inf), requires_grad=True)
    y = ta.max_pool2d(x, 2, 1, 1)
    assert (y.numpy() == -np.inf).all()
    x = Tensor([[[[1.0, 1.0], [0.0, 1.0]]]], requires_grad=True)
    (3 * ta.max_pool2d(x, 2)).backward(ta.ones((1, 1, 1, 1)))
    assert x.grad.tolist() == [[[[1, 1], [0, 1]]]]
    assert np.isnan(ta.max_pool2d(Tensor([[[[1.0, np.nan]]]]), (1, 2)).item())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ta.conv2d(ta.ones((3, 4, 4)), ta.ones((1, 3, 2, 2))), ShapeError, r"conv2d: x .*\(B, C, H, W\)"),
        (lambda: ta.conv2d(ta.ones((1, 3, 4, 4)), ta.ones((1, 2, 2, 2))), ShapeError, "conv2d: .*weight has shape"),
        (lambda: ta.conv2d(ta.ones((1, 4, 4, 4)), ta.ones((3, 2, 2, 2)), groups=2), ShapeError, "groups is 2"),
        (lambda: ta.conv1d(ta.ones((1, 1, 4)), ta.ones((2, 1, 3)), ta.ones(3)), ShapeError, r"conv1d: bias .*\(2,\)"),
        (lambda: ta.conv1d(ta.ones((1, 1, 4)), ta.ones((2, 1, 5))), ShapeError, r"conv1d: .*reaches over \(5,\)"),
        (lambda: ta.conv1d(ta.ones((1, 1, 4)), ta.ones((2, 1, 3)), None, 2, "same"), ArgumentError, "'same', stride"),
        (lambda: ta.conv1d(ta.ones((1, 1, 4)), ta.ones((2, 1, 3)), padding="full"), TypeError, "padding is 'full'"),
        (lambda: ta.fold(ta.ones((1, 2, 3)), "a", 2), TypeError, "^fold: output_size is 'a'"),
        (lambda: ta.fold(ta.ones((1, 1, 1)), (), 1), ArgumentError, r"^fold: output_size is \(\)"),
        (lambda: ta.conv1d(ta.ones((1, 1, 4)), ta.ones((2, 1, 3)), stride=1.5), TypeError, "conv1d: stride is 1.5"),
        (
            lambda: ta.conv_transpose2d(ta.ones((1, 3, 2, 2)), ta.ones((2, 3, 2, 2))),
            ShapeError,
            "conv_transpose2d: .*weight has shape",
        ),
        (
            lambda: ta.conv_transpose2d(ta.ones((1, 1, 2, 2)), ta.ones((1, 1, 2, 2)), output_padding=1),
            ArgumentError,
            "output_padding is .*less than stride",
        ),
        (
            lambda: ta.conv_transpose2d(ta.ones((1, 1, 1, 1)), ta.ones((1, 1, 1, 1)), padding=1),
            ShapeError,
            "nothing is left",
        ),
        (lambda: ta.max_pool2d(ta.ones((1, 1, 4, 4)), 2, padding=2), ArgumentError, "max_pool2d: padding is 2"),
        (lambda: ta.max_pool2d(ta.ones((1, 1, 4, 4), dtype=ta.int32), 2), DtypeError, "max_pool2d: x has dtype int32"),
        (lambda: ta.avg_pool2d(ta.ones((1, 4, 4)), 2), ShapeError, "avg_pool2d: x has shape"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ArgumentError, "Conv2d: groups is 2"),
    ],
)
def test_a_wrong_argument_of_a_convolution_is_told_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()
