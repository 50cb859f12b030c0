"""GPT-2 and Llama as transformers' files have them: config.json beside our Config, names beside weights. Floor 5."""

from __future__ import annotations

import reprlib
from typing import Any, NamedTuple

from tinyarr import Tensor, nn

from .gpt2 import ACTIVATIONS
from .gpt2 import Config as GPT2Config
from .llama3 import Config as Llama3Config
from .llama3 import RotaryScaling

HEAD = "lm_head.weight"
REQUIRED = object()  # as the default of a key


class Key(NamedTuple):
    """A key of config.json: its type, and what transformers takes where it is missing.

    kind: int for a size, float for a number from 0 to `most`, bool, or a dict that says what each string means.
    """

    name: str
    kind: Any
    default: Any
    most: float = 1.0

    def read(self, given: dict[str, Any]) -> Any:
        """The value that config.json gives. Raises ValueError for another type, and for a size that no model has."""
        value = given.get(self.name, self.default)
        if value is REQUIRED:
            raise ValueError(f"the key {self.name!r} is missing")
        if value is None and self.default is None:
            return None
        if isinstance(self.kind, dict):
            if type(value) is str and value in self.kind:
                return self.kind[value]
            needed = f"one of {', '.join(self.kind)}"
        elif self.kind is bool:
            if type(value) is bool:
                return value
            needed = "true or false"
        elif self.kind is int:
            if type(value) is int and 1 <= value < 2**31:
                return value
            needed = "a whole number from 1 to 2147483647"
        else:
            if type(value) in (int, float) and 0 <= value <= self.most:
                return float(value)
            needed = f"a number from 0 to {self.most:g}"
        raise ValueError(f"{self.name} is {reprlib.repr(value)}: it must be {needed}")


def config_of(format: Any, given: dict[str, Any]) -> Any:
    """Our Config of what a config.json describes. Raises ValueError for another model than the format's can be."""
    for alias, key in format.aliases.items():
        if alias in given and given.setdefault(key, given[alias]) != given[alias]:
            raise ValueError(f"{alias} and {key} are one and differ")
    for key, values in format.allowed.items():
        if key in given and given[key] not in values:
            raise ValueError(f"{key} is {reprlib.repr(given[key])}, {format.name} has {values[0]!r}")
    fields = {field: key.read(given) for field, key in format.keys.items()}
    return format.config(**fields | format.more_fields(given, fields))


