"""Modules made of functions: activations and losses."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, nn
from tinyarr.errors import ArgumentError

x = ta.randn(4, 3, generator=ta.Generator(0))
labels = Tensor([0, 2, -100, 1])
ACTIVATIONS = [
    (nn.ReLU(), ta.relu), (nn.ReLU(True), ta.relu), (nn.LeakyReLU(), ta.leaky_relu),
    (nn.LeakyReLU(0.2, inplace=True), lambda x: ta.leaky_relu(x, 0.2)), (nn.GELU(), ta.gelu),
    (nn.GELU(approximate="tanh"), lambda x: ta.gelu(x, approximate="tanh")), (nn.SiLU(inplace=True), ta.silu),
    (nn.Sigmoid(), ta.sigmoid), (nn.Softplus(), ta.softplus), (nn.Tanh(), ta.tanh), (nn.Softmax(), ta.softmax),
    (nn.Softmax(axis=0), lambda x: ta.softmax(x, axis=0)), (nn.LogSoftmax(1), ta.log_softmax),
    (nn.Identity(), lambda x: x), (nn.Flatten(0), lambda x: x.reshape(-1)),
]  # fmt: skip
LOSSES = [
    (nn.CrossEntropyLoss(ta.ones(3), ignore_index=-100, label_smoothing=0.1), labels,
     lambda x, y: ta.cross_entropy(x, y, ta.ones(3), label_smoothing=0.1)),
    (nn.NLLLoss(reduction="sum"), labels, lambda x, y: ta.nll_loss(x, y, reduction="sum")),
    (nn.MSELoss(), x + 1, ta.mse_loss), (nn.L1Loss(reduction="none"), x + 1, lambda x, y: ta.abs(x - y)),
    (nn.HuberLoss(delta=0.5), x + 1, lambda x, y: ta.huber_loss(x, y, delta=0.5)),
    (nn.SmoothL1Loss(beta=0.5), x + 1, lambda x, y: ta.smooth_l1_loss(x, y, beta=0.5)),
    (nn.BCELoss(), ta.sigmoid(x), lambda x, y: ta.binary_cross_entropy(x, y)),
    (nn.BCEWithLogitsLoss(pos_weight=ta.ones(3)), ta.sigmoid(x), ta.binary_cross_entropy_with_logits),
]  # fmt: skip


@pytest.mark.parametrize(("module", "function"), ACTIVATIONS, ids=lambda x: repr(x) if isinstance(x, nn.Module) else "")
def test_an_activation_is_its_function_eager_and_compiled(module, function):
    before = x.tolist()
    for call in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module)), ta.compile(module)):
        np.testing.assert_allclose(call(x).numpy(), function(x).numpy(), rtol=1e-6)
    assert x.tolist() == before
    assert isinstance(module, nn.Module) and list(module.state_dict()) == []


@pytest.mark.parametrize(("module", "target", "function"), LOSSES, ids=[type(case[0]).__name__ for case in LOSSES])
def test_a_loss_is_its_function_eager_and_compiled(module, target, function):
    for call in (module, ta.compile(module)):
        np.testing.assert_allclose(call(x, target).numpy(), function(x, target).numpy(), rtol=1e-6)


def test_flatten_keeps_the_batch_even_an_empty_one_and_any_axes_around():
    assert nn.Flatten()(ta.zeros(0, 3, 4)).shape == (0, 12)
    assert nn.Flatten(1, 2)(ta.zeros(2, 3, 4, 5)).shape == (2, 12, 5)
    assert nn.Flatten(0)(ta.zeros(2, 3)).shape == (6,)
    with pytest.raises(ArgumentError, match=r"^flatten: start_axis is 2, end_axis is -2: start must"):
        nn.Flatten(2, -2)(ta.zeros(2, 3, 4))


def test_the_weight_of_a_loss_is_a_buffer_that_is_moved_with_the_module():
    loss = nn.CrossEntropyLoss(weight=ta.ones(3))
    assert list(loss.state_dict()) == ["weight"] and list(loss.parameters()) == []
    loss.load_state_dict({"weight": Tensor([1.0, 2.0, 3.0])})
    expected = ta.cross_entropy(x, labels, Tensor([1.0, 2.0, 3.0])).item()
    assert loss(x, labels).item() == copy.deepcopy(loss)(x, labels).item() == expected
    assert loss.to("meta").weight.device.kind == "meta"


def test_an_option_is_an_attribute_that_may_be_set():
    loss = nn.CrossEntropyLoss(ta.ones(3))
    compiled, options = ta.compile(loss), {"weight": ta.ones(3)}
    for given in ({}, {"reduction": "sum"}, {"weight": Tensor([1.0, 2.0, 3.0])}, {"ignore_index": 2}):
        for name, value in given.items():
            setattr(loss, name, value)
            assert getattr(loss, name) is value
        options |= given
        expected = ta.cross_entropy(x, labels % 3, **options).item()
        assert loss(x, labels % 3).item() == expected
        assert compiled(x, labels % 3).item() == pytest.approx(expected, rel=1e-5)


def test_an_option_of_a_copy_is_set_without_the_original():
    by_rows = nn.Softmax()
    by_columns = copy.copy(by_rows)
    by_columns.axis = 0
    assert by_rows(x).tolist() == ta.softmax(x).tolist() and by_columns(x).tolist() == ta.softmax(x, axis=0).tolist()
    assert (repr(by_rows), repr(by_columns)) == ("Softmax(axis=-1)", "Softmax(axis=0)")


def test_help_shows_the_options_and_a_wrong_one_is_answered_by_them():
    assert str(inspect.signature(nn.LeakyReLU)) == "(negative_slope=0.01, inplace=False)"
    assert str(inspect.signature(nn.MSELoss)) == "(*, reduction='mean')"
    assert nn.Softmax.__doc__.startswith("exp(x) / sum(exp(x))")
    assert repr(nn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"
    assert repr(nn.ReLU()) == "ReLU()"
    with pytest.raises(TypeError, match=r"^Softmax: got an unexpected keyword argument 'dim': use Softmax\(axis=-1\)$"):
        nn.Softmax(dim=1)
