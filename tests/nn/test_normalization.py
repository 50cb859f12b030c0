"""Normalization over several axes, a batch, and groups of channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import Tensor, nn
from tinyarr.errors import ArgumentError, ShapeError
from tinyarr.testing import gradcheck, gradgradcheck

EPS = 1e-3


def normalized(x, axes):
    """(x - mean) / sqrt(var + eps) over axes."""
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPS)


def filled(module, seed=0):
    """The module with random weights, as float64."""
    rng = np.random.default_rng(seed)
    module.to(ta.float64).load_state_dict({
        name: rng.uniform(0.5, 2, t.shape) if t.dtype.is_float else t for name, t in module.state_dict().items()
    })
    return module


def affine(module, x):
    """The weight and the bias of channels as they broadcast over x."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    return module.weight.numpy().reshape(shape), module.bias.numpy().reshape(shape)


batches = st.tuples(
    st.integers(2, 4), st.integers(1, 4), st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2**32)
)


@given(batches)
@at_most(40, deadline=None)
def test_a_batch_is_normalized_by_channel_and_averages_of_its_statistics_are_kept(drawn):
    B, C, more, seed = drawn
    x = np.random.default_rng(seed).normal(1, 3, (B, C, *more))
    module = filled((nn.BatchNorm2d if len(more) == 2 else nn.BatchNorm1d)(C, EPS, 0.25), seed)
    axes = (0, *range(2, x.ndim))
    before = {name: t.numpy().copy() for name, t in module.named_buffers()}
    weight, bias = affine(module, x)
    np.testing.assert_allclose(module(Tensor(x)).numpy(), normalized(x, axes) * weight + bias, rtol=1e-10, atol=1e-12)
    for name, new in (("running_mean", x.mean(axes)), ("running_var", x.var(axes, ddof=1))):
        moved = 0.75 * before[name] + 0.25 * new
        np.testing.assert_allclose(getattr(module, name).numpy(), moved, rtol=1e-10, atol=1e-12)
    assert module.num_batches_tracked.item() == 1
    kept = {name: t.tolist() for name, t in module.named_buffers()}
    found = module.eval()(Tensor(x)).numpy()
    mean, var = (t.numpy().reshape((-1,) + (1,) * len(more)) for t in (module.running_mean, module.running_var))
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(var + EPS) * weight + bias, rtol=1e-10, atol=1e-12)
    assert kept == {name: t.tolist() for name, t in module.named_buffers()}


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.lists(st.integers(1, 3), max_size=2),
       st.integers(0, 2**32))  # fmt: skip
