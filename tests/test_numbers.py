"""Numbers at the ends of the range, at limits and in long sums: right in eager mode and compiled."""

import math

import numpy as np
import pytest

import tinyarr as ta
from tinyarr import Tensor, saving
from tinyarr.errors import ArgumentError, GradientError
from tinyarr.ops.norm import _layer_norm, _limits, _rms_norm

EPS = 2.0**-23


def both(function, *args):
    """The results in eager mode and compiled, as float64."""
    return [np.asarray(f(*args).astype(ta.float64).numpy()) for f in (function, ta.compile(function))]


def close(found, right, tolerance):
    np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance)


# Sums. BLOCKS numbers are added one after another, their sums in pairs: so many roundings a number meets at most.


def roundings(n, one_by_one=256):
    return one_by_one + math.ceil(math.log2(max(n, 2))) + 8


SHAPES = [((100_003,), 0), ((50_001, 2), 0), ((3, 2000, 5), 1), ((300, 3, 300), (0, 2)), ((2, 300, 3, 300), (1, 3))]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", [ta.float32, ta.float64, ta.bfloat16], ids=lambda d: d.name)
def test_a_sum_over_any_axis_errs_by_few_roundings(shape, axis, dtype):
    x = Tensor(np.random.default_rng(0).uniform(0.5, 1.5, shape), dtype=dtype)
    wide = x.astype(ta.float64).numpy().astype(np.longdouble)
    right = wide.sum(axis=axis)
    count = wide.size // right.size
    bound = roundings(count) * float(ta.finfo(dtype.compute).eps) / 2 + (dtype is ta.bfloat16) * 2.0**-8
    for found in both(lambda x: ta.sum(x, axis=axis), x):
        assert (np.abs(found - right) <= bound * right).all()


@pytest.mark.parametrize("axis", [0, None])
def test_a_mean_of_equal_numbers_does_not_drift(axis):
    for found in both(lambda x: ta.mean(x, axis=axis), ta.full((1_000_000, 2), 0.1)):
        close(found, float(np.float32(0.1)), 8 * EPS)


@pytest.mark.parametrize("shape", [(100_001,), (3, 1000), (1000, 3)])
def test_a_cumulative_sum_errs_by_few_roundings(shape):
    axis = int(np.argmax(shape))
    x = Tensor(np.random.default_rng(0).uniform(0.5, 1.5, shape), dtype=ta.float32)
    right = np.cumsum(x.numpy().astype(np.float64), axis=axis)
    for found in both(lambda x: ta.cumulative_sum(x, axis=axis), x):
        assert (np.abs(found - right) <= roundings(shape[axis]) * EPS / 2 * right).all()


@pytest.mark.slow
def test_the_bound_holds_for_a_hundred_million_numbers():
    x = ta.full((100_000_000,), 0.1)
    right = float(np.float32(0.1))
    for function in (ta.mean, lambda x: ta.mean(x.reshape((-1, 2)), axis=0), lambda x: ta.cumulative_sum(x)[-1] / 1e8):
        for found in both(function, x):
            close(found, right, 16 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("function", [ta.layer_norm, ta.softmax, ta.rms_norm], ids=lambda f: f.__name__)
def test_one_long_row_is_as_right_as_a_short_one(function):
    x = np.random.default_rng(0).uniform(1, 2, 10_000_000).astype(np.float32)
    wide = x.astype(np.float64)
    right = {
        ta.layer_norm: lambda: (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5),
        ta.softmax: lambda: np.exp(wide) / np.exp(wide).sum(),
        ta.rms_norm: lambda: wide / np.sqrt((wide**2).mean()),
    }[function]()
    for found in both(lambda x: function(x), Tensor(x)):
        assert np.abs(found - right).max() <= 64 * EPS * np.abs(right).max()


def test_the_gradients_of_a_norms_weights_over_many_narrow_rows():
    x = ta.full((300_000, 2), 0.1)
    x = x + Tensor([1.0, -1.0])
    w = ta.ones(2)

    def gradient(x, w):
        return ta.vjp(lambda w: ta.layer_norm(x, w, w), w)[1](ta.full(x.shape, 0.1))[0]

    for found in both(gradient, x, w):
        close(found / 300_000, float(np.float32(0.1)) * (1 + np.array([1, -1]) / math.sqrt(1 + 1e-5)), 32 * EPS)


def test_products_overflow_in_the_same_order():
    x = Tensor([0.0] + [1e30] * 40)
    for function in (ta.prod, lambda x: ta.prod(x[::-1]), lambda x: ta.prod(ta.stack([x, x], axis=1), axis=0)):
        eager, compiled = both(function, x)
        np.testing.assert_array_equal(eager, compiled)


# Rows of a norm


def normalized(x, eps, centered):
    x = x.astype(np.longdouble)
    x = x - x.mean(axis=-1, keepdims=True) if centered else x
    return (x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.longdouble(eps))).astype(np.float64)


