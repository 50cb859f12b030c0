import numpy as np
import pytest

import tinyarr
from tinyarr import Device, Generator, nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 8))
x = tinyarr.Tensor(X)
place = {"dtype": tinyarr.float64, "generator": Generator(0)}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_multiplies_by_its_transposed_weight_and_adds_its_bias(bias):
    layer = nn.Linear(8, 3, bias=bias, **place)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"][: 1 + bias]
    expected = X @ layer.weight.numpy().T + (layer.bias.numpy() if bias else 0)
    np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-13)


def test_embedding_looks_rows_up():
    layer, tokens = nn.Embedding(10, 4, **place), RNG.integers(0, 10, (3, 2))
    assert np.array_equal(layer(tinyarr.Tensor(tokens)).numpy(), layer.weight.numpy()[tokens])


def test_layer_norm_normalizes_the_last_axis_then_scales_and_shifts():
    layer = nn.LayerNorm(8, eps=0.1, dtype=tinyarr.float64)
    normal = (X - X.mean(axis=-1, keepdims=True)) / np.sqrt(X.var(axis=-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(layer(x).numpy(), normal, rtol=1e-13)
    weight, bias = RNG.normal(size=(2, 8))
    layer.load_state_dict({"weight": tinyarr.Tensor(weight), "bias": tinyarr.Tensor(bias)})
    np.testing.assert_allclose(layer(x).numpy(), normal * weight + bias, rtol=1e-12)


def test_dropout_zeroes_a_share_and_scales_the_rest_in_training_alone():
    layer, ones = nn.Dropout(0.25, generator=Generator(0)), tinyarr.ones((100, 100))
    dropped = layer(ones).numpy()
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=5 * (0.25 * 0.75) ** 0.5 / 100)
    assert not np.array_equal(dropped, layer(ones).numpy())
    assert np.array_equal(dropped, nn.Dropout(0.25, generator=Generator(0))(ones).numpy())
    assert layer.eval()(ones) is ones


def test_dropout_s_gradient_has_the_mask_of_its_output():
    ones = tinyarr.ones((10, 10), requires_grad=True)
    out = nn.Dropout(0.5, generator=Generator(0))(ones)
    out.sum().backward()
    assert np.array_equal(ones.grad, out.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_the_functions_with_fixed_options(reduction):
    targets, y = tinyarr.Tensor(RNG.integers(0, 8, (2, 5))), tinyarr.Tensor(RNG.normal(size=X.shape))
    loss = nn.CrossEntropyLoss(ignore_index=3, reduction=reduction)(x, targets)
    assert np.array_equal(
        loss.numpy(), tinyarr.cross_entropy(x, targets, ignore_index=3, reduction=reduction).numpy()
    )
    loss = nn.MSELoss(reduction=reduction)(x, y)
    assert np.array_equal(loss.numpy(), tinyarr.mse_loss(x, y, reduction=reduction).numpy())


@pytest.mark.parametrize(
    ("make", "mean", "std", "largest"),
    [
        (lambda **where: nn.init.constant((100, 100), 3.0, dtype=where["dtype"]), 3, 0, 3),
        (lambda **where: nn.init.normal((100, 100), 0.5, **where), 0, 0.5, np.inf),
        (lambda **where: nn.init.uniform((100, 100), 2.0, **where), 0, 2 / 3**0.5, 2),
        (lambda **where: nn.Linear(100, 100, **where).weight, 0, 0.1 / 3**0.5, 0.1),
        (lambda **where: nn.Linear(4, 10_000, **where).bias, 0, 0.5 / 3**0.5, 0.5),
        (lambda **where: nn.Embedding(100, 100, **where).weight, 0, 1, np.inf),
    ],
    ids=["constant", "normal", "uniform", "Linear weight", "Linear bias", "Embedding"],
)
@pytest.mark.parametrize("dtype", [tinyarr.float32, tinyarr.bfloat16])
def test_initial_values_have_the_stated_distribution(make, mean, std, largest, dtype):
    p = make(generator=Generator(0), dtype=dtype)
    assert isinstance(p, nn.Parameter) and p.dtype is dtype
    values = p.numpy().astype(np.float64)
    assert abs(values.mean() - mean) <= 5 * std / 100
    assert abs(values.std() - std) <= 5 * std / 2**0.5 / 100
    # The bound, rounded to the dtype, may be met.
    assert np.abs(values).max() <= largest * (1 + 2**-8)


def test_layers_are_made_where_and_of_the_dtype_that_they_are_told():
    where = {"dtype": tinyarr.float16, "device": Device("meta")}
    for layer in (nn.Linear(8, 3, **where), nn.Embedding(8, 3, **where), nn.LayerNorm(8, **where)):
        assert all(p.dtype is tinyarr.float16 and p.device is Device("meta") for p in layer.parameters())
