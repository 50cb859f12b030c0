"""Steps of optimizers that depend on a condition, on the GPU."""

import numpy as np
import pytest

import tinyarr
from tests.test_optim import UPDATES, bits, updates
from tinyarr import Tensor

pytestmark = pytest.mark.cuda


@updates
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_is_taken_or_changes_nothing_at_all(name, compiled):
    assert three_steps(name, compiled, masked=True) == three_steps(name, compiled, masked=False)


def three_steps(name, compiled, masked):
    """The bits after three steps; if they are masked, after another whose condition does not hold."""
    make, dtype = UPDATES[name]
    rng = np.random.default_rng(0)
    start, gradient = (Tensor(rng.standard_normal((67, 33)), dtype=dtype, device="cuda") for _ in range(2))
    with tinyarr.random.use_generator(tinyarr.Generator(0)):
        start.requires_grad = True
        optimizer = make([start])
        step = (lambda where: optimizer.step(where=where)) if masked else optimizer.step
        step = tinyarr.compile(step) if compiled else step
        for _ in range(3):
            start.grad = tinyarr.copy(gradient)
            step(*[Tensor(True, device="cuda")] * masked)
        found = bits([start], optimizer)
        if masked:
            start.grad = tinyarr.full(start.shape, float("nan"), dtype=dtype, device="cuda")
            step(Tensor(False, device="cuda"))
            assert bits([start], optimizer) == found
    return found
