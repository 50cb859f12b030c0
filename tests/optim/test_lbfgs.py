"""L-BFGS against torch's, evaluation for evaluation, and against minima that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tests.tiers import at_most
from tinyarr import float32, float64, nn, optim
from tinyarr.errors import ArgumentError, ShapeError, TraceError
from tinyarr.optim.line_search import CURVATURE, DECREASE, Trial, minimum_of_cubic, strong_wolfe

SEARCH = {"line_search_fn": "strong_wolfe"}
START = [np.array([[-1.2, 1.0], [0.3, -0.7]]), np.array([0.5, -1.5])]


def rosenbrock(z):
    return (100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2).sum()


def quadratic(z):
    weights = [1.0, 10.0, 3.0, 0.1, 2.0, 7.0]
    return sum((w * (x - i) ** 2 for i, (w, x) in enumerate(zip(weights, z))), start=z[0] * z[1])


def problem(function, options, start=START, dtype=float64):
    """The optimizer of a function of all elements of the parameters, its closure, and the counted evaluations."""
    parameters = [tinyarr.Tensor(x, dtype=dtype, requires_grad=True) for x in start]
    optimizer, counted = optim.LBFGS(parameters, **options), []

    def closure():
        counted.append(None)
        optimizer.zero_grad()
        loss = function(tinyarr.concat([p.reshape(-1) for p in parameters]))
        loss.backward()
        return loss

    return optimizer, closure, counted


@pytest.mark.parity
@pytest.mark.parametrize("function", [rosenbrock, quadratic], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options",
    [{"lr": 0.01}, {"lr": 0.05, "history_size": 2}, {"lr": 0.01, "max_iter": 4}, {"lr": 0.05, "max_eval": 3},
     SEARCH, {"history_size": 3, "max_iter": 7, **SEARCH}, {"lr": 0.1, "tolerance_grad": 0.5, **SEARCH},
     {"tolerance_change": 0.1, **SEARCH}],
    ids=str,
)  # fmt: skip
def test_every_step_is_torch_s(function, options):
    import torch

    optimizer, closure, counted = problem(function, options)
    parameters = [torch.tensor(x, requires_grad=True) for x in START]
    other, others = torch.optim.LBFGS(parameters, **options), []

    def theirs():
        others.append(None)
        other.zero_grad()
        loss = function(torch.cat([p.reshape(-1) for p in parameters]))
        loss.backward()
        return loss

    for _ in range(4):
        np.testing.assert_allclose(optimizer.step(closure).item(), other.step(theirs).item(), rtol=1e-8, atol=1e-12)
        assert len(counted) == len(others)
        for p, q in zip(optimizer.parameters, reversed(parameters)):
            np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-8, atol=1e-10)


@at_most(10)
@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_a_search_finds_the_valley_of_rosenbrock(start):
    optimizer, closure, _ = problem(rosenbrock, {"max_iter": 200, **SEARCH}, [np.array(start)])
    optimizer.step(closure)
    (p,) = optimizer.parameters
    assert np.abs(p.grad.numpy()).max() < 1e-3 and closure().item() < 1e-6


def test_least_squares_by_a_layer_and_a_compiled_closure():
    generator = tinyarr.Generator(0)
    x, layer = tinyarr.randn(50, 4, generator=generator), nn.Linear(4, 2, generator=generator)
    y = tinyarr.randn(50, 2, generator=generator)
    optimizer = optim.LBFGS(layer.parameters(), **SEARCH)

    @tinyarr.compile
    def closure():
        optimizer.zero_grad()
        loss = ((layer(x) - y) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    columns = np.concatenate([x.numpy(), np.ones((50, 1))], axis=1)
    expected = np.linalg.lstsq(columns, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(layer.weight.numpy().T, expected[:4], atol=1e-4)
    np.testing.assert_allclose(layer.bias.numpy(), expected[4], atol=1e-4)


@pytest.mark.parametrize("options", [{"lr": 0.01}, {"history_size": 2, "max_iter": 5, **SEARCH}], ids=str)
def test_a_saved_state_goes_on_with_the_same_bits(options, tmp_path):
    optimizer, closure, _ = problem(rosenbrock, options)
    optimizer.step(closure)
    start = [p.numpy().copy() for p in reversed(optimizer.parameters)]
    resumed, its_closure, _ = problem(rosenbrock, options, start)
    resumed.load_state_dict({name: x.numpy().copy() for name, x in optimizer.state_dict().items()})
    for one, its in ((optimizer, closure), (resumed, its_closure)):
        one.step(its)
    for p, q in zip(optimizer.parameters, resumed.parameters):
        assert p.numpy().tobytes() == q.numpy().tobytes()


@pytest.mark.parametrize("change", [{"1.moved": np.zeros(3)}, {"other": np.zeros(3)}], ids=["shape", "name"])
def test_a_state_that_is_refused_changes_nothing(change):
    optimizer, closure, _ = problem(rosenbrock, {"max_iter": 9, **SEARCH})
    optimizer.step(closure)
    before = {name: x.numpy().copy() for name, x in optimizer.state_dict().items()}
    with pytest.raises((ArgumentError, ShapeError), match="load_state_dict"):
        optimizer.load_state_dict(before | change)
    after = optimizer.state_dict()
    assert "1.moved" in before and after.keys() == before.keys()
    assert all(after[name].numpy().tobytes() == before[name].tobytes() for name in before)


def test_a_parameter_without_a_gradient_stays():
    used, unused = (tinyarr.ones(2, requires_grad=True) for _ in range(2))
    optimizer = optim.LBFGS([used, unused])

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert abs(used.numpy()).max() < 1e-6 and unused.tolist() == [1, 1]


slopes = st.floats(-3, -0.1)


@at_most(50)
@given(slopes, st.floats(0.05, 3), st.floats(0.001, 20))
def test_the_step_found_fulfils_both_conditions(slope, curvature, first):
    """On slope t + curvature t^2 + sin-shaped noise, of which a bracket can hold many minima."""

    def evaluate(t):
        loss = slope * t + curvature * t * t + 0.02 * np.sin(9 * t)
        return Trial(t, loss, slope + 2 * curvature * t + 0.18 * np.cos(9 * t), None)

    start = evaluate(0.0)
    if start.slope >= -1e-3:
        return
    found, evaluations = strong_wolfe(evaluate, start, first, 1.0, 1e-12)
    assert found.loss <= start.loss + DECREASE * found.step * start.slope
    assert abs(found.slope) <= -CURVATURE * start.slope and evaluations <= 26


def test_the_cubic_s_minimum_is_kept_in_bounds_and_the_middle_where_there_is_none():
    a, b = Trial(0, 1.0, -2.0, None), Trial(3, 4.0, 4.0, None)
    assert minimum_of_cubic(b, a, (0, 3)) == 1 and minimum_of_cubic(a, b, (2, 3)) == 2
    assert minimum_of_cubic(Trial(0, 0.0, 1.0, None), Trial(1, 1.0, 1.5, None), (0, 4)) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: optim.LBFGS([x], line_search_fn="wolfe"), ArgumentError, "line_search_fn is 'wolfe': it must be"),
        (lambda x, y: optim.LBFGS([x], max_iter=0), ArgumentError, "LBFGS: max_iter is 0: it must be an int of 1 or"),
        (lambda x, y: optim.LBFGS([x], max_iter=2.5), ArgumentError, r"max_iter is 2\.5: it must be an int of 1"),
        (lambda x, y: optim.LBFGS([x], history_size=2.5), ArgumentError, r"history_size is 2\.5: it must be an int"),
        (lambda x, y: optim.LBFGS([x, y.astype("float64")]), ArgumentError, "a parameter has shape"),
        (lambda x, y: optim.LBFGS([{"params": [x]}, {"params": [y]}]), ArgumentError, "are in 2 groups"),
        (lambda x, y: optim.LBFGS([tinyarr.Tensor(x, dtype="bfloat16", requires_grad=True)]), ArgumentError,
         r"in 1 groups, \['bfloat16'\]: give one, of float32"),
        (lambda x, y: optim.LBFGS([x]).step(), TypeError, "closure"),
        (lambda x, y: optim.LBFGS([x]).step(None), TypeError, "LBFGS: closure is NoneType: give a function"),
        (lambda x, y: optim.LBFGS([x]).step(lambda: None), TypeError, "LBFGS: closure returned NoneType: it must"),
        (lambda x, y: tinyarr.compile(optim.LBFGS([x]).step)(lambda: x.sum()), TraceError, "compile the closure"),
        (lambda x, y: (optim.LBFGS([x]), optim.SGD([x]))[0].step(lambda: x), ArgumentError, "moved by another opt"),
    ],
)  # fmt: skip
def test_what_it_can_t_do_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(tinyarr.ones(2, dtype=float32, requires_grad=True), tinyarr.ones(2, requires_grad=True))