RNG = np.random.default_rng(0)
ROWS = np.stack([
    np.full(777, 12345.678), np.full(777, 21810382.1), np.full(777, 0.1), np.zeros(777), RNG.standard_normal(777),
    RNG.standard_normal(777) * 1e30, RNG.uniform(-3.3e38, 3.3e38, 777), RNG.standard_normal(777) * 1e-30,
    RNG.standard_normal(777) * 1e15, RNG.standard_normal(777) + 1e7, 1e25 * (RNG.standard_normal(777) + 1e4),
])  # fmt: skip


@pytest.mark.parametrize(("rows", "eps"), [(slice(None), 1e-5), (slice(4, 9), 0.0), (slice(4, None), 1e-40)])
@pytest.mark.parametrize("function", [ta.layer_norm, ta.rms_norm], ids=lambda f: f.__name__)
def test_a_norm_is_right_for_equal_huge_and_tiny_rows(function, rows, eps):
    for dtype, bound in ((ta.float32, 64 * EPS), (ta.float64, 2.0**-36), (ta.bfloat16, 2.0**-6)):
        x = Tensor(ROWS[rows], dtype=dtype)
        one, zero = ta.ones(777, dtype=dtype), ta.zeros(777, dtype=dtype)
        if function is ta.layer_norm:
            composite = _layer_norm.composite(x, one, zero, eps=eps, limits=_limits(x))[0]
        else:
            composite = _rms_norm.composite(x, one, eps=eps, limits=_limits(x))[0]
        right = normalized(x.astype(ta.float64).numpy(), eps, function is ta.layer_norm)
        found = [function(x, eps=eps), composite]
        if dtype is not ta.bfloat16:
            found.append(ta.compile(lambda x: function(x, eps=eps))(x))
        for y in found:
            close(y.astype(ta.float64).numpy(), right, bound)


def test_a_row_is_normalized_the_same_beside_any_others():
    x = Tensor(np.concatenate([RNG.standard_normal((50, 777)), ROWS]), dtype=ta.float32)
    for function in (ta.layer_norm, ta.rms_norm):
        alone = ta.concat([function(x[i : i + 1]) for i in range(len(x))])
        assert (function(x) == alone).all()


def test_equal_elements_are_normalized_to_exactly_0():
    for value, n in ((12345.678, 777), (21810382.1, 768), (0.1, 5000)):
        for found in both(lambda x: ta.layer_norm(x), ta.full((n,), value)):
            assert not found.any()


# Norms and deviations of tensors


@pytest.mark.parametrize("factor", [1.0, 1e30, 1e-30, 5e37])
@pytest.mark.parametrize("order", [2, 3, 1.5])
def test_a_vectors_norm_and_its_gradient_neither_overflow_nor_vanish(factor, order):
    x = Tensor(np.array([3.0, -4.0]) * factor, dtype=ta.float32)
    size = (3**order + 4**order) ** (1 / order)
    for found in both(lambda x: ta.vector_norm(x, ord=order), x):
        close(found / factor, size, 32 * EPS)
    slope = [(3 / size) ** (order - 1), -((4 / size) ** (order - 1))]
    for found in both(ta.grad(lambda x: ta.vector_norm(x, ord=order)), x):
        close(found, slope, 32 * EPS)


