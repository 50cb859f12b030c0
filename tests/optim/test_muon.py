"""Muon against its formula in float64, torch's, and its parts: what it orthogonalizes together changes no number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from tests.tiers import at_most, slow
from tinyarr import bfloat16, float32, float64, optim, segments
from tinyarr.errors import ArgumentError
from tinyarr.optim import muon

SHAPES = [(4, 6), (3, 3), (4, 6), (8, 3), (4, 6), (3, 3)]
OPTIONS = [{}, {"nesterov": False, "weight_decay": 0.3, "match_adamw": True}, {"momentum": 0.5, "steps": 3}]
with_options = pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], slow(OPTIONS[2])], ids=str)
compiled_or_not = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


def arrays(seed, steps=3):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=shape) for shape in SHAPES] for _ in range(1 + steps)]


def walked(make, start, gradients, *, compiled=False, dtype=float64):
    """The parameters after each step."""
    parameters = [tinyarr.Tensor(x, dtype=dtype, requires_grad=True) for x in start]
    optimizer = make(parameters)
    step = tinyarr.compile(optimizer.step) if compiled else optimizer.step
    for gs in gradients:
        for p, g in zip(parameters, gs):
            p.grad = None if g is None else tinyarr.Tensor(g, dtype=dtype)
        step()
        yield [p.numpy() for p in parameters]


def formula(p, gradients, *, lr=0.1, momentum=0.95, nesterov=True, weight_decay=0.1, match_adamw=False, steps=5):
    a, b, c = muon.COEFFICIENTS
    (n, m), velocity = p.shape, 0.0
    for g in gradients:
        velocity = momentum * velocity + (1 - momentum) * g
        x = momentum * velocity + (1 - momentum) * g if nesterov else velocity
        u, s, v = np.linalg.svd(x, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(steps):
            s = a * s + b * s**3 + c * s**5
        scale = 0.2 * max(n, m) ** 0.5 if match_adamw else max(1, n / m) ** 0.5
        p = p - lr * weight_decay * p - lr * scale * (u * s) @ v
        yield p


@compiled_or_not
@with_options
def test_steps_follow_the_formula_of_the_singular_values(options, compiled):
    start, *gradients = arrays(0)
    steps = walked(lambda ps: optim.Muon(ps, 0.1, **options), start, gradients, compiled=compiled)
    expected = zip(*[formula(x, [gs[i] for gs in gradients], **options) for i, x in enumerate(start)])
    for found, wanted in zip(steps, expected, strict=True):
        for x, y in zip(found, wanted):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_every_step_is_torch_s_in_its_own_precision(options, monkeypatch):
    import torch

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch would compute the products in it
    start, *gradients = arrays(1)
    parameters = [torch.tensor(x, requires_grad=True) for x in start]
    theirs = {name: value for name, value in options.items() if name != "match_adamw"} | {"lr": 0.1}
    adjust = "match_rms_adamw" if options.get("match_adamw") else "original"
    optimizer = torch.optim.Muon(parameters, adjust_lr_fn=adjust, **theirs)
    for found, gs in zip(walked(lambda ps: optim.Muon(ps, 0.1, **options), start, gradients), gradients):
        for p, g in zip(parameters, gs):
            p.grad = torch.tensor(g)
        optimizer.step()
        for x, p in zip(found, parameters):
            np.testing.assert_allclose(x, p.detach().numpy(), rtol=1e-12, atol=1e-12)


@compiled_or_not
@at_most(4, first=2)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(0, 99))
def test_matrices_of_one_shape_together_are_those_alone(compiled, given, seed):
    start, *gradients = arrays(seed, len(given))
    gradients = [[g if has else None for g, has in zip(gs, here)] for gs, here in zip(gradients, given)]
    together = walked(lambda ps: optim.Muon(ps, 0.1), start, gradients, compiled=compiled)
    alone = zip(*[
        list(walked(lambda ps: optim.Muon(ps, 0.1), [x], [[gs[i]] for gs in gradients])) for i, x in enumerate(start)
    ])  # fmt: skip
    for found, wanted in zip(together, alone, strict=True):
        for x, (y,) in zip(found, wanted):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)


def test_matrices_of_one_shape_are_one_product():
    parameters = [tinyarr.Tensor(x, requires_grad=True) for x in arrays(0)[0]]
    optimizer = optim.Muon([{"parameters": parameters[:3]}, {"parameters": parameters[3:], "lr": 0.1}])
    for p in parameters:
        p.grad = tinyarr.ones_like(p)
    shapes = [[p.shape for p, _, _ in optimizer._together(packed)] for packed in optimizer._packed]
    assert shapes == [[(2, 4, 6), (3, 3)], [(8, 3), (4, 6), (3, 3)]]
    segments.pack(parameters[:1])  # where one is moved, each goes alone
    assert [p.shape for p, _, _ in optimizer._together(optimizer._packed[0])] == [(4, 6), (4, 6), (3, 3)]


def test_all_singular_values_come_near_one():
    rng = np.random.default_rng(0)
    x = tinyarr.Tensor(rng.normal(size=(2, 30, 50)), dtype=float32)
    for y in (muon.orthogonalized(x), muon.orthogonalized(x.mT).mT):
        values = np.linalg.svd(y.numpy(), compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.3
    assert muon.orthogonalized(tinyarr.zeros((3, 2))).tolist() == [[0, 0]] * 3


def test_a_half_type_is_updated_in_its_master_and_from_what_was_written():
    (p,) = parameters = [tinyarr.ones((4, 4), dtype=bfloat16, requires_grad=True)]
    optimizer = optim.Muon(parameters, 2.0**-12, weight_decay=0.0)
    for _ in range(3):
        p.grad = tinyarr.Tensor(np.eye(4), dtype=bfloat16)
        optimizer.step()
    master = optimizer.state_of(p)["master"]
    assert master.dtype is float32 and 0 < 1 - master[0, 0].item() < 2.0**-9 and p[0, 0].item() == 1
    with tinyarr.no_grad():
        p.assign(3.0)
    optimizer.step()
    assert abs(master.numpy() - 3).max() < 2.0**-9


def test_a_step_whose_condition_does_not_hold_changes_nothing():
    for dtype in (float32, bfloat16):
        parameters = [tinyarr.Tensor(x, dtype=dtype, requires_grad=True) for x in arrays(0)[0]]
        optimizer = optim.Muon(parameters)
        for p in parameters:
            p.grad = tinyarr.full(p.shape, float("nan"), dtype=dtype)
        before = [x.tolist() for x in (*parameters, *optimizer.state_dict().values())]
        optimizer.step(where=tinyarr.Tensor(False))
        assert [x.tolist() for x in (*parameters, *optimizer.state_dict().values())] == before


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ArgumentError, match=r"^Muon: a parameter has shape \(3,\): it must be a matrix: give it to Ad"):
        optim.Muon([tinyarr.ones((3,), requires_grad=True)])
    with pytest.raises(ArgumentError, match="Muon: a parameter is float"):
        optim.Muon([1.0])
    with pytest.raises(ArgumentError, match=r"Muon: steps is 2\.5: it must be an int of 1 or more"):
        optim.Muon([tinyarr.ones((3, 3), requires_grad=True)], steps=2.5)
