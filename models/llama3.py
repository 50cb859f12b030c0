"""Llama 3 (Llama team 2024, "The Llama 3 herd of models"). Floor 5.

Shapes: B batch, T time, C channels, H query heads, G key and value heads, D head size, V vocabulary. Attributes are
named as in Hugging Face's files, so a checkpoint's names are the model's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tinyarr
from tinyarr import Generator, Tensor, nn
from tinyarr.errors import ArgumentError

from .cache import KVCache


@dataclass(frozen=True)
class RotaryScaling:
    """Llama 3.1's stretch of the rotary embedding over a context `factor` times as long as the original one.

    A pair of channels that turns less than `low_turns` times within the original context is slowed down by `factor`;
    one that turns more than `high_turns` times stays; those between are blended. Raises ArgumentError where these
    limits are not in order.
    """

    factor: float
    low_turns: float = 1.0
    high_turns: float = 4.0
    original_block_size: int = 8192

    def __post_init__(self):
        if self.factor <= 0 or self.original_block_size < 1 or not 0 <= self.low_turns < self.high_turns:
            raise ArgumentError(f"Llama3: {self}: factor and original_block_size must be positive, "
                                "low_turns less than high_turns")


@dataclass(frozen=True)
class Config:
    """The sizes of a model. Raises ArgumentError where they don't go together."""

    vocab_size: int = 128256
    block_size: int = 131072
    n_layer: int = 32
    n_head: int = 32
    n_kv_head: int = 8
    n_embd: int = 4096
    n_hidden: int = 14336  # channels inside the MLP
    rotary_base: float = 500000.0
    rotary_scaling: RotaryScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False  # whether the head is the embedding table

    def __post_init__(self):
        sizes = self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_kv_head, self.n_embd, self.n_hidden
        if min(sizes) < 1 or self.n_embd % (2 * self.n_head) or self.n_head % self.n_kv_head or self.rotary_base <= 0:
            raise ArgumentError(f"Llama3: {self}: sizes must be at least 1, n_embd an even multiple of n_head, "
                                "and n_head a multiple of n_kv_head")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