@pytest.mark.parametrize(
    ("x", "right"), [([3e19, 1.0], 3e19), ([math.inf, 1.0], math.inf), ([math.nan, 1.0], math.nan), ([0.0, 0.0], 0.0)]
)
def test_a_norm_of_unequal_and_of_infinite_numbers(x, right):
    for found in both(ta.vector_norm, Tensor(x)):
        np.testing.assert_allclose(found, right, rtol=8 * EPS)


@pytest.mark.parametrize("axis", [0, 1])
def test_variance_far_from_0_is_that_near_0(axis):
    x = Tensor(np.random.default_rng(0).standard_normal((1000, 1000)) + 1e7, dtype=ta.float32)
    right = x.numpy().astype(np.float64)
    for found in both(lambda x: ta.var(x, axis=axis), x):
        close(found, right.var(axis=axis), 256 * EPS)
    for found in both(lambda x: ta.std(x, axis=axis), x):
        close(found, right.std(axis=axis), 256 * EPS)


@pytest.mark.parametrize("value", [0.1, 5.0, 12345.678])
def test_equal_elements_have_no_deviation_and_its_gradient_is_0(value):
    x = ta.full((1000, 3), value)
    for function in (lambda x: ta.std(x, axis=0).sum(), lambda x: ta.var(x, axis=0).sum()):
        for found in (*both(function, x), *both(ta.grad(function), x)):
            assert not found.any()


def test_deviations_of_huge_and_tiny_numbers():
    for factor in (1e30, 1e-30):
        for found in both(ta.std, Tensor(np.array([1.0, 2.0, 4.0]) * factor, dtype=ta.float32)):
            close(found / factor, np.std([1, 2, 4]), 8 * EPS)


# Gradients at limits


def gradients(function, *args):
    """The gradients in eager mode and compiled."""
    find = ta.grad(function, argnums=tuple(range(len(args))))
    return [[g.tolist() for g in f(*args)] for f in (find, ta.compile(find))]


def test_the_second_derivative_of_a_squared_norm_at_0_is_that_of_a_square():
    for x in (ta.zeros(2), Tensor([0.5, -2.0])):
        hessian = ta.jvp(ta.grad(lambda x: ta.vector_norm(x) ** 2), (x,), (Tensor([1.0, 2.0]),))[1]
        close(hessian.numpy(), [2, 4], 16 * EPS)
    assert ta.jvp(ta.grad(ta.vector_norm), (ta.zeros(2),), (ta.ones(2),))[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("function", "x", "right"),
    [
        (lambda x: ta.sqrt(x)[0], [4.0, 0.0], [0.25, 0]),
        (lambda x: (x**0.5)[0], [4.0, 0.0], [0.25, 0]),
        (lambda x: ta.log(x)[0], [4.0, 0.0], [0.25, 0]),
        (lambda x: (x**-1.0)[0], [4.0, 0.0], [-0.0625, 0]),
        (lambda x: ta.asin(x)[0], [0.0, 1.0], [1, 0]),
        (lambda x: ta.where(x > 0, ta.sqrt(x), 0).sum(), [-1.0, 0.0, 4.0], [0, 0, 0.25]),
        (lambda x: ta.where(x > 0, ta.log(x), 0).sum(), [-1.0, 0.0, 4.0], [0, 0, 0.25]),
        (lambda x: ta.sqrt(x).sum(), [0.0, 4.0], [math.inf, 0.25]),
    ],
)
def test_an_infinite_slope_that_counts_for_nothing_is_0(function, x, right):
    assert gradients(function, Tensor(x)) == [[right]] * 2


@pytest.mark.parametrize("function", [ta.atan2, ta.hypot])
def test_the_gradient_at_the_origin_is_0(function):
    right = {ta.atan2: [[0, 0.5], [0, -0.5]], ta.hypot: [[0, 0.5**0.5]] * 2}[function]
    for found in gradients(lambda y, x: function(y, x).sum(), Tensor([0.0, 1.0]), Tensor([0.0, 1.0])):
        close(found, right, 2 * EPS)


