"""Llama 3: its sizes, its rotary embedding, its cache, and what it refuses; transformers is compared elsewhere."""

import math
from dataclasses import replace

import numpy as np
import pytest

import tinyarr
from models.command import main
from models.generate import new_tokens
from models.llama3 import Config, Llama3, RotaryScaling, rotary_frequencies
from models.options import GenerateOptions
from tinyarr import Device, Generator, optim
from tinyarr.errors import ArgumentError

MICRO = Config(
    vocab_size=257, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48, rotary_base=100.0
)  # fmt: skip
TOKENS = tinyarr.Tensor(np.random.default_rng(0).integers(0, 257, (3, 9)))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def llama(config=MICRO, seed=0, **options):
    return Llama3(config, generator=Generator(seed), **options)


@pytest.mark.parametrize("tied", [False, True])
def test_no_position_sees_a_later_token(tied):
    model, other = llama(replace(MICRO, tied=tied)), INPUTS.numpy()
    other[:, 5:] = (other[:, 5:] + 1) % 257
    before, after = model(INPUTS).numpy(), model(tinyarr.Tensor(other)).numpy()
    assert before.shape == (3, 8, 257)
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.isclose(before[:, 5:], after[:, 5:]).all(axis=-1).any()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("1B", 1_235_814_400), ("3B", 3_212_749_824), ("8B", 8_030_261_248), ("70B", 70_553_706_496),
     ("405B", 405_853_388_800)],
)  # fmt: skip
def test_the_sizes_are_those_of_meta(size, parameters):
    model = llama(Llama3.sizes[size], device=Device("meta"))
    assert sum(p.size for p in model.parameters()) == parameters
    assert model(tinyarr.zeros((1, 2), dtype=tinyarr.int64, device="meta")).shape == (1, 2, 128256)


def frequencies(scaling):
    config = replace(MICRO, n_embd=256, rotary_base=500000.0, rotary_scaling=scaling)
    return rotary_frequencies(config, dtype=tinyarr.float64, device="cpu").numpy()


def test_rotary_frequencies_fall_geometrically_and_the_slow_ones_are_stretched():
    plain = frequencies(None)
    np.testing.assert_allclose(plain, 500000.0 ** (-np.arange(32) / 32), rtol=1e-12)
    scaled = frequencies(RotaryScaling(8.0, 1.0, 4.0, 8192))
    turns = 8192 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4], rtol=1e-12)
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-12)
    between = (turns > 1) & (turns < 4)
    assert between.any() and np.all(scaled[between] < plain[between]) and np.all(scaled[between] > plain[between] / 8)


def test_attention_sees_how_far_apart_two_positions_are_and_not_where_they_stand():
    rng = np.random.default_rng(0)
    q, k = (tinyarr.Tensor(rng.normal(size=(1, 8))) for _ in range(2))
    f = frequencies(None)[:4]

    def turned(x, position):
        return tinyarr.rotary_embedding(x, *(tinyarr.Tensor(g(position * f)[None]) for g in (np.cos, np.sin)))

    def product(p, s):
        return (turned(q, p) * turned(k, s)).sum().item()

    assert product(3, 1) == pytest.approx(product(13, 11), rel=1e-12)
    assert product(3, 1) != pytest.approx(product(4, 1), rel=1e-3)


def test_pairs_of_channels_are_halves_apart_as_in_hugging_faces_files():
    x = tinyarr.Tensor([[1.0, 0.0, 0.0, 0.0]])
    cos, sin = tinyarr.Tensor([[0.0, 1.0]]), tinyarr.Tensor([[1.0, 0.0]])  # the first pair by a quarter turn
    assert tinyarr.rotary_embedding(x, cos, sin).tolist() == [[0.0, 0.0, 1.0, 0.0]]


class Uncached:
    """A model that reads everything again for each token."""

    def __init__(self, model):
        self.model, self.config, self.read = model, model.config, []

    def new_cache(self, B, capacity):
        return self.model.new_cache(B, capacity)

    def __call__(self, tokens, cache=None):
        if cache is None:
            return self.model(tokens)
        self.read += tokens.tolist()[0]
        cache.advance(tokens.shape[1])
        return self.model(tinyarr.Tensor([self.read]))


@pytest.mark.parametrize("tied", [False, True])
def test_a_cache_changes_no_token_also_past_the_longest_context(tied):
    model = llama(replace(MICRO, tied=tied), dtype=tinyarr.float64)
    for p in model.parameters():
        with tinyarr.no_grad():
            p.assign(p + 0.3 * tinyarr.randn(*p.shape, generator=Generator(p.size), dtype=tinyarr.float64))
    options = GenerateOptions(tokens=50, temperature=0)
    written = list(new_tokens(model, [1, 2, 3], options))
    assert written == list(new_tokens(Uncached(model), [1, 2, 3], options))
    assert len(set(written)) > 10


def test_a_cache_may_be_filled_in_pieces():
    model = llama(dtype=tinyarr.float64)
    cache = model.new_cache(3, 8)
    with tinyarr.no_grad():
        pieces = [model(INPUTS[:, a:b], cache).numpy() for a, b in ((0, 3), (3, 7), (7, 8))]
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), model(INPUTS).numpy(), rtol=1e-10, atol=1e-12)


def test_training_lowers_the_loss():
    model = llama()
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(INPUTS, TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(257), abs=0.2) and losses[-1] < losses[0] - 1


def test_what_the_model_can_not_be_is_refused():
    with pytest.raises(ValueError, match="33 tokens came, the model has 32 positions"):
        llama()(tinyarr.zeros((1, 33), dtype=tinyarr.int64))
    with pytest.raises(ArgumentError, match=r"n_head=4, n_kv_head=3.*n_head a multiple of n_kv_head"):
        replace(MICRO, n_kv_head=3)
    for size in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden"):
        with pytest.raises(ArgumentError, match=f"{size}=0.*at least 1"):
            replace(MICRO, **{size: 0})
    with pytest.raises(ArgumentError, match="low_turns less than high_turns"):
        RotaryScaling(8.0, 4.0, 4.0)


class Micro(Llama3):
    sizes = {"tiny": MICRO}


def test_it_trains_and_writes_by_the_same_commands_as_gpt2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(f"Sentence {n} is about {n * n}." for n in range(400))
    (tmp_path / "a.txt").write_text(text)
    options = "--text a.txt --steps 3 --seq-len 16 --batch-size 2 --eval-every 2 --eval-tokens 100"
    main(Micro, f"train {options} --out run".split())
    assert "validation loss" in capsys.readouterr().out
    main(Micro, "generate --run run --tokens 5".split())
    main(Micro, "generate --weights run/hugging_face --tokenizer bytes --tokens 5 --temperature 0".split())
    assert (tmp_path / "run" / "hugging_face" / "config.json").exists()