def rotary_frequencies(config: Config, *, dtype, device) -> Tensor:
    """Radians that each of a head's D/2 pairs of channels turns from one position to the next: (D/2,).

    Source: Su et al. 2021, "RoFormer", section 3.2.2; the scaling as in Meta's release of Llama 3.1.
    """
    D = config.head_size
    frequencies = config.rotary_base ** (-tinyarr.arange(0, D, 2, dtype=dtype, device=device) / D)
    scaling = config.rotary_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_block_size * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns)).clip(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class Attention(nn.Module):
    """Causal self-attention in which H / G query heads share each key and value head (Ainslie et al. 2023)."""

    def __init__(self, config: Config, layer: int, *, std: float, residual_std: float, **place):
        self.layer = layer
        self.head_size = D = config.head_size
        self.q_proj = nn.Linear(config.n_embd, config.n_head * D, bias=False, std=std, **place)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=False, std=std, **place)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * D, bias=False, std=std, **place)
        self.o_proj = nn.Linear(config.n_head * D, config.n_embd, bias=False, std=residual_std, **place)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q = tinyarr.rotary_embedding(self._heads(self.q_proj(x)), cos, sin)  # (B, H, T, D)
        k = tinyarr.rotary_embedding(self._heads(self.k_proj(x)), cos, sin)  # (B, G, T, D)
        v = self._heads(self.v_proj(x))  # (B, G, T, D)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = tinyarr.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # (B, H, T, D)
        return self.o_proj(y.permute_dims((0, 2, 1, 3)).reshape((B, T, -1)))

    def _heads(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        return x.reshape((B, T, -1, self.head_size)).permute_dims((0, 2, 1, 3))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, "GLU variants improve Transformer", eq. 6)."""

    def __init__(self, config: Config, *, std: float, residual_std: float, **place):
        self.gate_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False, std=std, **place)
        self.up_proj = nn.Linear(config.n_embd, config.n_hidden, bias=False, std=std, **place)
        self.down_proj = nn.Linear(config.n_hidden, config.n_embd, bias=False, std=residual_std, **place)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_proj(x).silu() * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each behind an RMS norm and added to its input."""

    def __init__(self, config: Config, layer: int, **given):
        here = {"eps": config.norm_eps, "dtype": given["dtype"], "device": given["device"]}
        self.input_layernorm = nn.RMSNorm(config.n_embd, **here)
        self.self_attn = Attention(config, layer, **given)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, **here)
        self.mlp = MLP(config, **given)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama3(nn.Module):
    """The language model: tokens (B, T) of integers in [0, V) to logits (B, T, V).

    Weights start normal with standard deviation 0.02, the projections back into the residual stream with
    0.02 / sqrt(2 n_layer).
    """

    name = "llama3"
    sizes = {
        "tiny": Config(257, 64, n_layer=4, n_head=4, n_kv_head=2, n_embd=128, n_hidden=352, tied=True),
        "small": Config(257, 256, n_layer=6, n_head=6, n_kv_head=2, n_embd=384, n_hidden=1024, tied=True),
        "1B": Config(
            n_layer=16, n_embd=2048, n_hidden=8192, rotary_scaling=RotaryScaling(32.0), tied=True
        ),
        "3B": Config(
            n_layer=28, n_head=24, n_embd=3072, n_hidden=8192, rotary_scaling=RotaryScaling(32.0), tied=True
        ),
        "8B": Config(rotary_scaling=RotaryScaling(8.0)),
        "70B": Config(n_layer=80, n_head=64, n_embd=8192, n_hidden=28672, rotary_scaling=RotaryScaling(8.0)),
        "405B": Config(n_layer=126, n_head=128, n_embd=16384, n_hidden=53248, rotary_scaling=RotaryScaling(8.0)),
    }

    def __init__(self, config: Config, *, dtype=tinyarr.float32, device="cpu", generator: Generator | None = None):
        std, place = 0.02, {"dtype": dtype, "device": device, "generator": generator}
        given = place | {"std": std, "residual_std": std / math.sqrt(2 * config.n_layer)}
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd, std=std, **place)
        self.layers = [Block(config, layer, **given) for layer in range(config.n_layer)]
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps, dtype=dtype, device=device)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, std=std, **place)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return tinyarr.linear(self._hidden(tokens, cache), self._head)

    @property
    def _head(self) -> Tensor:
        return self.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def _hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Returns the head's input: (B, T, C)."""
        T, start = tokens.shape[1], 0 if cache is None else cache.length
        if self.config.block_size < start + T:
            raise ValueError(
                f"Llama3: {start + T} tokens came, the model has {self.config.block_size} positions: pass the last ones"
            )
        x = self.embed_tokens(tokens)  # (B, T, C)
        cos, sin = self._rotation(start, T, x)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def _rotation(self, start: int, T: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cosines and sines of every pair's angle at positions start .. start + T: (T, D/2) each."""
        wide = x.dtype.compute
        positions = tinyarr.arange(start, start + T, dtype=wide, device=x.device)
        angles = positions.expand_dims(-1) * rotary_frequencies(self.config, dtype=wide, device=x.device)
        return angles.cos(), angles.sin()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy in nats a token: tokens and targets (B, T), the targets one position ahead."""
        return tinyarr.linear_cross_entropy(self._hidden(tokens), self._head, targets)

    def new_cache(self, B: int, capacity: int) -> KVCache:
        """An empty cache for up to `capacity` positions of B sequences."""
        c, like = self.config, self.norm.weight
        shape = (B, c.n_kv_head, capacity, c.head_size)
        return KVCache(c.n_layer, shape, dtype=like.dtype, device=like.device)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """For the optimizer: matrices decay, norms don't."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        norms = [p for p in self.parameters() if p.ndim < 2]
        return [
            {"parameters": matrices, "weight_decay": weight_decay},
            {"parameters": norms, "weight_decay": 0.0},
        ]

    def flops_per_token(self, T: int) -> int:
        """Of a training step: 6 N + 6 L C T, the N parameters of the products, attention's causal half counted once."""
        N = sum(p.size for p in self.parameters()) - (0 if self.config.tied else self.embed_tokens.weight.size)
        return 6 * N + 6 * self.config.n_layer * self.config.n_embd * T


if __name__ == "__main__":
    from models.command import main

    main(Llama3)