@pytest.mark.parametrize("head", [ta.linear_cross_entropy, lambda x, w, y: ta.cross_entropy(ta.linear(x, w), y)])
def test_targets_that_are_all_ignored_have_no_gradient(head):
    x, w, y = ta.ones((2, 3)), ta.ones((4, 3)), ta.full((2,), -100)
    for found in gradients(lambda x, w: head(x, w, y), x, w):
        assert not np.any(np.concatenate([np.ravel(g) for g in found]))
    assert math.isnan(head(x, w, y).item())


@pytest.mark.parametrize("kind", ["bool", "floating", "causal", "causal floating"])
def test_a_query_that_sees_no_key_spoils_no_gradient_but_its_own_result(kind):
    rng = np.random.default_rng(0)
    q, k, v = (Tensor(rng.standard_normal((2, 4, 3, 8)), dtype=ta.float32) for _ in range(3))
    seen = np.array([[False, True, True], [True, True, True], [True, True, True]])
    seen[0, 1:] &= "causal" in kind  # which hides them
    mask = Tensor(seen) if "floating" not in kind else Tensor(np.where(seen, 0.5, -np.inf), dtype=ta.float32)
    kept = Tensor([False, True, True]).reshape((3, 1))

    def attended(q, k, v):
        return ta.scaled_dot_product_attention(q, k, v, mask, is_causal="causal" in kind)

    for found in gradients(lambda q, k, v: ta.where(kept, attended(q, k, v), 0).sum(), q, k, v):
        assert np.isfinite(found).all()
    out = attended(q, k, v).numpy()
    assert np.isnan(out[..., 0, :]).all() and np.isfinite(out[..., 1:, :]).all()


def test_a_hook_that_writes_into_its_gradient_changes_no_other():
    a, b = (Tensor([1.0], requires_grad=True) for _ in range(2))
    a.register_hook(lambda g: g.assign(g * 100) and None)
    (a + b).sum().backward()
    assert (a.grad.item(), b.grad.item()) == (100, 1)
    c, d = (Tensor([1.0], requires_grad=True) for _ in range(2))
    (c * 1).register_hook(lambda g: None)
    middle = c + d
    middle.register_hook(lambda g: g.assign(g * 100) and None)
    (middle + d).sum().backward()
    assert (c.grad.item(), d.grad.item()) == (100, 101)


def test_gradients_that_are_returned_share_no_memory():
    x, y = ta.ones(2), ta.ones(2)
    gx, gy = ta.vjp(lambda x, y: x + y, x, y)[1](Tensor([1.0, 2.0]))
    gx.assign(gx * 5)
    assert gy.tolist() == [1, 2]


def test_an_in_place_operator_makes_a_new_tensor_in_a_function_that_is_differentiated():
    def f(x):
        x += 1
        return (x * x).sum()

    assert ta.grad(f)(Tensor([1.0, 2.0])).tolist() == [4, 6]


def test_an_in_place_operator_on_a_parameter_writes_under_no_grad_and_is_refused_without():
    p = q = Tensor([1.0], requires_grad=True)
    with ta.no_grad():
        p -= 0.5
    assert p is q and p.item() == 0.5 and p.requires_grad
    with pytest.raises(GradientError, match=r"\*\*=: .*p\.assign"):
        p **= 2
    y = p * 2
    y += 1
    assert y.item() == 2


# Empty axes, signs of 0, and what else must have one meaning


def test_reductions_over_an_empty_axis():
    x = ta.zeros((2, 0, 3))
    assert ta.softmax(x, axis=1).shape == ta.log_softmax(x, axis=1).shape == (2, 0, 3)
    for found in both(lambda x: ta.logsumexp(x, axis=1), x):
        assert found.shape == (2, 3) and (found == -np.inf).all()
    assert ta.vector_norm(x, axis=1).tolist() == [[0] * 3] * 2
    assert np.isnan(ta.std(x, axis=1).numpy()).all()


@pytest.mark.parametrize(
    "function",
    [
        ta.maximum, ta.minimum, lambda x, y: ta.clip(x, 0.0, 1.0), lambda x, y: ta.clip(x, y, 1.0),
        lambda x, y: x.minimum(0.0), lambda x, y: ta.cumulative_sum(x), lambda x, y: ta.cumulative_sum(x[1:]),
        lambda x, y: ta.sum(x), lambda x, y: ta.cumulative_prod(x),
    ],
)  # fmt: skip
def test_zeros_have_the_same_sign_compiled(function):
    x, y = Tensor([0.0, -0.0, 0.0, -0.0, -1.0]), Tensor([-0.0, 0.0, 0.0, -0.0, -0.0])
    eager, compiled = both(function, x, y)
    np.testing.assert_array_equal(np.copysign(1, eager), np.copysign(1, compiled))


