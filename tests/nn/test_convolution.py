import numpy as np
import pytest

import tinyarr as ta
from tinyarr import nn

RNG = np.random.default_rng(0)
LAYERS = {
    "Conv1d": (nn.Conv1d, ta.conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}, (2, 4, 9)),
    "Conv2d": (nn.Conv2d, ta.conv2d, (4, 6, (3, 2)), {"padding": "same", "groups": 2}, (2, 4, 5, 4)),
    "ConvTranspose2d": (
        nn.ConvTranspose2d, ta.conv_transpose2d, (4, 6, (3, 2)),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": (1, 2)}, (2, 4, 5, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_is_its_function_with_a_weight_and_a_bias_of_its_own(name, bias):
    make, function, sizes, options, shape = LAYERS[name]
    layer = make(*sizes, **options, bias=bias, generator=ta.Generator(0))
    rows, columns = (4, 6) if make is nn.ConvTranspose2d else (6, 4)
    kernel = (3, 2)[: len(shape) - 2]
    assert layer.weight.shape == (rows, columns // 2, *kernel)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"][: 1 + bias]
    # The largest of n uniform numbers lies below 0.8 of their bound with probability 0.8**n, here at most 0.0004.
    largest, bound = np.abs(layer.weight.numpy()).max(), (columns // 2 * np.prod(kernel)) ** -0.5
    assert 0.8 * bound < largest <= bound
    x = ta.Tensor(RNG.normal(size=shape).astype(np.float32))
    expected = function(x, layer.weight, layer.bias, **options).numpy()
    np.testing.assert_array_equal(layer(x).numpy(), expected)
    np.testing.assert_allclose(ta.compile(layer)(x).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_pooling_modules_are_their_functions():
    x = ta.Tensor(RNG.normal(size=(2, 3, 6, 7)))
    assert nn.MaxPool2d(3, 2, padding=1)(x).tolist() == ta.max_pool2d(x, 3, 2, 1).tolist()
    assert nn.AvgPool2d((3, 2))(x).tolist() == ta.avg_pool2d(x, (3, 2)).tolist()
