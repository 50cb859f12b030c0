"""GPT-2: what its padding, initial values and errors promise, and a recorded training of transformers' GPT-2."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tinyarr
from models.gpt2 import GPT2, Config
from models.hugging_face import GPT2Format
from tinyarr import Device, Generator, optim, saving
from tinyarr.errors import ArgumentError, OutOfBounds

RECORDED = Path(__file__).parents[1] / "recorded/gpt2.safetensors"
MICRO = Config(vocab_size=130, block_size=8, n_layer=2, n_head=2, n_embd=16)
TOKENS = tinyarr.Tensor(np.random.default_rng(0).integers(0, 130, (3, 9)))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def gpt2(config=MICRO, seed=0, **options):
    return GPT2(config, generator=Generator(seed), **options)


def same(a, b):
    """Whether two models have the same weights."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 8), (2, 5)])
def test_logits_have_a_column_for_each_token_of_the_vocabulary(B, T):
    assert gpt2()(tinyarr.zeros((B, T), dtype=tinyarr.int64)).shape == (B, T, 130)


def test_no_position_sees_a_later_token():
    model, other = gpt2(), INPUTS.numpy()
    other[:, 5:] = (other[:, 5:] + 1) % 130
    before, after = model(INPUTS).numpy(), model(tinyarr.Tensor(other)).numpy()
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.isclose(before[:, 5:], after[:, 5:]).all(axis=-1).any()


def test_the_head_is_the_embedding_table():
    model = gpt2()
    unused = next(v for v in range(130) if v not in INPUTS.numpy())
    model(INPUTS)[..., unused].sum().backward()
    assert model.wte.weight.grad[unused].numpy().all()
    assert not any("head" in name for name, _ in model.named_parameters())


def test_the_loss_is_the_mean_cross_entropy_of_the_logits():
    model = gpt2(dtype=tinyarr.float64)
    logits = model(INPUTS).numpy()
    of_targets = np.take_along_axis(logits, TARGETS.numpy()[..., None], axis=-1)[..., 0]
    expected = np.mean(np.log(np.exp(logits).sum(axis=-1)) - of_targets)
    assert model.loss(INPUTS, TARGETS).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("size", "padded"), [(1, 128), (128, 128), (129, 256), (50257, 50304)])
def test_the_table_is_padded_to_a_multiple_of_128_rows(size, padded):
    model = gpt2(replace(MICRO, vocab_size=size), device=Device("meta"))
    assert model.wte.weight.shape == (padded, 16)
    assert GPT2Format.weights(model)["transformer.wte.weight"].shape == (size, 16)
    assert model(tinyarr.zeros((2, 3), dtype=tinyarr.int64, device="meta")).shape == (2, 3, size)


def test_what_stands_in_the_padding_changes_nothing():
    model, other = gpt2(), gpt2()
    with tinyarr.no_grad():
        other.wte.weight[130:] = 7.0
    for m in (model, other):
        m.loss(INPUTS, TARGETS).backward()
    assert np.array_equal(model(INPUTS).numpy(), other(INPUTS).numpy())
    for p, q in zip(model.parameters(), other.parameters()):
        assert np.array_equal(p.grad, q.grad)


def test_the_padding_never_moves():
    model = gpt2()
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(INPUTS, TARGETS).backward()
        assert not model.wte.weight.grad[130:].numpy().any()
        optimizer.step()
    assert not model.wte.weight.numpy()[130:].any()
    assert model.wte.weight.numpy()[:130].all()


@pytest.mark.parametrize("token", [130, 255, 256])
def test_a_token_outside_the_vocabulary_is_an_error_even_where_the_padding_has_a_row(token):
    with pytest.raises(OutOfBounds, match=f"{token}.*130"):
        gpt2()(tinyarr.Tensor([[0, token]]))


