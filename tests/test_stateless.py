"""functional_call: a module as a function of its parameters."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, nn
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ArgumentError, ShapeError


class Model(nn.Module):
    def __init__(self):
        self.first = nn.Linear(4, 4)
        self.shared = [self.first, {"norm": nn.LayerNorm(4)}]
        self.pair = (nn.Linear(4, 4), nn.Parameter(ta.ones(4)))
        self.register_buffer("shift", ta.zeros(4))

    def forward(self, x, *, scale=1.0):
        x = self.shared[1]["norm"](self.shared[0](self.first(x)))
        return ta.tanh(self.pair[0](x) * self.pair[1]) * scale + self.shift


X = Tensor(np.random.default_rng(0).normal(size=(3, 4)).astype("float32"))


def test_tensors_take_the_place_of_those_of_their_names_wherever_they_are():
    model, other = Model(), Model()
    other.shift.assign(2.0)
    before = dict(model.named_tensors())
    found = ta.functional_call(model, other.state_dict(), X, {"scale": 3.0})
    assert found.tolist() == other(X, scale=3.0).tolist()
    assert all(x is before[name] for name, x in model.named_tensors())
    only = ta.functional_call(model, {"shift": other.shift}, (X,))
    assert only.tolist() == (model(X) + 2.0).tolist()


def test_a_module_is_as_before_where_it_raises():
    model = Model()
    weight = model.first.weight
    with pytest.raises(ShapeError):
        ta.functional_call(model, {"first.weight": ta.zeros((4, 4))}, ta.ones(5))
    assert model.first.weight is weight


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: Compiled(f, build=Interpreter)])
def test_gradients_of_each_example_with_respect_to_a_model(wrap):
    model = Model()

    def loss(state, x):
        return (ta.functional_call(model, state, x) ** 2).sum()

    state = dict(model.named_parameters())
    found = wrap(ta.vmap(ta.grad(loss), (None, 0)))(state, X)
    for i, x in enumerate(X):
        for name, g in ta.grad(loss)(state, x).items():
            np.testing.assert_allclose(found[name][i].numpy(), g.numpy(), rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_what_does_not_fit_is_refused():
    model = nn.Linear(2, 3)
    for kind, match, state in (
        (ArgumentError, r"\['wieght'\].*has weight, bias", {"wieght": ta.zeros((3, 2))}),
        (ShapeError, r"weight has shape \(2, 3\), the module's \(3, 2\)", {"weight": ta.zeros((2, 3))}),
        (TypeError, "weight is float", {"weight": 1.0}),
    ):
        with pytest.raises(kind, match=match):
            ta.functional_call(model, state, ta.ones(2))