class GPT2Format:
    """transformers' GPT2LMHeadModel.

    A format has: keys, from the fields of our Config to those of config.json; fixed, what config.json says of every
    such model; allowed, which values of a key describe a model that ours can be, without the keys that change nothing
    or training alone; more_keys(config) and more_fields(config.json, fields) for what is no plain copy; weights(model),
    for each name in the files the part of the model's memory that it holds, seen in the files' layout, so that saving
    reads these views and loading writes them; table, the name of the embedding, which may be the head too;
    own_name(name), the name in `weights` of a name in a file, or None for what follows from config.json.
    """

    name = "GPT2"
    config = GPT2Config
    keys = {
        "vocab_size": Key("vocab_size", int, 50257), "block_size": Key("n_positions", int, 1024),
        "n_layer": Key("n_layer", int, 12), "n_head": Key("n_head", int, 12), "n_embd": Key("n_embd", int, 768),
        "n_hidden": Key("n_inner", int, None), "dropout": Key("resid_pdrop", float, 0.1),
        "norm_eps": Key("layer_norm_epsilon", float, 1e-5),
        "activation": Key("activation_function", {
            **{name: name for name in ACTIVATIONS}, "gelu_python": "gelu", "swish": "silu", "gelu_fast": "gelu_new",
            "gelu_accurate": "gelu_new", "gelu_python_tanh": "gelu_new", "gelu_pytorch_tanh": "gelu_new",
        }, "gelu_new"),
        "scale_attn_weights": Key("scale_attn_weights", bool, True),
        "scale_attn_by_inverse_layer_idx": Key("scale_attn_by_inverse_layer_idx", bool, False),
    }  # fmt: skip
    fixed = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "tie_word_embeddings": True}
    allowed = {
        "architectures": (["GPT2LMHeadModel"], ["GPT2Model"], None), "model_type": ("gpt2",),
        "tie_word_embeddings": (True,), "add_cross_attention": (False, None), "is_causal": (True,),
        "pruned_heads": ({}, None), "quantization_config": (None,),
    }  # fmt: skip
    # transformers reads these too.
    aliases = {
        "max_position_embeddings": "n_positions", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
    }  # fmt: skip
    table = "transformer.wte.weight"

    @staticmethod
    def more_keys(config: GPT2Config) -> dict[str, Any]:
        return {"embd_pdrop": config.dropout, "attn_pdrop": 0.0}

    @staticmethod
    def more_fields(given: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
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
    def own_name(name: str) -> str | None:
        """OpenAI's files have no prefix, and hold the causal masks."""
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return name if name == HEAD or name.startswith("transformer.") else f"transformer.{name}"


class Llama3Format:
    """transformers' LlamaForCausalLM."""

    name = "Llama3"
    config = Llama3Config
    keys = {
        "vocab_size": Key("vocab_size", int, 32000), "block_size": Key("max_position_embeddings", int, 2048),
        "n_layer": Key("num_hidden_layers", int, 32), "n_head": Key("num_attention_heads", int, 32),
        "n_kv_head": Key("num_key_value_heads", int, None), "n_embd": Key("hidden_size", int, 4096),
        "n_hidden": Key("intermediate_size", int, 11008), "norm_eps": Key("rms_norm_eps", float, 1e-6),
        "tied": Key("tie_word_embeddings", bool, False),
    }  # fmt: skip
    fixed = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    allowed = {
        "architectures": (["LlamaForCausalLM"], None), "model_type": ("llama",), "hidden_act": ("silu", "swish"),
        "attention_bias": (False, None), "mlp_bias": (False, None), "is_causal": (True,), "sliding_window": (None,),
        "use_sliding_window": (False, None), "layer_types": (None,), "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,), "quantization_config": (None,),
    }  # fmt: skip
    aliases: dict[str, str] = {}
    table = "model.embed_tokens.weight"
    base = Key("rope_theta", float, 10000.0, 1e30)
    scaling = {
        "factor": Key("factor", float, REQUIRED, 1e9), "low_turns": Key("low_freq_factor", float, REQUIRED, 1e9),
        "high_turns": Key("high_freq_factor", float, REQUIRED, 1e9),
        "original_block_size": Key("original_max_position_embeddings", int, REQUIRED),
    }  # fmt: skip

    @classmethod
    def more_keys(cls, config: Llama3Config) -> dict[str, Any]:
        scaling = config.rotary_scaling
        kind = "default" if scaling is None else "llama3"
        more = {} if scaling is None else {key.name: getattr(scaling, name) for name, key in cls.scaling.items()}
        rotary = {"rope_type": kind, "rope_theta": config.rotary_base, **more}
        return {"head_dim": config.head_size, "rope_theta": config.rotary_base, "rope_parameters": rotary}

    @classmethod
    def more_fields(cls, given: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        head_size = fields["n_embd"] // fields["n_head"]
        if given.get("head_dim") not in (None, head_size):
            raise ValueError(f"head_dim is {reprlib.repr(given['head_dim'])}: it must be hidden_size / "
                             f"num_attention_heads, {head_size}")
        return {"n_kv_head": fields["n_kv_head"] or fields["n_head"], **cls.rotary_fields(given)}

    @classmethod
    def rotary_fields(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The rotary embedding, which files older than transformers 5 describe under "rope_scaling"."""
        tables = [given[key] for key in ("rope_scaling", "rope_parameters") if given.get(key)] or [{}]
        if not isinstance(tables[0], dict) or tables[0] != tables[-1]:
            raise ValueError("rope_scaling and rope_parameters must be tables, and equal where both are there")
        rotary = dict(tables[0])
        kind = rotary.setdefault("rope_type", rotary.get("type", "default"))
        if kind not in ("default", "llama3") or rotary.pop("type", kind) != kind:
            raise ValueError(f"the rope_type is {reprlib.repr(kind)}: 'default' and 'llama3' are known")
        scaling = cls.scaling if kind == "llama3" else {}
        known = {cls.base.name, "partial_rotary_factor", *(key.name for key in scaling.values())}
        for key in sorted(known & given.keys()):
            if rotary.setdefault(key, given[key]) != given[key]:
                raise ValueError(f"{key} is {reprlib.repr(given[key])}, and another one for the rotary embedding")
        unknown = sorted(rotary.keys() - known - {"rope_type"})
        if unknown or rotary.get("partial_rotary_factor") not in (None, 1):
            raise ValueError(f"the rotary embedding has {unknown[0] if unknown else 'partial_rotary_factor'}, "
                             f"which tinyarr's of type {kind!r} lacks")
        more = {field: key.read(rotary) for field, key in scaling.items()}
        return {"rotary_base": cls.base.read(rotary), "rotary_scaling": RotaryScaling(**more) if scaling else None}

    @staticmethod
    def weights(model: nn.Module) -> dict[str, Tensor]:
        return {n if n == HEAD else f"model.{n}": t for n, t in model.state_dict().items()}

    @staticmethod
    def own_name(name: str) -> str | None:
        return None if name.endswith(".rotary_emb.inv_freq") else name