@at_most(40, deadline=None)
def test_groups_of_channels_are_normalized_by_themselves(B, groups, width, more, seed):
    x = np.random.default_rng(seed).normal(1, 3, (B, groups * width, *more))
    module = filled(nn.GroupNorm(groups, groups * width, EPS), seed)
    weight, bias = affine(module, x)
    expected = normalized(x.reshape(B, groups, -1), -1).reshape(x.shape) * weight + bias
    np.testing.assert_allclose(module(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_layer_norm_goes_over_as_many_axes_as_it_was_given_sizes(last, bias):
    x = np.random.default_rng(last).normal(1, 3, (2, 3, 4))
    module = filled(nn.LayerNorm(x.shape[-last:] if last > 1 else 4, eps=EPS, bias=bias))
    expected = normalized(x, tuple(range(-last, 0))) * module.weight.numpy() + (module.bias.numpy() if bias else 0)
    np.testing.assert_allclose(module(Tensor(x)).numpy(), expected, rtol=1e-10, atol=1e-12)
    assert list(module.state_dict()) == ["weight", "bias"][: 1 + bias]


MODULES = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (4, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3, momentum=None), (2, 3, 2, 2)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "LayerNorm": (lambda: nn.LayerNorm((3, 2)), (4, 3, 2)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_finite_differences(name, training):
    make, shape = MODULES[name]
    module = filled(make()).train(training)
    x = Tensor(np.random.default_rng(0).normal(size=shape))
    assert gradcheck(module, x)
    assert gradgradcheck(module, x)


@pytest.mark.parametrize("name", MODULES)
def test_a_compiled_step_does_what_an_eager_one_does_to_parameters_and_buffers(name):
    make, shape = MODULES[name]
    modules = [filled(make()) for _ in range(2)]

    def stepping(module):
        optimizer = ta.optim.SGD(module.parameters(), lr=0.1)

        def step(x):
            loss = (module(x) ** 3).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return step

    eager, compiled = stepping(modules[0]), ta.compile(stepping(modules[1]))
    for seed in range(3):
        x = ta.randn(*shape, generator=ta.Generator(seed), dtype=ta.float64)
        assert compiled(x).item() == pytest.approx(eager(x).item(), rel=1e-11)
    for key, t in modules[0].state_dict().items():
        np.testing.assert_allclose(modules[1].state_dict()[key].numpy(), t.numpy(), rtol=1e-11, err_msg=key)
    compiled_eval, modules = ta.compile(modules[1].eval()), [module.eval() for module in modules]
    np.testing.assert_allclose(compiled_eval(x).numpy(), modules[0](x).numpy(), rtol=1e-11)


@pytest.mark.parametrize("name", MODULES)
def test_half_types_are_computed_in_float32_and_rounded_once(name):
    make, shape = MODULES[name]
    x = (ta.randn(*shape, generator=ta.Generator(0)) * 3 + 100).astype(ta.bfloat16)
    module = make()
    expected = module(x.astype(ta.float32)).astype(ta.bfloat16)
    found = make().to(ta.bfloat16)(x)
    assert found.dtype is ta.bfloat16 and found.tolist() == expected.tolist()


@pytest.mark.parametrize("module", [nn.BatchNorm1d(3), nn.GroupNorm(1, 3)], ids=["BatchNorm1d", "GroupNorm"])
def test_integers_are_normalized_as_floats_and_a_batch_may_be_empty(module):
    x = ta.arange(12).reshape(4, 3)
    found = module(x)
    assert found.dtype is ta.float32 and found.tolist() == module(x.astype(ta.float32)).tolist()
    assert module.eval()(ta.zeros(0, 3)).shape == (0, 3)


def test_buffers_are_not_parameters_and_move_with_the_module():
    module = nn.BatchNorm1d(2)
    assert [name for name, _ in module.named_buffers()] == ["running_mean", "running_var", "num_batches_tracked"]
    assert len(list(module.parameters())) == 2
    module.to(ta.bfloat16)
    assert module.running_var.dtype is ta.bfloat16 and module.num_batches_tracked.dtype is ta.int64
    module.to("meta")
    assert module.num_batches_tracked.device.kind == "meta"
    assert list(nn.BatchNorm1d(2, track_running_stats=False, affine=False).state_dict()) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: nn.BatchNorm1d(3)(x), ShapeError, r"^BatchNorm1d: x has shape \(2, 4, 3, 3\).*: it must have 2 "),
        (lambda x: nn.BatchNorm2d(3)(x), ShapeError, "^BatchNorm2d: .* it must have 4 axes, of which the second is 3"),
        (lambda x: nn.BatchNorm1d(4)(x[:1, :, 0, 0]), ShapeError, "^BatchNorm1d: x has 1 elements a channel: training"),
        (lambda x: nn.GroupNorm(3, 4), ArgumentError, "^GroupNorm: num_groups is 3: it must divide num_channels, 4"),
        (lambda x: nn.GroupNorm(2, 6)(x), ShapeError, "^GroupNorm: .* two axes or more, of which the second is 6"),
        (lambda x: nn.LayerNorm((4, 3))(x.swapaxes(1, 3)), ShapeError, r"^LayerNorm: .* last axes must be \(4, 3\)"),
        (lambda x: nn.LayerNorm(2.5), TypeError, "^LayerNorm: shape is 2.5: give ints"),
        (lambda x: nn.GroupNorm(2, 4)([1]), TypeError, "^GroupNorm: x is list: make it a tensor"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(ta.zeros(2, 4, 3, 3))
