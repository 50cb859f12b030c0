"""Models of 124 million parameters compiled, beside eager mode."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import tinyarr as ta
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tinyarr import Tensor

MODELS = {
    "gpt2": lambda **given: GPT2(GPT2Config(), **given),
    "llama3": lambda **given: Llama3(LlamaConfig(32000, 64, 12, 12, 4, 768, 2048), **given),
}


def train(name: str, dtype, compiled: bool, steps: int = 3) -> tuple[np.ndarray, list[Tensor]]:
    """The losses of training on one batch, from the same float32 weights in any dtype; and the weights then."""
    model = MODELS[name](generator=ta.Generator(0))
    for p in model.parameters():
        p.array = p.detach().astype(dtype).array
    optimizer = ta.optim.AdamW(model.parameters(), lr=1e-3)
    batch = np.random.default_rng(0).integers(0, model.config.vocab_size, (4, 65))
    tokens, targets = Tensor(batch[:, :-1]), Tensor(batch[:, 1:])

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = ta.compile(step) if compiled else step
    return np.array([run().item() for _ in range(steps)]), list(model.parameters())


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_errs_no_more_than_twice_eager_float32(name):
    """In all steps together, since one may err little by luck; from float64, and up to a rounding of the loss."""
    runs = [(ta.float64, False), (ta.float32, False), (ta.float32, True)]
    exact, eager, compiled = (train(name, *run)[0] for run in runs)
    floor = np.finfo(np.float32).eps * exact.max()
    assert exact[-1] < exact[0]
    assert np.abs(compiled - exact).max() <= 2 * np.abs(eager - exact).max() + 2 * floor


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_runs_and_threads_change_no_bit_of_a_compiled_model(name):
    command = [sys.executable, "-c", f"from tests.compiler.test_large import *; print(digest({name!r}))"]
    found = {
        subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": n}, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        for n in ("1", "2", "2")
    }
    assert len(found) == 1


def digest(name: str) -> str:
    losses, weights = train(name, ta.float32, True, 2)
    return hashlib.sha256(b"".join([losses.tobytes(), *(w.numpy().tobytes() for w in weights)])).hexdigest()
