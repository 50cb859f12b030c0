"""Averages of weights against their formula and torch's."""

import numpy as np
import pytest

import tinyarr
from tests.tiers import slow
from tinyarr import bfloat16, float32, float64, nn, optim
from tinyarr.errors import ArgumentError, ShapeError

SHAPES = [(4, 3), (5,), (), (33,), (0, 2), (64,)]
compiled_or_not = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
packed_or_not = pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])


def made(dtype, packed):
    rng = np.random.default_rng(0)
    parameters = [tinyarr.Tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in SHAPES]
    if packed:
        optim.SGD(parameters)
    return parameters


def values(steps, seed=1):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=s) for s in SHAPES] for _ in range(steps)]


def write(parameters, arrays):
    with tinyarr.no_grad():
        for p, x in zip(parameters, arrays):
            p.assign(tinyarr.Tensor(x, dtype=p.dtype))


@compiled_or_not
@packed_or_not
@pytest.mark.parametrize("dtype", [slow(float64), float32, slow(bfloat16)], ids=lambda d: d.name)
def test_averages_follow_the_formula(dtype, packed, compiled):
    parameters = made(dtype, packed)
    average = optim.ExponentialMovingAverage(parameters, decay=0.9)
    expected = [p.numpy().astype(np.float64) for p in parameters]
    update = tinyarr.compile(average.update) if compiled else average.update
    for arrays in values(4):
        write(parameters, arrays)
        update()
        expected = [0.9 * e + 0.1 * p.numpy().astype(np.float64) for e, p in zip(expected, parameters)]
    eps = np.finfo(dtype.compute.numpy).eps
    for found, wanted in zip(average.averages, expected):
        assert found.dtype is dtype.compute
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=4 * 3 * 4 * eps)  # 3 roundings of below 4 a step


@pytest.mark.parity
def test_averages_are_torch_s():
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    theirs = torch.nn.Linear(4, 3, dtype=torch.float64)
    ours = [tinyarr.Tensor(p.detach().numpy(), requires_grad=True) for p in theirs.parameters()]
    model = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    model.update_parameters(theirs)  # the first copies
    average = optim.ExponentialMovingAverage(ours, decay=0.9)
    rng = np.random.default_rng(0)
    for _ in range(5):
        for p, q in zip(ours, theirs.parameters()):
            x = rng.normal(size=p.shape)
            write([p], [x])
            q.data.copy_(torch.tensor(x))
        average.update()
        model.update_parameters(theirs)
    for found, wanted in zip(average.averages, model.module.parameters()):
        np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), rtol=1e-14)


@packed_or_not
def test_averages_stand_in_the_parameters_place_for_a_while(packed):
    parameters = made(float32, packed)
    average = optim.ExponentialMovingAverage(iter(parameters), decay=0.5)
    first = [p.numpy().copy() for p in parameters]
    write(parameters, values(1)[0])
    after = [p.numpy().copy() for p in parameters]
    with average.swapped():
        assert all(np.array_equal(p.numpy(), x) for p, x in zip(parameters, first))
    assert all(np.array_equal(p.numpy(), x) for p, x in zip(parameters, after))
    with pytest.raises(ZeroDivisionError), average.swapped():
        1 / 0  # noqa: B018
    assert all(np.array_equal(p.numpy(), x) for p, x in zip(parameters, after))


def test_a_gradient_is_recorded_inside_and_the_optimizer_goes_on_after():
    layer = nn.Linear(3, 2)
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    average = optim.ExponentialMovingAverage(layer.parameters())
    for _ in range(2):
        layer(tinyarr.ones((1, 3))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        with average.swapped():
            assert layer(tinyarr.ones((1, 3))).requires_grad
    assert len(average._averaged) == 1  # the layer's segment


def test_parameters_that_an_optimizer_moves_later_are_averaged_too():
    parameters = made(float32, True)
    average = optim.ExponentialMovingAverage(parameters, decay=0.0)
    optim.SGD(parameters[::-1])
    write(parameters, values(1)[0])
    average.update()
    for a, p in zip(average.averages, parameters):
        np.testing.assert_allclose(a.numpy(), p.numpy(), rtol=0, atol=2 * 8 * np.finfo(np.float32).eps)


def test_parameters_that_share_one_memory_with_something_between_leave_that_alone():
    memory = tinyarr.full((64,), 7.0)
    parameters = [memory[:5], memory[32:37]]
    for p in parameters:
        p.requires_grad = True
    average = optim.ExponentialMovingAverage(parameters, decay=0.5)
    write(parameters, [np.zeros(5), np.zeros(5)])
    average.update()
    with average.swapped():
        assert memory.tolist() == [3.5] * 5 + [7.0] * 27 + [3.5] * 5 + [7.0] * 27
    assert memory.tolist() == [0.0] * 5 + [7.0] * 27 + [0.0] * 5 + [7.0] * 27


def test_a_saved_state_goes_on():
    average, other = (optim.ExponentialMovingAverage(made(bfloat16, packed), 0.9) for packed in (True, False))
    write(average.parameters, values(1)[0])
    average.update()
    other.load_state_dict({name: x.numpy() for name, x in average.state_dict().items()})
    for x, y in zip(average.averages, other.averages):
        assert x.numpy().tobytes() == y.numpy().tobytes()
    with pytest.raises(ArgumentError, match=r"load_state_dict: the states differ in \['0'\]"):
        other.load_state_dict({name: x for name, x in average.state_dict().items() if name != "0"})
    with pytest.raises(ShapeError, match=r"load_state_dict: 1 has shape \(2,\), expected \(5,\)"):
        other.load_state_dict(average.state_dict() | {"1": np.ones(2)})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: optim.ExponentialMovingAverage([p], decay=1.5), ArgumentError, r"decay is 1.5: it must lie in \[0,"),
        (lambda p: optim.ExponentialMovingAverage(p), TypeError, "parameters is Tensor: pass model.parameters"),
        (lambda p: optim.ExponentialMovingAverage([p * 2]), ArgumentError, "a parameter has shape .* must be a leaf"),
        (lambda p: optim.ExponentialMovingAverage([1.0]), ArgumentError, "a parameter is float: it must be a leaf"),
    ],
)
def test_what_can_t_be_averaged_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call(tinyarr.ones(2, requires_grad=True))
