"""Initial values in place. Distributions are judged from fixed seeds, at five standard errors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import nn
from tinyarr.errors import ArgumentError, ShapeError

init = nn.init
FAN_IN, FAN_OUT = 60 * 4, 80 * 4  # of (80, 60, 2, 2)
CASES = {  # name: (written by, mean, standard deviation, largest magnitude)
    "normal_": (lambda p, g: init.normal_(p, 1.0, 0.5, g), 1, 0.5, np.inf),
    "normal": (lambda p, g: init.normal(p, std=0.02, generator=g), 0, 0.02, np.inf),
    "uniform_": (lambda p, g: init.uniform_(p, -1.0, 3.0, generator=g), 1, 4 / 12**0.5, 3),
    "uniform": (lambda p, g: init.uniform(p, generator=g), 0.5, 12**-0.5, 1),
    "constant": (lambda p, g: init.constant(p, 3.0), 3, 0, 3),
    "zeros_": (lambda p, g: init.zeros_(p), 0, 0, 0),
    "ones_": (lambda p, g: init.ones_(p), 1, 0, 1),
    "trunc_normal_": (lambda p, g: init.trunc_normal_(p, generator=g), 0, 0.8796, 2),  # Johnson et al. 1994, eq. 13.134
    "xavier_uniform_": (
        lambda p, g: init.xavier_uniform_(p, 2.0, g), 0, 2 * (2 / (FAN_IN + FAN_OUT)) ** 0.5,
        2 * (6 / (FAN_IN + FAN_OUT)) ** 0.5,
    ),
    "xavier_normal": (
        lambda p, g: init.xavier_normal(p, generator=g), 0, (2 / (FAN_IN + FAN_OUT)) ** 0.5, np.inf,
    ),
    "kaiming_uniform": (
        lambda p, g: init.kaiming_uniform(p, a=math.sqrt(5), generator=g), 0, (3 * FAN_IN) ** -0.5, FAN_IN**-0.5,
    ),
    "kaiming_normal_": (
        lambda p, g: init.kaiming_normal_(p, mode="fan_out", nonlinearity="relu", generator=g), 0,
        (2 / FAN_OUT) ** 0.5, np.inf,
    ),
    "orthogonal_": (lambda p, g: init.orthogonal_(p, 3.0, g), 0, 3 / FAN_IN**0.5, 3),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [ta.float32, ta.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_values_of_the_stated_distribution_are_written_into_the_tensor_that_is_returned(name, dtype):
    write, mean, std, largest = CASES[name]
    p = nn.Parameter(ta.zeros(80, 60, 2, 2, dtype=dtype))
    tied = p
    assert write(p, ta.Generator(0)) is tied and tied.requires_grad and tied.is_leaf
    values = p.numpy().astype(np.float64)
    assert abs(values.mean() - mean) <= 5 * std / p.size**0.5 + 2**-8 * abs(mean) * (std > 0)
    assert abs(values.std() - std) <= 5 * std / (2 * p.size) ** 0.5 + 2**-16 * std
    assert np.abs(values).max() <= largest * (1 + 2**-8)  # the bound, rounded to the dtype, may be met
    again = nn.Parameter(ta.zeros(80, 60, 2, 2, dtype=dtype))
    assert np.array_equal(write(again, ta.Generator(0)).numpy(), p.numpy())


def test_weights_that_are_tied_stay_tied():
    model = nn.Module()
    model.table = nn.Embedding(5, 3)
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.table.weight
    model.table.weight = nn.init.normal_(model.table.weight, std=0.02)
    model.head.weight = nn.init.xavier_uniform(model.head.weight)
    assert model.head.weight is model.table.weight and len(list(model.parameters())) == 1


def test_a_shape_gives_a_new_parameter():
    for make, value in ((init.normal, 0.5), (init.uniform, 1.0), (init.constant, 1)):
        p = make((2, 3), value)
        assert isinstance(p, nn.Parameter) and p.shape == (2, 3)


def test_nothing_is_written_where_initial_values_are_skipped():
    p = nn.Parameter(ta.ones(3, 3))
    with init.skipped():
        assert init.zeros_(p) is p and init.orthogonal_(p) is p
    assert p.tolist() == [[1] * 3] * 3


def test_a_write_is_part_of_a_compiled_function():
    p, generator = nn.Parameter(ta.zeros(4, 4)), ta.Generator(0)
    ta.compile(lambda: init.trunc_normal_(p, generator=generator))()
    expected = init.trunc_normal_(nn.Parameter(ta.zeros(4, 4)), generator=ta.Generator(0))
    np.testing.assert_allclose(p.numpy(), expected.numpy(), rtol=1e-6)


@given(
    rows=st.integers(1, 8), columns=st.integers(1, 8), gain=st.floats(0.1, 10), seed=st.integers(0, 2**32),
    more=st.sampled_from([(), (2,), (1, 3)]),
)  # fmt: skip
@at_most(60, deadline=None)
def test_orthogonal_values_have_orthonormal_rows_or_columns(rows, columns, gain, seed, more):
    w = init.orthogonal_(ta.zeros(rows, columns, *more, dtype=ta.float64), gain, ta.Generator(seed)).numpy()
    w = w.reshape(rows, -1) / gain
    product = w @ w.T if len(w) <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(product, np.eye(len(product)), atol=64 * 2**-52 * len(product))


@given(
    mean=st.floats(-3, 3), std=st.floats(0.1, 3), low=st.floats(-6, 6), width=st.floats(0.1, 5),
    seed=st.integers(0, 2**32),
)  # fmt: skip
@at_most(60, deadline=None)
def test_a_truncated_normal_s_distribution_function_is_uniform(mean, std, low, width, seed):
    """The distribution function of what was drawn are the uniform numbers from which it was made.

    low and width are in standard deviations from the mean.
    """
    bounds = mean + std * low, mean + std * (low + width)
    p = init.trunc_normal_(ta.zeros(50, dtype=ta.float64), mean, std, *bounds, ta.Generator(seed))
    values = p.numpy()
    assert bounds[0] <= values.min() and values.max() <= bounds[1]
    ends = [math.erf((b - mean) / (std * math.sqrt(2))) for b in bounds]
    uniform = ends[0] + ta.rand(50, generator=ta.Generator(seed), dtype=ta.float64).numpy() * (ends[1] - ends[0])
    found = ta.erf((p - mean) / (std * math.sqrt(2))).numpy()
    # Roundings of erf, and of its argument, which the slope of erf, 2/sqrt(pi) at most, passes on.
    np.testing.assert_allclose(found, uniform, atol=16 * 2**-52 * (1 + abs(mean) / std))


@pytest.mark.parametrize(("a", "b"), [(6.0, 7.0), (-7.0, -6.0)])
def test_a_truncated_normal_far_from_the_mean_has_many_values(a, b):
    values = init.trunc_normal_(ta.zeros(1000, dtype=ta.float64), a=a, b=b, generator=ta.Generator(0)).tolist()
    assert len(set(values)) > 990


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: init.xavier_uniform_(p[0]), ShapeError, r"^xavier_uniform_: p has shape \(3,\).*: it must have two"),
        (lambda p: init.kaiming_normal_(p, mode="in"), ArgumentError, "^kaiming_normal_: mode is .in.: use"),
        (lambda p: init.kaiming_normal_(p, nonlinearity="softmax"), ArgumentError, "is 'softmax': use leaky_relu, lin"),
        (lambda p: init.trunc_normal_(p, a=1.0, b=1.0), ArgumentError, "^trunc_normal_: .* b is 1.0: std must be pos"),
        (lambda p: init.trunc_normal_(p, a=9.0, b=10.0), ArgumentError, "^trunc_normal_: .* 8 std from the mean, 0.0"),
        (lambda p: init.orthogonal_(p[0]), ShapeError, "^orthogonal_: p has shape"),
        (lambda p: init.normal_((2, 3)), TypeError, "^normal_: p is tuple: make it a tensor"),
    ],
)
def test_what_does_not_fit_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(ta.zeros(2, 3))


@pytest.mark.parity
@pytest.mark.parametrize("name", [*init.GAINS, "leaky_relu"])
def test_gains_are_torch_s(name):
    import torch

    for given_ in ((), (0.3,)):
        assert init.calculate_gain(name, *given_) == torch.nn.init.calculate_gain(name, *given_)