@pytest.mark.parametrize("y", [0.5, -0.5, 1.5, 2.0, 3.0, -1.0])
def test_a_power_is_the_same_wherever_its_exponent_comes_from(y):
    x = Tensor([-math.inf, -0.0, -4.0, 4.0, math.inf, 0.0])
    ways = [lambda x, y: x**y, lambda x, y: x ** Tensor(y), lambda x, y: x ** ta.full((6,), y)]
    found = [f(x, y).numpy() for way in ways for f in (way, ta.compile(way))]
    with np.errstate(all="ignore"):
        right = x.numpy() ** np.float32(y)
    for z in found:
        np.testing.assert_allclose(z, right, rtol=4 * EPS)
        np.testing.assert_array_equal(np.signbit(z[~np.isnan(z)]), np.signbit(right[~np.isnan(right)]))


def test_bytes_of_bool_that_are_neither_0_nor_1_are_1(tmp_path):
    raw = np.array([0, 1, 2, 255, 4, 0, 128, 3], np.uint8)
    saving.save(tmp_path / "a.safetensors", {"a": Tensor(raw)})
    content = (tmp_path / "a.safetensors").read_bytes().replace(b'"U8"', b'"BOOL"')
    length = int.from_bytes(content[:8], "little") + 2
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    loaded = saving.load(tmp_path / "a.safetensors")[0]["a"]
    for x in (loaded, ta.from_dlpack(raw.view(bool)), Tensor(raw.view(bool))):
        assert x.numpy().view(np.uint8).tolist() == [0, 1, 1, 1, 1, 0, 1, 1]
    with pytest.raises(ArgumentError, match="neither 0 nor 1"):
        ta.from_dlpack(raw.view(bool), copy=False)


def test_a_mask_that_does_not_fit_is_an_index_error_and_one_of_length_0_selects_nothing():
    x = ta.ones((3, 4))
    for mask in (ta.ones((2,)) > 0, ta.ones((3, 3)) > 0, ta.ones((3, 4, 1)) > 0):
        with pytest.raises(IndexError, match="a mask has shape"):
            x[mask]
    empty = ta.zeros(0, dtype=ta.bool)
    assert x[empty].shape == (0, 4) and x[:, empty].shape == (3, 0)


def test_logaddexp_takes_a_number():
    for found in both(lambda x: ta.logaddexp(x, 0.0), Tensor([1.0, 2.0])):
        close(found, np.logaddexp([1, 2], 0), 4 * EPS)
    assert ta.logaddexp(0, Tensor([1.0])).dtype is ta.float32
    with pytest.raises(TypeError, match="logaddexp: x1 is float"):
        ta.logaddexp(1.0, 2.0)


@pytest.mark.parametrize("k", [-(10**30), -3, -2, 1, 4, 10**30])
def test_a_diagonal_may_lie_anywhere(k):
    right = np.eye(3, 4, k=max(min(k, 9), -9))
    assert ta.eye(3, 4, k=k).tolist() == right.tolist()


def test_negative_repeats_and_deviations_are_refused():
    for repeats in (-1, Tensor([1, -1, 2])):
        with pytest.raises(ValueError, match=r"repeat: .*0 or more"):
            ta.repeat(ta.ones(3), repeats)
    with pytest.raises(ArgumentError, match="normal: std is -1"):
        ta.normal((2,), std=-1)


def test_one_element_is_formatted_as_a_number():
    assert f"{Tensor(1.23456):.3f}" == f"{Tensor([1.23456]):.3f}" == "1.235" and f"{Tensor(7):>3}" == "  7"
    assert f"{Tensor([1.0, 2.0])}" == "Tensor([1., 2.])"
    with pytest.raises(ValueError, match="single element"):
        f"{ta.ones(3):.3f}"
