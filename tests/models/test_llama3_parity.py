"""Llama 3 beside transformers' Llama: the same numbers from the same weights, and each reads the other's files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyarr
from models import hugging_face
from models.generate import new_tokens
from models.hugging_face import Llama3Format
from models.llama3 import Config, Llama3, RotaryScaling
from models.options import GenerateOptions
from tinyarr import Generator

pytestmark = pytest.mark.parity

CONFIG = Config(
    vocab_size=200, block_size=256, n_layer=2, n_head=4, n_kv_head=2, n_embd=48, n_hidden=80, rotary_base=10000.0,
    rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 64),
)  # fmt: skip
scalings = st.none() | st.builds(
    RotaryScaling, st.floats(1.5, 32), st.just(1.0), st.floats(1.5, 6), st.sampled_from((8, 16, 64, 8192))
)
configs = st.builds(
    lambda groups, shared, half, **rest: Config(
        n_head=groups * shared, n_kv_head=groups, n_embd=groups * shared * 2 * half, **rest
    ),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    half=st.integers(2, 6),
    vocab_size=st.integers(2, 300),
    block_size=st.just(64),
    n_layer=st.integers(1, 3),
    n_hidden=st.integers(1, 60),
    rotary_base=st.floats(100, 500000),
    rotary_scaling=scalings,
    norm_eps=st.sampled_from((1e-5, 1e-6)),
    tied=st.booleans(),
)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def oracle():
    """Imported here, as the fast tests run without transformers but collect this file."""
    from tests.models import llama3_oracle

    return llama3_oracle


def loaded(config, weights, dtype=tinyarr.float64):
    """tinyarr's model with the weights of transformers' names, given as NumPy arrays."""
    model = Llama3(config, dtype=dtype, generator=Generator(0))
    for name, t in Llama3Format.weights(model).items():
        t.assign(tinyarr.Tensor(weights[name]))
    return model


def part(record, prefix):
    return {name.removeprefix(f"{prefix}."): x for name, x in record.items() if name.startswith(f"{prefix}.")}


def relative_error(x, expected, least=0.0):
    """The largest difference, in units of the largest expected value, or of `least` where that is larger."""
    return np.abs(x - expected).max() / max(np.abs(expected).max(), least)


@settings(max_examples=25)
@given(data=st.data(), config=configs, seed=seeds, B=st.integers(1, 3))
def test_logits_loss_and_gradients_are_those_of_transformers(oracle, data, config, seed, B):
    T = data.draw(st.integers(1, config.block_size))
    tokens = oracle.random_tokens(config, seed, B, T)
    expected = oracle.step(oracle.random_model(config, seed), tokens)

    model = loaded(config, part(expected, "weights"))
    inputs, targets = tinyarr.Tensor(tokens[:, :-1]), tinyarr.Tensor(tokens[:, 1:])
    assert relative_error(model(inputs).numpy(), expected["logits"]) < 1e-9
    loss = model.loss(inputs, targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    gradients = loaded(config, part(expected, "gradients"))
    # With equal tokens some gradients are 0 but for rounding, so each is measured by the model's largest too.
    least = 1e-3 * max(np.abs(g.numpy()).max() for g in gradients.parameters())
    for (name, p), (_, g) in zip(model.named_parameters(), gradients.named_parameters()):
        assert relative_error(p.grad.numpy(), g.numpy(), least) < 1e-9, name


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_generation_is_that_of_transformers_with_a_cache_and_without(oracle, tied):
    config = replace(CONFIG, tied=tied)
    theirs = oracle.random_model(config, 3, noise=0.4)
    model = loaded(config, {name: p.detach().numpy() for name, p in theirs.named_parameters()})
    prompt = oracle.random_tokens(config, 3, 1, 9)[0].tolist()
    options = GenerateOptions(tokens=200, temperature=0)
    expected = oracle.greedy(theirs, prompt, 200)
    assert len(set(expected)) > 20  # no text that repeats itself, which a wrong cache could get right
    assert list(new_tokens(model, prompt, options)) == expected
    assert list(new_tokens(Uncached(model), prompt, options)) == expected


class Uncached:
    """A model that reads everything again for each token."""

    def __init__(self, model):
        self.model, self.config, self.read = model, model.config, []

    def new_cache(self, B, capacity):
        self.cache = self.model.new_cache(B, capacity)
        return self.cache

    def __call__(self, tokens, cache=None):
        self.read += tokens.tolist()[0]
        cache.advance(tokens.shape[1])
        return self.model(tinyarr.Tensor([self.read]))


def test_transformers_reads_what_tinyarr_writes(tmp_path):
    import torch
    from transformers import LlamaForCausalLM

    for tied, shard_bytes in [(False, 10**9), (True, 10**9), (False, 20_000)]:
        folder = tmp_path / f"{tied}{shard_bytes}"
        model = Llama3(replace(CONFIG, tied=tied), dtype=tinyarr.float64, generator=Generator(0))
        hugging_face.save(folder, model, shard_bytes=shard_bytes)
        read, found = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
        assert not any(found.values()), found
        for name, t in Llama3Format.weights(model).items():
            np.testing.assert_array_equal(read.state_dict()[name].numpy(), t.numpy())
        assert read.config.rope_parameters["rope_type"] == "llama3"
        assert read.config.num_key_value_heads == 2 and read.config.rope_parameters["factor"] == 8.0


@pytest.mark.parametrize("size", ["100GB", "40KB"])
def test_tinyarr_reads_what_transformers_writes(oracle, tmp_path, size):
    written = oracle.random_model(CONFIG, 0)
    written.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or size == "100GB"
    assert hugging_face.read_config(Llama3, tmp_path) == CONFIG
    model = Llama3(CONFIG, dtype=tinyarr.float64)
    hugging_face.load(tmp_path, model)
    expected = oracle.step(written, oracle.random_tokens(CONFIG, 0, B=2, T=24))
    inputs = tinyarr.Tensor(oracle.random_tokens(CONFIG, 0, B=2, T=24)[:, :-1])
    assert relative_error(model(inputs).numpy(), expected["logits"]) < 1e-9


def test_a_key_that_is_missing_has_the_value_that_transformers_gives_it(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert hugging_face.read_config(Llama3, tmp_path / "empty") == hugging_face.read_config(Llama3, tmp_path)


def test_float32_is_as_near_to_float64_as_transformers_is(oracle):
    """Neither's roundings are the other's, so the bound is twice the error that transformers makes itself."""
    tokens = oracle.random_tokens(CONFIG, 0, B=4, T=24)
    exact = oracle.step(oracle.random_model(CONFIG, 0).float().double(), tokens)
    narrow = oracle.random_model(CONFIG, 0).float()
    narrow.zero_grad()
    import torch

    with torch.no_grad():
        theirs = narrow(torch.from_numpy(tokens[:, :-1])).logits.numpy()
    model = loaded(CONFIG, part(exact, "weights"), tinyarr.float32)
    ours = model(tinyarr.Tensor(tokens[:, :-1])).numpy()
    assert np.linalg.norm(ours - exact["logits"]) < 2 * np.linalg.norm(theirs - exact["logits"])
