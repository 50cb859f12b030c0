"""The contract of a backend, as docs/write-a-backend.md has it, kept by the smallest one: examples/backend."""

from pathlib import Path

import numpy as np
import pytest

import tinyarr as ta
from examples.backend import python_lists
from models.gpt2 import GPT2
from models.gpt2 import Config as GPT2Config
from models.llama3 import Config as LlamaConfig
from models.llama3 import Llama3
from tests.samples import SAMPLES
from tests.test_primitives import check_results, recorded
from tinyarr import Device, Tensor
from tinyarr.compiler.lower import lower
from tinyarr.compiler.memory.plan import plan
from tinyarr.errors import DeviceError, OutOfBounds

LISTS = Device("lists")
MODELS = {
    "gpt2": lambda: GPT2(GPT2Config(vocab_size=7, block_size=4, n_layer=1, n_head=2, n_embd=4)),
    "llama3": lambda: Llama3(LlamaConfig(7, 4, 1, 2, 1, 8, 8)),
}


def train(name, device, compiled=False):
    """The losses of two steps of a tiny model, and its parameters after them."""
    ta.manual_seed(0)
    model = MODELS[name]()
    model.to(device)
    optimizer = ta.optim.AdamW(model.parameter_groups(0.1), lr=1e-2)
    tokens, targets = (Tensor([part], device=device) for part in ([1, 2, 3, 1], [2, 3, 1, 4]))

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        ta.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step = ta.compile(step) if compiled else step
    losses = [step().item() for _ in range(2)]
    return losses, [p.numpy() for p in model.parameters()]


def needed():
    """The operations that a training step of the models applies."""
    with recorded() as ran:
        for name in MODELS:
            train(name, "cpu")
    return sorted({call.primitive.name for call, _ in ran} & SAMPLES.keys())


@pytest.mark.parametrize("name", needed())
def test_what_the_models_need_passes_its_record_on_lists(name):
    check_results(name, LISTS, max_examples=4)


@pytest.mark.parametrize("name", MODELS)
def test_lists_train_the_models_compiled_too(name):
    losses, parameters = train(name, "cpu")
    found, made = train(name, LISTS)
    assert found == pytest.approx(losses, rel=1e-5)
    for x, y in zip(made, parameters, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    again, compiled = train(name, LISTS, compiled=True)
    assert again == found
    for x, y in zip(compiled, made, strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_lists_lack_is_an_error_that_names_it():
    x = ta.ones((2, 3), device=LISTS)
    for function in (ta.argsort, ta.compile(ta.argsort)):
        with pytest.raises(DeviceError, match="argsort: has no kernel on lists and no composite"):
            function(x)
    for function in (ta.take, ta.compile(ta.take)):
        with pytest.raises(OutOfBounds, match="take: index 7 is out of range"):
            function(x, Tensor([7], device=LISTS))


def test_a_plan_for_lists_is_lowered_to_kernels_alone():
    """Where a backend joins no expression to a kernel, and has it apart."""
    compiled = ta.compile(lambda x: ta.concat([ta.softmax(x * 2 + 1).T, ta.sum(x * 3, axis=1, keepdims=True)], axis=1))
    compiled(ta.ones((3, 3)))
    (graph,) = compiled.graphs
    lowered = lower(plan(graph), LISTS.backend)
    assert all(call.prologue is None for call in lowered.calls)
    assert {call.call.primitive.name for call in lowered.calls} >= {"softmax", "sum", "copy"}


def test_the_backend_is_short():
    lines = Path(python_lists.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
