"""Whether there are gradients is part of the signature where the function asks for them before it sets them."""

import functools
import gc
import weakref
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.devices import exact
from tests.compiler.trace.test_symbolic_numbers import bits
from tests.tiers import at_most
from tinyarr import Tensor, nn, optim
from tinyarr.compiler import Compiled, compiled
from tinyarr.errors import GradientError

pytestmark = pytest.mark.usefixtures("device")
exactly = functools.partial(Compiled, build=exact())


def model_and_step(order, kind=optim.SGD):
    """A training step of these lines, in which z forgets gradients, f and b go forward and backward, s steps."""
    ta.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = kind(model.parameters(), lr=0.1)

    def step(x):
        loss = x.sum()
        for line in order:
            if line == "z":
                optimizer.zero_grad()
            elif line == "f":
                loss = (model(x) ** 2).sum()
            elif line == "b" and loss.requires_grad:
                loss.backward(retain_graph=True)
            elif line == "s":
                optimizer.step()
        return loss

    return model, step


def state(model):
    return bits([model.state_dict(), [p.grad for p in model.parameters() if p.grad is not None]])


@at_most(60, first=6)
@given(st.text("zfbs", min_size=1, max_size=6), st.lists(st.sampled_from([None, 1.0, "zero"]), min_size=2, max_size=4))
def test_a_step_does_as_in_eager_mode_whatever_gradients_it_finds(order, found):
    pairs = [model_and_step(order) for _ in range(2)]
    steps = [pairs[0][1], exactly(pairs[1][1])]
    for kind in found:
        results = []
        for (model, _), step in zip(pairs, steps):
            for p in model.parameters():
                if kind is None:
                    p.grad = None
                elif kind != "zero":
                    p.grad = ta.full_like(p, kind)
            try:
                results.append(bits(step(ta.ones((2, 3)))))
            except GradientError:  # in the middle, where eager mode keeps what was done before
                assert step is steps[0]
                with pytest.raises(GradientError):
                    steps[1](ta.ones((2, 3)))
                return
            results.append(state(model))
        assert results[:2] == results[2:]


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize("order", ["zfbs", "fzbs", "zfbfb"])
def test_a_step_that_forgets_gradients_before_backward_is_one_program(order, kind):
    pairs = [model_and_step(order, kind) for _ in range(2)]
    run = exactly(pairs[1][1])
    for _ in range(3):
        assert bits(pairs[0][1](ta.ones((2, 3)))) == bits(run(ta.ones((2, 3))))
        assert state(pairs[0][0]) == state(pairs[1][0])
    assert len(run.graphs) == 1, run.explain()


w = None


def test_the_gradient_of_a_name_in_the_code_is_told_from_the_name():
    global w
    w = Tensor([1.0, 2.0], requires_grad=True)

    def step(x):
        w.grad = None
        (x * w).sum().backward()
        return w.grad

    run = exactly(step)
    assert [run(Tensor([k, 1.0])).tolist() for k in (2.0, 3.0)] == [[2, 1], [3, 1]] and len(run.graphs) == 1
    asking = exactly(lambda x: x if w.grad is None else x * w.grad)
    assert asking(Tensor([1.0, 1.0])).tolist() == [3, 1]
    w.grad = None
    assert asking(Tensor([1.0, 1.0])).tolist() == [1, 1] and len(asking.graphs) == 2


def test_gradients_that_are_forgotten_are_forgotten_at_each_call():
    w, kept = Tensor([1.0], requires_grad=True), []

    def forget(x):
        w.grad = None
        return x * 2

    run = exactly(forget)
    for gradient in (None, Tensor([3.0]), None, Tensor([3.0])):
        w.grad = gradient
        assert run(Tensor([1.0])).item() == 2 and w.grad is None
    assert len(run.graphs) == 1

    kept.append(Tensor([5.0]))
    w.grad = kept[0]  # which the function reads by another name
    both = exactly(lambda x: (forget(x), x * kept[0].sum()))
    assert both(Tensor([1.0]))[1].item() == 5
    w.grad = kept[0] = Tensor([7.0, 1.0])
    assert both(Tensor([1.0]))[1].item() == 8


def test_after_an_error_nobody_watches():
    descriptor = vars(Tensor)["grad"]

    def step(x):
        assert vars(Tensor)["grad"] is not descriptor
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        exactly(step)(Tensor([1.0]))
    assert vars(Tensor)["grad"] is descriptor


def test_gradients_that_are_not_asked_for_are_not_kept_and_need_no_walk():
    model, step = model_and_step("zfbs")
    run = exactly(step)
    run(ta.ones((2, 3)))
    run(ta.ones((2, 3)))
    gone = [weakref.ref(p.grad) for p in model.parameters()]
    with mock.patch.object(compiled, "Walk", side_effect=AssertionError):
        run(ta.ones((2, 3)))
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
    other = Tensor([[1.0], [2.0]])  # one of another dtype or shape is no reason for a walk either
    model[0].bias.grad = other
    with mock.patch.object(compiled, "Walk", side_effect=AssertionError):
        run(ta.ones((2, 3)))
    assert model[0].bias.grad is not other


def test_a_gradient_is_asked_for_in_a_vmap_too():
    global w
    w = Tensor([1.0, 2.0], requires_grad=True)
    run = exactly(lambda x: ta.vmap(lambda x: x if w.grad is None else x * 2)(x))
    assert run(Tensor([1.0])).item() == 1
    w.grad = Tensor([1.0, 1.0])
    assert run(Tensor([1.0])).item() == 2
