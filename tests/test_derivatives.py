"""Jacobians, Hessians and their products with vectors, against finite differences and each other."""

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.errors import ArgumentError, GradientError

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
    with pytest.raises(TypeError, match="primal 0 is float"):
        ta.jvp(ta.exp, (1.0,), (ta.ones(()),))
    with pytest.raises(ArgumentError, match="1 primals, 2 tangents"):
        ta.jvp(ta.sin, (X,), (V, V))
    with pytest.raises(ArgumentError, match=r"primal 0 has shape \(2, 2\).*tangent 0 has shape \(2,\)"):
        ta.jvp(ta.sin, (X,), (V[0],))


def test_jvp_takes_trees_and_passes_on_what_else_a_function_returns():
    def function(params, y):
        return {"out": params["w"] * y, "more": [params["w"].sin()]}, "aux"

    value, change, aux = ta.jvp(function, ({"w": X}, V), ({"w": V}, X), has_aux=True)
    np.testing.assert_allclose(change["out"].numpy(), (V * V + X * X).numpy())
    np.testing.assert_allclose(change["more"][0].numpy(), (ta.cos(X) * V).numpy())
    np.testing.assert_allclose(value["out"].numpy(), (X * V).numpy())
    assert aux == "aux"


def test_vjp_takes_trees_and_passes_on_what_else_a_function_returns():
    def function(params, y):
        return {"out": params["w"] * y, "unused": y}, {"seen": params["w"].exp()}

    value, pull, aux = ta.vjp(function, {"w": X, "b": V}, V, has_aux=True)
    (params, y) = pull({"out": X, "unused": V})
    np.testing.assert_allclose(params["w"].numpy(), (X * V).numpy())
    assert params["b"].tolist() == ta.zeros_like(V).tolist()
    np.testing.assert_allclose(y.numpy(), (X * X + V).numpy())
    assert not value["out"].requires_grad and not aux["seen"].requires_grad
    with pytest.raises(GradientError, match="tuple of two"):
        ta.vjp(ta.sin, X, has_aux=True)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_jacobian_s_columns_are_the_slopes_along_the_units(function):
    found = ta.jacobian(function)(X)
    for i in np.ndindex(2, 2):
        unit = np.zeros((2, 2))
        unit[i] = 1
        _, column = ta.jvp(function, (X,), (Tensor(unit),))
        np.testing.assert_allclose(found.numpy()[(..., *i)], column.numpy(), rtol=1e-12, atol=1e-14)
    assert not found.requires_grad


def test_jacobians_are_arranged_as_results_and_in_them_as_arguments():
    def function(params, y):
        return {"dot": params["w"] @ y, "pair": (params["w"][0] * 2, y.sum())}, "aux"

    w = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    y = Tensor([1.0, -1.0])
    found, aux = ta.jacobian(function, (0, -1), has_aux=True)({"w": w}, y)
    assert aux == "aux"
    by_w, by_y = found["dot"]
    assert by_w["w"].shape == (3, 3, 2) and by_y.tolist() == w.tolist()
    assert found["pair"][0][0]["w"].tolist() == [[[2, 0], [0, 0], [0, 0]], [[0, 2], [0, 0], [0, 0]]]
    assert found["pair"][0][1].tolist() == [[0, 0], [0, 0]] and found["pair"][1][1].tolist() == [1, 1]
    with pytest.raises(ArgumentError, match="jacobian: argument 2 of function is missing"):
        ta.jacobian(function, 2)({"w": w}, y)


def test_a_hessian_is_symmetric_and_its_products_are_those_of_jvp():
    def loss(x):
        return (ta.tanh(x @ x) ** 2).sum()

    found = ta.hessian(loss)(X).numpy().reshape(4, 4)
    np.testing.assert_allclose(found, found.T, rtol=1e-12)
    _, product = ta.jvp(ta.grad(loss), (X,), (V,))
    np.testing.assert_allclose(found @ V.numpy().reshape(4), product.numpy().reshape(4), rtol=1e-12)


def test_a_jacobian_can_be_differentiated_compiled_and_mapped():
    def trace(x):
        return (ta.jacobian(lambda x: ta.tanh(x @ x))(x) ** 2).sum()

    step = 1e-6
    slope = (trace(X + step * V) - trace(X - step * V)).item() / (2 * step)
    assert (ta.grad(trace)(X) * V).sum().item() == pytest.approx(slope, rel=1e-7)
    hessian = ta.hessian(lambda x: (x.exp() * x.sum()).sum())
    compiled = Compiled(hessian, build=Interpreter)(X)
    np.testing.assert_allclose(compiled.numpy(), hessian(X).numpy(), rtol=1e-12)
    rows = ta.vmap(hessian)(X)
    np.testing.assert_allclose(rows.numpy(), np.stack([hessian(x).numpy() for x in X]), rtol=1e-12)


def test_the_jacobian_of_dropout_has_the_mask_of_the_function():
    ta.manual_seed(1)
    value = ta.dropout(ta.ones(32))
    ta.manual_seed(1)
    assert ta.jacobian(ta.dropout)(ta.ones(32)).tolist() == np.diag(value.numpy()).tolist()


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
