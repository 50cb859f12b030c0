"""Checkpoints in Hugging Face's layout: what is written is read back, and what does not fit is refused by name."""

import contextlib
import functools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr
from models import gpt2, hugging_face, llama3
from models.gpt2 import GPT2
from models.hugging_face import FORMATS, Llama3Format
from models.llama3 import Llama3, RotaryScaling
from tests.tiers import at_most
from tinyarr import Generator, nn, saving
from tinyarr.errors import FileError

SMALL_GPT2 = gpt2.Config(
    vocab_size=130, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.1, n_hidden=24, activation="silu",
    norm_eps=1e-3, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True,
)  # fmt: skip
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


def test_weights_are_held_one_tensor_at_a_time_while_they_are_read(tmp_path, monkeypatch):
    config = replace(SMALL_LLAMA3, n_embd=256, n_hidden=1024, n_layer=4)
    hugging_face.save(tmp_path, Llama3(config), shard_bytes=2**20)
    model = Llama3(config)
    largest = max(t.nbytes for t in model.parameters())
    device = tinyarr.Device("cpu")
    before = tinyarr.memory_stats(device).in_use
    peaks = []
    original = saving.load_each

    def watched(*args, **kwargs):
        for result in original(*args, **kwargs):
            peaks.append(tinyarr.memory_stats(device).in_use - before)
            yield result

    monkeypatch.setattr(saving, "load_each", watched)
    hugging_face.load(tmp_path, model)
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
        ({"transformer.h.1.mlp.c_fc.weight": (64, 16)}, r"c_fc.weight has shape \(64, 16\).*needs \(16, 24\)"),
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
        (GPT2, SMALL_GPT2, {"architectures": ["GPT2DoubleHeadsModel"]}, "architectures is"),
        (GPT2, SMALL_GPT2, {"activation_function": "relu6"}, "activation_function is 'relu6'.* gelu_new, gelu,"),
        (GPT2, SMALL_GPT2, {"activation_function": ["relu"]}, "activation_function is"),
        (GPT2, SMALL_GPT2, {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        (GPT2, SMALL_GPT2, {"add_cross_attention": True}, "add_cross_attention is True"),
        (GPT2, SMALL_GPT2, {"is_causal": False}, "is_causal is False"),
        (GPT2, SMALL_GPT2, {"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        (GPT2, SMALL_GPT2, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
        (GPT2, SMALL_GPT2, {"hidden_size": 32}, "hidden_size and n_embd are one and differ"),
        (Llama3, SMALL_LLAMA3, {"hidden_act": "gelu"}, "hidden_act is 'gelu', Llama3 has 'silu'"),
        (Llama3, SMALL_LLAMA3, {"attention_bias": True}, "attention_bias is True, Llama3 has False"),
        (Llama3, SMALL_LLAMA3, {"mlp_bias": True}, "mlp_bias is True"),
        (Llama3, SMALL_LLAMA3, {"sliding_window": 4096}, "sliding_window is 4096, Llama3 has None"),
        (Llama3, SMALL_LLAMA3, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        (Llama3, SMALL_LLAMA3, {"head_dim": 5}, "head_dim is 5"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"rope_type": "yarn"}}, "'yarn'.*'default' and 'llama3'"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"rope_type": "llama3"}}, "key 'factor' is missing"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"type": "linear", "factor": 2.0}}, "'linear'"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"factor": 2.0}}, "has factor, which .* 'default' lacks"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"sliding_attention": {}}}, "has sliding_attention, which"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": {"rope_type": "default", "type": "yarn"}}, "rope_type is"),
        (Llama3, SMALL_LLAMA3, {"rope_parameters": [1]}, "must be tables"),
        (Llama3, SMALL_LLAMA3, {"rope_scaling": {"rope_type": "default"}}, "equal where both are there"),
        (Llama3, SMALL_LLAMA3, {"rope_theta": 5.0}, "rope_theta is 5.0, and another one"),
        (Llama3, SMALL_LLAMA3, {"partial_rotary_factor": 0.5}, "has partial_rotary_factor, which"),
        (Llama3, SMALL_LLAMA3, {"rope_theta": 0, "rope_parameters": None}, "rotary_base=0"),
    ],
)
def test_a_configuration_that_the_model_can_not_have_is_refused(model_class, config, change, message, tmp_path):
    hugging_face.save(tmp_path, model_class(config))
    rewrite(tmp_path / "config.json", change)
    with pytest.raises(FileError, match=message):
        hugging_face.read_config(model_class, tmp_path)


