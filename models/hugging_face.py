"""Checkpoints in Hugging Face's layout: a folder with config.json and weights in one safetensors file or in several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tinyarr
from tinyarr import Tensor, nn, saving
from tinyarr.errors import FileError

from .gpt2 import Config as GPT2Config
from .llama3 import Config as Llama3Config
from .llama3 import RotaryScaling

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # what transformers puts into one file


class GPT2Format:
    """transformers' GPT2LMHeadModel.

    A format has: keys, from the fields of our Config to those of config.json; fixed, what config.json says of every
    such model and must not contradict when read; more_keys(config) and more_fields(config.json) for what is no plain
    copy; weights(model), for each name in the files the part of the model's memory that it holds, seen in the files'
    layout, so that saving reads these views and loading writes them; own_name(name, config), the name in `weights`
    of a name in a file, or None where the model has no memory for it.
    """

    config = GPT2Config
    keys = {
        "vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer", "n_head": "n_head",
        "n_embd": "n_embd", "dropout": "resid_pdrop",
    }  # fmt: skip
    fixed = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip

    @staticmethod
    def more_keys(config: GPT2Config) -> dict[str, Any]:
        return {"embd_pdrop": config.dropout, "attn_pdrop": 0.0}

    @staticmethod
    def more_fields(given: dict[str, Any]) -> dict[str, Any]:
        return {}

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        views = {}
        for name, t in model.state_dict().items():
            if name == "wte.weight":
                t = t[: model.config.vocab_size]  # the rows below are padding
            elif ".c_" in name and name.endswith(".weight"):
                t = t.T  # transformers' Conv1D stores (in, out)
            views[f"transformer.{name}"] = t
        return views

    @staticmethod
    def own_name(name: str, config: GPT2Config) -> str | None:
        """OpenAI's files have no prefix, and hold the causal masks and the tied head."""
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return name if name.startswith("transformer.") else f"transformer.{name}"


class Llama3Format:
    """transformers' LlamaForCausalLM."""

    config = Llama3Config
    keys = {
        "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
        "n_hidden": "intermediate_size", "norm_eps": "rms_norm_eps", "tied": "tie_word_embeddings",
    }  # fmt: skip
    fixed = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    scaling_keys = {
        "factor": "factor", "low_turns": "low_freq_factor", "high_turns": "high_freq_factor",
        "original_block_size": "original_max_position_embeddings",
    }  # fmt: skip

    @classmethod
    def more_keys(cls, config: Llama3Config) -> dict[str, Any]:
        scaling = config.rotary_scaling
        kind = "default" if scaling is None else "llama3"
        more = {} if scaling is None else {key: getattr(scaling, name) for name, key in cls.scaling_keys.items()}
        rotary = {"rope_type": kind, "rope_theta": config.rotary_base, **more}
        return {"head_dim": config.head_size, "rope_theta": config.rotary_base, "rope_parameters": rotary}

    @classmethod
    def more_fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The rotary embedding, which files older than transformers 5 describe under "rope_scaling"."""
        described = given.get("rope_parameters") or given.get("rope_scaling") or {}
        rotary = {"rope_theta": given.get("rope_theta")} | described
        kind = rotary.get("rope_type", rotary.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"the rotary embedding has the type {kind!r}: 'default' and 'llama3' are known")
        scaling = None
        if kind == "llama3":
            scaling = RotaryScaling(**{name: rotary[key] for name, key in cls.scaling_keys.items()})
        if given.get("head_dim") not in (None, given["hidden_size"] // given["num_attention_heads"]):
            raise ValueError(f"head_dim is {given['head_dim']}: it must be hidden_size / num_attention_heads")
        return {"rotary_base": float(rotary["rope_theta"]), "rotary_scaling": scaling}

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        return {n if n.startswith("lm_head.") else f"model.{n}": t for n, t in model.state_dict().items()}

    @staticmethod
    def own_name(name: str, config: Llama3Config) -> str | None:
        tied_head = config.tied and name == "lm_head.weight"
        return None if tied_head or name.endswith(".rotary_emb.inv_freq") else name


FORMATS: dict[str, Any] = {"gpt2": GPT2Format, "llama3": Llama3Format}


def save(folder: Path, model: nn.Module, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json and the weights, cut into files of at most `shard_bytes` (a larger tensor gets its own)."""
    folder.mkdir(parents=True, exist_ok=True)
    format = FORMATS[model.name]
    shards = _shards(format.weights(model), shard_bytes)
    place = {}
    for i, shard in enumerate(shards):
        name = WEIGHTS if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        saving.save(folder / name, shard, {"format": "pt"})
        place |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(t.nbytes for shard in shards for t in shard.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})
    dtype = {"dtype": next(model.parameters()).dtype.name}
    keys = {key: getattr(model.config, field) for field, key in format.keys.items()}
    _write_json(folder / CONFIG, format.fixed | keys | format.more_keys(model.config) | dtype)


def _shards(tensors: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, t in tensors.items():
        if shards[-1] and size + t.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = t
        size += t.nbytes
    return shards


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_config(model_class: type, path: Path) -> Any:
    """The model's Config that the config.json in a folder, or beside a file, describes.

    Raises FileNotFoundError where there is none, FileError where it is damaged or describes a model that
    `model_class` can't be.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or file: check the path")
    path = (path if path.is_dir() else path.parent) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: it says how large the model is; else name its size")
    format = FORMATS[model_class.name]
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        for key, value in format.fixed.items():
            if given.get(key, value) != value:
                raise ValueError(f"{key} is {given[key]!r}, {model_class.__name__} has {value!r}")
        fields = {field: given[key] for field, key in format.keys.items() if key in given}
        return format.config(**fields, **format.more_fields(given))
    except KeyError as error:
        raise FileError(f"{path}: the key {error} is missing: is it the right model's?") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: {error}: give a folder that holds a {model_class.name}") from None


def load(path: Path, model: nn.Module) -> None:
    """Reads the weights of a folder, or of one safetensors file, into a model, a tensor at a time.

    Raises FileError for a damaged file, and for names or shapes that are not the model's; then nothing was written.
    """
    format = FORMATS[model.name]
    views, sources = format.weights(model), {}
    for file in _files(path):
        for name, (_, shape) in saving.contents(file).items():
            own = format.own_name(name, model.config)
            if own is not None:
                sources[own] = file, name, shape
    missing, unexpected = sorted(views.keys() - sources.keys()), sorted(sources.keys() - views.keys())
    wrong = [f"{own} has shape {shape}, the model needs {views[own].shape}"
             for own, (_, _, shape) in sources.items() if own in views and shape != views[own].shape]
    for problem, names in [("lacks", missing), ("holds unknown", unexpected), ("does not fit:", wrong)]:
        if names:
            raise FileError(f"{path}: {problem} {names[0]} ({len(names)} tensors in all): "
                            f"give the weights of a {model.name} of this configuration")
    with tinyarr.no_grad():
        for own, (file, name, _) in sources.items():
            tensors, _ = saving.load(file, [name], device=views[own].device)
            views[own].assign(tensors[name])


def _files(path: Path) -> list[Path]:
    """The safetensors files of a folder, or the one that was named."""
    if not path.is_dir():
        return [path]
    if not (path / INDEX).is_file():
        return [path / WEIGHTS]
    try:
        place = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [path / name for name in sorted(set(place.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path / INDEX}: damaged ({type(error).__name__}: {error}): copy it again") from None
