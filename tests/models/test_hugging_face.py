"""Checkpoints in Hugging Face's layout: what is written is read back, and what does not fit is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest

import tinyarr
from models import gpt2, hugging_face, llama3
from models.gpt2 import GPT2
from models.hugging_face import FORMATS, Llama3Format
from models.llama3 import Llama3, RotaryScaling
from tinyarr import Generator, nn, saving
from tinyarr.errors import FileError

SMALL_GPT2 = gpt2.Config(vocab_size=130, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
SMALL_LLAMA3 = llama3.Config(
    vocab_size=130, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_hidden=24, rotary_base=1000.0,
    rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32),
)  # fmt: skip
MODELS = [(GPT2, SMALL_GPT2), (Llama3, SMALL_LLAMA3), (Llama3, replace(SMALL_LLAMA3, tied=True, rotary_scaling=None))]
each_model = pytest.mark.parametrize(("model_class", "config"), MODELS)


def weights(model):
    return FORMATS[model.name].weights(model)


def same(a, b):
    """Whether two models have the same weights."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@each_model
@pytest.mark.parametrize("shard_bytes", [10**9, 3000, 1])
def test_a_model_survives_its_folder_in_one_file_or_in_many(model_class, config, shard_bytes, tmp_path):
    model, loaded = (model_class(config, generator=Generator(seed)) for seed in (0, 1))
    hugging_face.save(tmp_path, model, shard_bytes=shard_bytes)
    assert hugging_face.read_config(model_class, tmp_path) == config
    hugging_face.load(tmp_path, loaded)
    assert same(model, loaded)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == (1 if shard_bytes == 10**9 else len(weights(model)) if shard_bytes == 1 else len(sizes))


@each_model
def test_weights_are_read_into_a_model_whose_initial_values_were_skipped(model_class, config, tmp_path):
    model = model_class(config, generator=Generator(0))
    hugging_face.save(tmp_path, model)
    with nn.init.skipped():
        loaded = model_class(config)
    assert not same(model, loaded)
    hugging_face.load(tmp_path, loaded)
    assert same(model, loaded)


def test_weights_are_held_one_tensor_at_a_time_while_they_are_read(tmp_path):
    config = replace(SMALL_LLAMA3, n_embd=256, n_hidden=1024, n_layer=4)
    hugging_face.save(tmp_path, Llama3(config), shard_bytes=2**20)
    model = Llama3(config)
    largest = max(t.nbytes for t in model.parameters())
    device = tinyarr.Device("cpu")
    before = tinyarr.memory_stats(device).in_use
    peaks = []
    original = saving.load

    def watched(*args, **kwargs):
        result = original(*args, **kwargs)
        peaks.append(tinyarr.memory_stats(device).in_use - before)
        return result

    saving.load = watched
    try:
        hugging_face.load(tmp_path, model)
    finally:
        saving.load = original
    assert 0 < max(peaks) <= 2 * largest


def test_files_of_the_bare_gpt2_and_of_old_versions_are_read(tmp_path):
    model, loaded = (GPT2(SMALL_GPT2, generator=Generator(seed)) for seed in (0, 1))
    state = {name.removeprefix("transformer."): t for name, t in weights(model).items()}
    state |= {"lm_head.weight": state["wte.weight"], "h.0.attn.bias": tinyarr.ones((1, 1, 8, 8))}
    saving.save(tmp_path / "w", state | {"h.0.attn.masked_bias": tinyarr.Tensor(-1e4)})
    hugging_face.load(tmp_path / "w", loaded)
    assert same(model, loaded)


def test_the_head_in_the_file_of_a_tied_llama_is_left_alone(tmp_path):
    model, loaded = (Llama3(replace(SMALL_LLAMA3, tied=True), generator=Generator(seed)) for seed in (0, 1))
    state = weights(model)
    saving.save(tmp_path / "w", state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    hugging_face.load(tmp_path / "w", loaded)
    assert same(model, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.wte.weight": (131, 16)}, r"wte.weight has shape \(131, 16\).*needs \(130, 16\)"),
        ({"transformer.wte.weight": (256, 16)}, r"wte.weight has shape \(256, 16\).*needs \(130, 16\)"),
        ({"transformer.h.1.mlp.c_fc.weight": (64, 16)}, r"c_fc.weight has shape \(64, 16\).*needs \(16, 64\)"),
        ({"transformer.ln_f.bias": None}, "lacks transformer.ln_f.bias"),
        ({"transformer.wte.weight": None, "transformer.ln_f.bias": None}, "lacks .*2 tensors"),
        ({"transformer.h.2.ln_1.bias": (16,)}, "holds unknown transformer.h.2.ln_1.bias"),
    ],
)
def test_weights_of_another_model_are_an_error_and_change_nothing(change, message, tmp_path):
    model = GPT2(SMALL_GPT2, generator=Generator(0))
    state = weights(GPT2(SMALL_GPT2, generator=Generator(1)))
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = tinyarr.ones(shape)
    saving.save(tmp_path / "w", state)
    with pytest.raises(FileError, match=message):
        hugging_face.load(tmp_path / "w", model)
    assert same(model, GPT2(SMALL_GPT2, generator=Generator(0)))


@pytest.mark.parametrize(
    ("model_class", "config", "change", "message"),
    [
        (GPT2, SMALL_GPT2, {"model_type": "llama"}, "model_type is 'llama', GPT2 has 'gpt2'"),
        (GPT2, SMALL_GPT2, {"activation_function": "relu"}, "activation_function is 'relu', GPT2 has 'gelu_new'"),
        (Llama3, SMALL_LLAMA3, {"attention_bias": True}, "attention_bias is True, Llama3 has False"),
        (Llama3, SMALL_LLAMA3, {"head_dim": 5}, "head_dim is 5"),
        (Llama3, SMALL_LLAMA3, {"hidden_size": None}, "hidden_size"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"rope_type": "yarn"}}, "'yarn'.*'default' and 'llama3'"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"rope_type": "llama3"}}, "key 'factor' is missing"),
    ],
)
def test_a_configuration_that_the_model_can_not_have_is_refused(model_class, config, change, message, tmp_path):
    hugging_face.save(tmp_path, model_class(config))
    path = tmp_path / "config.json"
    given = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in given.items() if value is not None}))
    with pytest.raises(FileError, match=message):
        hugging_face.read_config(model_class, tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "config.json"),
        ("model.safetensors.index.json", "{}", "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "index.json: damaged"),
    ],
)
def test_a_damaged_file_is_named(file, text, message, tmp_path):
    model = GPT2(SMALL_GPT2)
    hugging_face.save(tmp_path, model, shard_bytes=3000)
    (tmp_path / file).write_text(text)
    with pytest.raises(FileError, match=message):
        hugging_face.read_config(GPT2, tmp_path)
        hugging_face.load(tmp_path, model)


def test_the_rotary_embedding_is_read_from_files_of_all_ages():
    old = {"rope_theta": 5e5, "hidden_size": 64, "num_attention_heads": 4}
    assert Llama3Format.more_fields(old) == {"rotary_base": 5e5, "rotary_scaling": None}
    kinds = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    expected = {"rotary_base": 5e5, "rotary_scaling": RotaryScaling(8.0, 1.0, 4.0, 8192)}
    assert Llama3Format.more_fields(old | {"rope_scaling": kinds | {"rope_type": "llama3"}}) == expected
    new = {"rope_parameters": kinds | {"rope_type": "llama3", "rope_theta": 5e5}}
    assert Llama3Format.more_fields({"hidden_size": 64, "num_attention_heads": 4} | new) == expected