def rewrite(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


UNUSABLE = [0, -1, 2.5, True, "12", [12], {}, 2**31, 10**30, 1e400, None]


@each_model
def test_a_value_of_another_type_or_size_is_an_error_that_names_the_key(model_class, config, tmp_path):
    hugging_face.save(tmp_path, model_class(config))
    path = tmp_path / "config.json"
    sound = json.loads(path.read_text())
    for key in FORMATS[model_class.name].keys.values():
        usable = 0 if key.kind is float else True if key.kind is bool else key.default
        for value in UNUSABLE:
            if value is usable:
                continue
            path.write_text(json.dumps(sound | {key.name: value}))
            with pytest.raises(FileError, match=rf"config\.json: {key.name} is .*: it must be"):
                hugging_face.read_config(model_class, tmp_path)


@each_model
@at_most(40)
@given(data=st.data())
def test_any_value_anywhere_in_the_configuration_is_read_or_is_one_error(model_class, config, data, folders):
    folder, sound = folders(model_class, config)
    given = json.loads(sound)
    for _ in range(data.draw(st.integers(1, 2))):
        inner = given.get("rope_parameters")
        table = data.draw(st.sampled_from([given, inner])) if isinstance(inner, dict) and inner else given
        table[data.draw(st.sampled_from(sorted(table)))] = data.draw(values)
    (folder / "config.json").write_text(json.dumps(given))
    with contextlib.suppress(FileError):
        model_class(hugging_face.read_config(model_class, folder))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a saved model and its config.json, which examples overwrite."""

    @functools.cache
    def folder_of(model_class, config):
        folder = tmp_path_factory.mktemp("model")
        hugging_face.save(folder, model_class(config))
        return folder, (folder / "config.json").read_text()

    return folder_of


@each_model
def test_a_configuration_of_other_weights_is_an_error_before_memory_is_taken(model_class, config, tmp_path):
    hugging_face.save(tmp_path, model_class(config))
    path = tmp_path / "config.json"
    sound = json.loads(path.read_text())
    keys = FORMATS[model_class.name].keys
    for field in ("vocab_size", "n_embd", "n_layer", "n_hidden"):
        # 64 TiB and more, or a model that is never made.
        path.write_text(json.dumps(sound | {keys[field].name: 2**30, "head_dim": None}))
        with pytest.raises(FileError, match=re.escape(str(tmp_path))):
            hugging_face.read_config(model_class, tmp_path)


def test_a_configuration_is_read_without_weights_too(tmp_path):
    hugging_face.save(tmp_path, GPT2(SMALL_GPT2))
    (tmp_path / "model.safetensors").unlink()
    assert hugging_face.read_config(GPT2, tmp_path) == SMALL_GPT2


def test_a_missing_key_has_the_value_that_transformers_gives_it(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert hugging_face.read_config(GPT2, tmp_path) == gpt2.Config(dropout=0.1)
    assert hugging_face.read_config(Llama3, tmp_path) == llama3.Config(
        32000, 2048, 32, 32, 32, 4096, 11008, rotary_base=10000.0, norm_eps=1e-6
    )


def test_the_other_names_of_gpt2_s_keys_are_read(tmp_path):
    hugging_face.save(tmp_path, GPT2(SMALL_GPT2))
    path = tmp_path / "config.json"
    given = json.loads(path.read_text())
    for alias, key in FORMATS["gpt2"].aliases.items():
        given[alias] = given.pop(key)
    path.write_text(json.dumps(given))
    assert hugging_face.read_config(GPT2, tmp_path) == SMALL_GPT2


@pytest.mark.parametrize(("name", "same"), [("gelu_fast", "gelu_new"), ("gelu_python", "gelu"), ("swish", "silu")])
def test_an_activation_is_read_under_each_of_its_names(name, same, tmp_path):
    hugging_face.save(tmp_path, GPT2(SMALL_GPT2))
    rewrite(tmp_path / "config.json", {"activation_function": name})
    assert hugging_face.read_config(GPT2, tmp_path).activation == same


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "config.json: damaged"),
        ("config.json", "[" * 100_000, "config.json: damaged"),
        ("config.json", '{"n_layer": ' + 5000 * "1" + "}", "config.json: damaged"),
        ("config.json", "\ufeff{}", "config.json: damaged"),
        ("model.safetensors.index.json", "[" * 100_000, "index.json: damaged"),
        ("model.safetensors.index.json", "{}", "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": {}}', "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "index.json: damaged .3 is no file's name"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ""}}', "index.json: damaged .'' is no file's name"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ".."}}', "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}', "'../x' is no file's name"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/x"}}', "index.json: damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x\\u0000"}}', "index.json: damaged"),
    ],
)
def test_a_damaged_file_is_named(file, text, message, tmp_path):
    model = GPT2(SMALL_GPT2)
    hugging_face.save(tmp_path, model, shard_bytes=3000)
    (tmp_path / file).write_text(text)
    with pytest.raises(FileError, match=message):
        hugging_face.read_config(GPT2, tmp_path)
    if file != "config.json":
        with pytest.raises(FileError, match=message):
            hugging_face.load(tmp_path, model)


def sharded(tmp_path):
    """A saved model, its index, and the names of its first and last shard."""
    model = GPT2(SMALL_GPT2, generator=Generator(0))
    hugging_face.save(tmp_path, model, shard_bytes=3000)
    place = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    return model, place, min(place.values()), max(place.values())


def test_of_two_tensors_of_one_name_the_index_says_which_counts(tmp_path):
    model, place, first, last = sharded(tmp_path)
    for file, other in [(first, last), (last, first)]:
        name = next(n for n in place if place[n] == file)
        tensors, _ = saving.load(tmp_path / other)
        saving.save(tmp_path / other, tensors | {name: tinyarr.zeros((3,))})
    loaded = GPT2(hugging_face.read_config(GPT2, tmp_path), generator=Generator(1))
    hugging_face.load(tmp_path, loaded)
    assert same(model, loaded)


def test_what_the_index_and_the_files_do_not_both_name_is_an_error(tmp_path):
    model, place, first, last = sharded(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    name = next(n for n in place if place[n] == last)
    rewrite(path, {"weight_map": {n: file for n, file in place.items() if n != name}})
    with pytest.raises(FileError, match=f"index.json: {name} in {last} is not listed"):
        hugging_face.load(tmp_path, model)
    rewrite(path, {"weight_map": place | {name: first}})
    with pytest.raises(FileError, match=f"index.json: {name} is not in {first}"):
        hugging_face.load(tmp_path, model)
    rewrite(path, {"weight_map": place | {name: "missing.safetensors"}})
    with pytest.raises(FileNotFoundError, match="missing"):
        hugging_face.load(tmp_path, model)


@pytest.mark.parametrize("shard_bytes", [(10**9, 3000), (3000, 10**9)])
def test_what_a_folder_held_before_in_the_other_form_is_not_read(shard_bytes, tmp_path):
    models = [GPT2(SMALL_GPT2, generator=Generator(seed)) for seed in (0, 1, 2)]
    for model, most in zip(models, shard_bytes):
        hugging_face.save(tmp_path, model, shard_bytes=most)
    hugging_face.load(tmp_path, models[2])
    assert same(models[1], models[2])


@each_model
def test_weights_that_are_whole_numbers_are_refused(model_class, config, tmp_path):
    model = model_class(config)
    state = weights(model)
    name = next(n for n, t in state.items() if t.ndim == 1)
    saving.save(tmp_path / "w", state | {name: state[name].astype(tinyarr.int8)})
    with pytest.raises(FileError, match=f"{name} has dtype int8, the model needs a floating one"):
        hugging_face.load(tmp_path / "w", model)


TIED = [MODELS[0], MODELS[2]]


@pytest.mark.parametrize(("model_class", "config"), TIED)
def test_another_head_beside_a_tied_embedding_is_an_error_and_changes_nothing(model_class, config, tmp_path):
    model = model_class(config, generator=Generator(0))
    state = weights(model_class(config, generator=Generator(1)))
    table = state[FORMATS[model.name].table]
    for head in (table + 1, table[1:], table[:, :1]):
        saving.save(tmp_path / "w", state | {"lm_head.weight": head})
        with pytest.raises(FileError, match=r"lm_head\.weight differs from .*weight, which is the head"):
            hugging_face.load(tmp_path / "w", model)
    assert same(model, model_class(config, generator=Generator(0)))


@pytest.mark.parametrize(("model_class", "config"), TIED)
def test_a_tied_embedding_may_be_saved_as_the_head_alone(model_class, config, tmp_path):
    model, loaded = (model_class(config, generator=Generator(seed)) for seed in (0, 1))
    state = weights(model)
    state["lm_head.weight"] = state.pop(FORMATS[model.name].table)
    saving.save(tmp_path / "w", state)
    hugging_face.load(tmp_path / "w", loaded)
    assert same(model, loaded)


def test_one_tensor_under_two_names_is_an_error(tmp_path):
    model = GPT2(SMALL_GPT2)
    saving.save(tmp_path / "w", weights(model) | {"ln_f.bias": tinyarr.ones((16,))})
    with pytest.raises(FileError, match=r"transformer\.ln_f\.bias and ln_f\.bias are one|ln_f\.bias and transformer"):
        hugging_face.load(tmp_path / "w", model)


def test_the_rotary_embedding_is_read_from_files_of_all_ages():
    old = {"rope_theta": 5e5}
    assert Llama3Format.rotary_fields({}) == {"rotary_base": 1e4, "rotary_scaling": None}
    assert Llama3Format.rotary_fields(old) == {"rotary_base": 5e5, "rotary_scaling": None}
    kinds = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    expected = {"rotary_base": 5e5, "rotary_scaling": RotaryScaling(8.0, 1.0, 4.0, 8192)}
    assert Llama3Format.rotary_fields(old | {"rope_scaling": kinds | {"rope_type": "llama3"}}) == expected
    assert Llama3Format.rotary_fields(old | {"rope_scaling": kinds | {"type": "llama3"}}) == expected
    new = {"rope_parameters": kinds | {"rope_type": "llama3", "rope_theta": 5e5}}
    assert Llama3Format.rotary_fields(new) == expected
