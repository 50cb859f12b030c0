"""jvp: Jacobian-vector and Hessian-vector products, against finite differences and each other."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.errors import ArgumentError

X = Tensor([[0.3, -1.2], [0.7, 2.0]], dtype=ta.float64)
V = Tensor([[1.0, 0.5], [-2.0, 0.1]], dtype=ta.float64)

FUNCTIONS = [
    lambda x: ta.sin(x) * x,
    lambda x: ta.softmax(x) @ x,
    lambda x: ta.layer_norm(x),
    lambda x: ta.scaled_dot_product_attention(x, x, x, is_causal=True),
    lambda x: x.max(axis=0),
    lambda x: ta.concat([x, x[:1]]).cumulative_prod(axis=0),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_jvp_is_the_slope_along_the_tangent(function):
    value, change = ta.jvp(function, (X,), (V,))
    step = 1e-6
    slope = (function(X + step * V).numpy() - function(X - step * V).numpy()) / (2 * step)
    np.testing.assert_array_equal(value.numpy(), function(X).numpy())
    np.testing.assert_allclose(change.numpy(), slope, rtol=1e-7, atol=1e-8)  # the differences' own error
    assert not value.requires_grad and not change.requires_grad


def test_several_primals_and_results_are_taken_together():
    (value, other), (change, other_change) = ta.jvp(lambda x, y: (x * y, y.sin()), (X, V), (V, X))
    np.testing.assert_allclose(change.numpy(), (V * V + X * X).numpy())
    np.testing.assert_allclose(other_change.numpy(), (ta.cos(V) * X).numpy())


def test_jvp_and_vjp_are_transposes_of_each_other():
    function = FUNCTIONS[1]
    g = Tensor(np.random.default_rng(0).normal(size=(2, 2)))
    _, change = ta.jvp(function, (X,), (V,))
    (back,) = ta.vjp(function, X)[1](g)
    assert (g * change).sum().item() == pytest.approx((back * V).sum().item(), rel=1e-12)


def test_the_hessian_times_a_vector_needs_no_hessian():
    def loss(x):
        return (ta.tanh(x @ x) ** 2).sum()

    _, product = ta.jvp(ta.grad(loss), (X,), (V,))
    step = 1e-6
    slope = (ta.grad(loss)(X + step * V) - ta.grad(loss)(X - step * V)) / (2 * step)
    np.testing.assert_allclose(product.numpy(), slope.numpy(), rtol=1e-6, atol=1e-8)


def test_a_jvp_can_be_differentiated():
    def directional(x):
        return ta.jvp(lambda y: (y**3).sum(), (x,), (V,))[1]

    np.testing.assert_allclose(ta.grad(directional)(X).numpy(), (6 * X * V).numpy(), rtol=1e-12)


def test_tangents_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="1 primals, 2 tangents"):
        ta.jvp(ta.sin, (X,), (V, V))
    with pytest.raises(ArgumentError, match=r"primal 0 has shape \(2, 2\).*tangent 0 has shape \(2,\)"):
        ta.jvp(ta.sin, (X,), (V[0],))


@pytest.mark.parity
def test_products_are_those_of_torch():
    import torch

    def ours(x):
        return (ta.softmax(x) * ta.exp(x)).sum()

    def theirs(x):
        return (torch.softmax(x, -1) * torch.exp(x)).sum()

    x, v = torch.tensor(X.numpy()), torch.tensor(V.numpy())
    value, change = torch.func.jvp(theirs, (x,), (v,))
    found, slope = ta.jvp(ours, (X,), (V,))
    assert (found.item(), slope.item()) == pytest.approx((value.item(), change.item()), rel=1e-12)
    _, product = torch.autograd.functional.hvp(theirs, x, v)
    np.testing.assert_allclose(ta.jvp(ta.grad(ours), (X,), (V,))[1].numpy(), product.numpy(), rtol=1e-10)
