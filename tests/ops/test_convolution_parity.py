"""Convolutions and pooling beside torch's in float64: values, gradients, and the modules' names."""

import functools

import numpy as np
import pytest
from hypothesis import strategies as st

import tinyarr as ta
from tests.ops.test_convolution import convolution_case, given_cases
from tests.samples.convolution import geometry, unfolded
from tinyarr import Tensor, nn
from tinyarr.errors import ShapeError

pytestmark = pytest.mark.parity


def functions(name, **how):
    """A function of tinyarr's and torch's, with options."""
    import torch

    return (functools.partial(getattr(module, name), **how) for module in (ta, torch.nn.functional))


def compare(ours, theirs, *shapes, rng):
    """Results and gradients of two functions, of arrays of these shapes."""
    import torch

    arrays = [rng.normal(size=shape) for shape in shapes]
    inputs = [torch.from_numpy(a).requires_grad_() for a in arrays]
    expected = theirs(*inputs)
    y, pull = ta.vjp(ours, *map(Tensor, arrays))
    g = rng.normal(size=y.shape)
    expected.backward(torch.from_numpy(g))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    for found, x in zip(pull(Tensor(g)), inputs, strict=True):
        np.testing.assert_allclose(found.numpy(), x.grad.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "axes"), [("conv1d", 1), ("conv2d", 2)])
def test_convolutions_equal_torch_s(name, axes):
    @given_cases(40)
    def check(data, rng):
        (x, weight), how = convolution_case(data.draw, axes)
        compare(*functions(name, **how), x, weight, weight[:1], rng=rng)

    check()


def test_an_int_is_the_size_of_both_axes_of_a_fold():
    compare(*functions("fold", output_size=4, kernel_size=2, stride=2), (2, 4, 4), rng=np.random.default_rng(0))


@given_cases(40)
def test_transposed_convolutions_equal_torch_s(data, rng):
    sizes, how = geometry(data.draw, 2)
    groups, kernel = data.draw(st.integers(1, 2)), how.pop("kernel_size")
    more = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(how["stride"], how["dilation"])]
    ours, theirs = functions("conv_transpose2d", groups=groups, output_padding=tuple(more), **how)
    x, weight = (2, 2 * groups, *sizes), (2 * groups, 3, *kernel)
    try:
        ours(ta.zeros(x), ta.zeros(weight))
    except ShapeError:
        return  # nothing would be left: torch refuses it, or gives an empty tensor
    compare(ours, theirs, x, weight, (3 * groups,), rng=rng)


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "unfold", "fold"])
def test_pooling_and_unfolding_equal_torch_s(name):
    @given_cases(30)
    def check(data, rng):
        sizes, how = geometry(data.draw, 2)
        shape = (2, 3, *sizes)
        if name == "fold":
            shape, how["output_size"] = unfolded(np.empty(shape), **how).shape, sizes
        elif name != "unfold":
            how["padding"] = tuple(k // 2 for k in how["kernel_size"])
            how.pop("dilation")
            shape = (2, 3, *map(max, sizes, how["kernel_size"]))
        compare(*functions(name, **how), shape, rng=rng)

    check()


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("Conv1d", (4, 6, 3, 2, 1, 1, 2), (2, 4, 9)),
        ("Conv2d", (4, 6, (3, 2), 2, 1, 1, 2), (2, 4, 9, 8)),
        ("Conv2d", (4, 6, 3, 1, "same", 1, 1, False), (2, 4, 9, 8)),
        ("ConvTranspose2d", (4, 6, (3, 2), 2, 1, 1, 2), (2, 4, 5, 4)),
        ("MaxPool2d", (3, 2, 1), (2, 4, 9, 8)),
        ("AvgPool2d", (3, 2, 1), (2, 4, 9, 8)),
    ],
)
def test_layers_have_torch_s_results_and_names(name, arguments, shape):
    import torch

    theirs, ours = getattr(torch.nn, name)(*arguments).double(), getattr(nn, name)(*arguments).to(ta.float64)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    compare(ours, theirs, shape, rng=np.random.default_rng(0))
