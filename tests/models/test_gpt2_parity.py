"""GPT-2 beside transformers' GPT-2: the same numbers from the same weights, and each reads the other's files."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyarr
from models import hugging_face
from models.gpt2 import ACTIVATIONS, GPT2, Config
from models.hugging_face import GPT2Format
from tinyarr import Generator, optim

pytestmark = pytest.mark.parity

CONFIG = Config(vocab_size=200, block_size=24, n_layer=3, n_head=4, n_embd=48)
OTHER = replace(
    CONFIG, n_hidden=50, activation="relu", norm_eps=1e-3, scale_attn_weights=False,
    scale_attn_by_inverse_layer_idx=True,
)  # fmt: skip
configs = st.builds(
    lambda n_head, head_size, **sizes: Config(n_head=n_head, n_embd=n_head * head_size, **sizes),
    n_head=st.integers(1, 4),
    head_size=st.integers(8, 20),
    vocab_size=st.integers(2, 300),
    block_size=st.integers(1, 24),
    n_layer=st.integers(1, 3),
    n_hidden=st.none() | st.integers(1, 60),
    activation=st.sampled_from(ACTIVATIONS),
    norm_eps=st.sampled_from((1e-5, 1e-2)),
    scale_attn_weights=st.booleans(),
    scale_attn_by_inverse_layer_idx=st.booleans(),
)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def oracle():
    """Imported here, as the fast tests run without transformers but collect this file."""
    from tests.recorded import make_gpt2

    return make_gpt2


def loaded(config, weights, dtype=tinyarr.float64):
    """tinyarr's model with the weights of transformers' names, given as NumPy arrays."""
    model = GPT2(config, dtype=dtype, generator=Generator(0))
    for name, t in GPT2Format.weights(model).items():
        t.assign(tinyarr.Tensor(weights[name]))
    return model


def part(record, prefix):
    return {name.removeprefix(f"{prefix}."): x for name, x in record.items() if name.startswith(f"{prefix}.")}


def relative_error(x, expected):
    """The largest difference, in units of the largest expected value."""
    return np.abs(x - expected).max() / np.abs(expected).max()


def assert_close(model, config, expected, bound):
    """Compares the parameters of two models, the second given by its weights."""
    others = dict(loaded(config, expected).named_parameters())
    for name, p in model.named_parameters():
        assert relative_error(p.numpy(), others[name].numpy()) < bound, name


@settings(max_examples=12)
@given(data=st.data(), config=configs, seed=seeds, B=st.integers(1, 3))
def test_logits_loss_gradients_and_ten_steps_of_adamw_are_those_of_transformers(oracle, data, config, seed, B):
    T = data.draw(st.integers(1, config.block_size))
    tokens = oracle.random_tokens(config, seed, B, T)
    expected = oracle.train(oracle.random_model(config, seed), tokens, steps=10)

    model = loaded(config, part(expected, "weights"))
    optimizer = optim.AdamW(model.parameter_groups(oracle.WEIGHT_DECAY), **oracle.ADAMW)
    inputs, targets = tinyarr.Tensor(tokens[:, :-1]), tinyarr.Tensor(tokens[:, 1:])
    assert relative_error(model(inputs).numpy(), expected["logits"]) < 1e-9
    for step in range(10):
        optimizer.zero_grad()
        loss = model.loss(inputs, targets)
        loss.backward()
        if step == 0:
            assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
            gradients = loaded(config, part(expected, "gradients"))
            for (name, p), (_, g) in zip(model.named_parameters(), gradients.named_parameters()):
                assert relative_error(p.grad.numpy(), g.numpy()) < 1e-9, name
        optimizer.step()
    assert_close(model, config, part(expected, "trained"), 1e-8)


def test_a_key_that_is_missing_has_the_value_that_transformers_gives_it():
    import transformers

    theirs = transformers.GPT2Config()
    assert {key.name: key.default for key in GPT2Format.keys.values()} == {
        key.name: getattr(theirs, key.name) for key in GPT2Format.keys.values()
    }


@pytest.mark.parametrize(("name", "ours"), GPT2Format.keys["activation"].kind.items())
def test_an_activation_is_the_one_that_transformers_has_under_each_of_its_names(name, ours):
    import torch
    from transformers.activations import get_activation

    from models.gpt2 import activate

    x = np.linspace(-6, 6, 1001)
    # gelu_fast has sqrt(2 / pi) with ten digits.
    np.testing.assert_allclose(
        activate(tinyarr.Tensor(x), ours).numpy(), get_activation(name)(torch.tensor(x)).numpy(), rtol=1e-9, atol=1e-11
    )


def test_float32_is_as_near_to_float64_as_transformers_is(oracle):
    """Neither's roundings are the other's, so the bound is twice the error that transformers makes itself."""
    tokens = oracle.random_tokens(CONFIG, 0, B=4, T=24)
    reference = oracle.random_model(CONFIG, 0).float().double()
    exact = oracle.train(reference, tokens, steps=1)
    theirs = oracle.train(oracle.random_model(CONFIG, 0).float(), tokens, steps=1)

    model = loaded(CONFIG, part(exact, "weights"), tinyarr.float32)
    inputs, targets = tinyarr.Tensor(tokens[:, :-1]), tinyarr.Tensor(tokens[:, 1:])
    model.loss(inputs, targets).backward()

    def flat(record):
        gradients = loaded(CONFIG, part(record, "gradients"))
        return np.concatenate([g.numpy().ravel() for g in gradients.parameters()])

    ours = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
    norm = np.linalg.norm
    assert norm(model(inputs).numpy() - exact["logits"]) < 2 * norm(theirs["logits"] - exact["logits"])
    assert norm(ours - flat(exact)) < 2 * norm(flat(theirs) - flat(exact))


@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_transformers_reads_what_tinyarr_writes(tmp_path, config):
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2(config, dtype=tinyarr.float64, generator=Generator(0))
    hugging_face.save(tmp_path, model)

    read, found = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 24))
    with torch.no_grad():
        logits = read(torch.from_numpy(tokens)).logits.numpy()
    assert relative_error(model(tinyarr.Tensor(tokens)).numpy(), logits) < 1e-9
    assert not any(found.values()), found


@pytest.mark.parametrize("config", [CONFIG, OTHER])
def test_tinyarr_reads_what_transformers_writes(oracle, tmp_path, config):
    import torch

    written = oracle.random_model(config, 0)
    written.save_pretrained(tmp_path)
    assert hugging_face.read_config(GPT2, tmp_path) == config
    model = GPT2(config, dtype=tinyarr.float64)
    hugging_face.load(tmp_path, model)

    tokens = oracle.random_tokens(CONFIG, 0, B=2, T=24)[:, :-1]
    with torch.no_grad():
        logits = written(torch.from_numpy(tokens)).logits.numpy()
    assert relative_error(model(tinyarr.Tensor(tokens)).numpy(), logits) < 1e-9
