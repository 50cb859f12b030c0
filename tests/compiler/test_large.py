"""GPT-2 124M compiled, beside eager mode."""

import numpy as np
import pytest

import tinyarr as ta
from models.gpt2 import GPT2, Config
from tinyarr import Tensor

BATCH = np.random.default_rng(0).integers(0, 50257, (4, 65))


def losses(dtype, compiled: bool, steps: int) -> np.ndarray:
    """The losses of training on one batch, whose first weights are the same float32 ones."""
    model = GPT2(Config(), generator=ta.Generator(0))
    for p in model.parameters():
        p.array = p.detach().astype(dtype).array
    optimizer = ta.optim.AdamW(model.parameters(), lr=1e-3)
    tokens, targets = Tensor(BATCH[:, :-1]), Tensor(BATCH[:, 1:])

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = ta.compile(step) if compiled else step
    return np.array([run().item() for _ in range(steps)])


@pytest.mark.slow
@pytest.mark.parity
def test_gpt2_124m_compiled_errs_no_more_than_twice_eager_float32():
    """The reference is eager float64; the floor a rounding of the loss."""
    exact, eager, compiled = losses(ta.float64, False, 3), losses(ta.float32, False, 3), losses(ta.float32, True, 3)
    floor = np.finfo(np.float32).eps * exact
    assert exact[-1] < exact[0]
    assert (np.abs(compiled - exact) <= 2 * np.abs(eager - exact) + 2 * floor).all()