def test_weights_start_as_in_the_paper():
    for name, p in gpt2(Config(vocab_size=130, block_size=128, n_layer=8, n_head=2, n_embd=64)).named_parameters():
        values = p.numpy()[:130] if name == "wte.weight" else p.numpy()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "ln_" in name:
            assert (values == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            # Five standard errors of each estimate.
            assert abs(values.mean()) < 5 * std / values.size**0.5, name
            assert abs(values.std() / std - 1) < 5 / (2 * values.size) ** 0.5, name


def test_the_seed_alone_decides_the_initial_values():
    assert same(gpt2(), gpt2())
    assert not same(gpt2(), gpt2(seed=1))
    assert same(gpt2(), gpt2(dtype=tinyarr.float64))


def test_dropout_acts_in_training_and_on_evaluation_not_at_all():
    model = gpt2(replace(MICRO, dropout=0.5))
    assert not np.array_equal(model(INPUTS).numpy(), model(INPUTS).numpy())
    assert np.array_equal(model.eval()(INPUTS).numpy(), gpt2()(INPUTS).numpy())
    assert not np.array_equal(model.train()(INPUTS).numpy(), gpt2()(INPUTS).numpy())


def test_dropout_draws_for_the_embedding_and_for_both_branches_of_a_layer():
    generator = Generator(0)
    model = GPT2(replace(MICRO, dropout=0.5), generator=generator)
    before = generator.counter
    model(INPUTS)
    assert generator.counter - before == 1 + 2 * MICRO.n_layer
    model.eval()(INPUTS)
    assert generator.counter - before == 1 + 2 * MICRO.n_layer


def test_too_long_an_input_is_an_error():
    with pytest.raises(ValueError, match="9 tokens came, the model has 8 positions"):
        gpt2()(TOKENS)


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ArgumentError, match=r"n_head=3, n_embd=16.*the heads must divide n_embd evenly"):
        replace(MICRO, n_head=3)


@pytest.mark.parametrize("size", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_hidden"])
def test_a_size_of_0_is_an_error(size):
    with pytest.raises(ArgumentError, match=f"{size}=0.*at least 1"):
        replace(MICRO, **{size: 0})


def test_an_unknown_activation_is_an_error():
    with pytest.raises(ArgumentError, match="activation is 'gelo': use one of gelu_new, gelu, relu, silu, tanh"):
        replace(MICRO, activation="gelo")


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124M", 124_439_808), ("350M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_the_sizes_are_those_of_the_paper(size, parameters):
    model = gpt2(GPT2.sizes[size], device=Device("meta"))
    assert sum(t.size for t in GPT2Format.weights(model).values()) == parameters
    assert sum(p.size for p in model.parameters()) == parameters + (50304 - 50257) * model.config.n_embd


def test_the_flops_of_a_token_are_six_a_weight_of_the_products_and_those_of_attention():
    model = gpt2()
    weights = sum(p.size for name, p in model.named_parameters() if name != "wpe.weight")
    # A layer's products q k' and p v: 2 C multiply-adds for each of the (T + 1) / 2 positions seen; backward is twice.
    assert model.flops_per_token(8) == 6 * weights + 2 * (3 * 2 * 16 * 8)


def test_matrices_decay_and_nothing_else_does():
    matrices, others = gpt2().parameter_groups(0.1)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in matrices["parameters"]} == {2}
    assert {p.ndim for p in others["parameters"]} == {1}
    assert len(matrices["parameters"]) + len(others["parameters"]) == len(list(gpt2().parameters()))


@pytest.fixture(scope="module")
def recorded():
    """A model with the recorded weights, a way to look up what was recorded in its own layout, and the metadata."""
    tensors, metadata = saving.load(RECORDED)
    config = Config(**json.loads(metadata["config"]))

    def model_of(prefix):
        model = gpt2(config, dtype=tinyarr.float64)
        for name, t in GPT2Format.weights(model).items():
            t.assign(tensors[f"{prefix}.{name}"])
        return model

    return model_of, tensors, metadata


def relative_error(x, expected):
    """The largest difference, in units of the largest expected value."""
    x, expected = x.numpy(), expected.numpy()
    return np.abs(x - expected).max() / np.abs(expected).max()


def test_logits_loss_and_gradients_are_those_recorded_from_transformers(recorded):
    model_of, tensors, _ = recorded
    model, tokens = model_of("weights"), tensors["tokens"]
    assert relative_error(model(tokens[:, :-1]), tensors["logits"]) < 1e-9
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    assert relative_error(loss, tensors["loss"]) < 1e-9
    loss.backward()
    gradients = dict(model_of("gradients").named_parameters())
    for name, p in model.named_parameters():
        assert relative_error(p.grad, gradients[name]) < 1e-9, name


def test_ten_steps_of_adamw_give_the_weights_recorded_from_transformers(recorded):
    model_of, tensors, metadata = recorded
    model, tokens = model_of("weights"), tensors["tokens"]
    groups = model.parameter_groups(json.loads(metadata["weight_decay"]))
    optimizer = optim.AdamW(groups, **json.loads(metadata["adamw"]))
    for _ in range(10):
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    trained = dict(model_of("trained").named_parameters())
    for name, p in model.named_parameters():
        assert relative_error(p, trained[name]) < 1e-8, name
