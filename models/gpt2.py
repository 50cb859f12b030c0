"""GPT-2 (Radford et al. 2019, "Language models are unsupervised multitask learners"). Floor 1.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary. Attributes are named as in Hugging
Face's files, so a checkpoint's names are the model's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tinyarr
from tinyarr import Generator, Tensor, nn
from tinyarr.errors import ArgumentError

from .cache import KVCache

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu", "tanh")  # transformers' names; gelu_new is GELU's tanh form


@dataclass(frozen=True)
class Config:
    """OpenAI's GPT-2, and what published models of its kind do otherwise.

    Raises ArgumentError for sizes that don't go together and an unknown activation.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    n_hidden: int | None = None  # channels inside the MLP, 4 n_embd if None
    activation: str = "gelu_new"
    norm_eps: float = 1e-5
    scale_attn_weights: bool = True  # q k' by 1 / sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # and that of layer i, counted from 0, by 1 / (i + 1)

    def __post_init__(self):
        sizes = self.vocab_size, self.block_size, self.n_layer, self.n_head, self.n_embd, self.mlp_channels
        if min(sizes) < 1 or self.n_embd % self.n_head:
            raise ArgumentError(f"GPT2: {self}: sizes must be at least 1, and the heads must divide n_embd evenly")
        if self.activation not in ACTIVATIONS:
            raise ArgumentError(f"GPT2: activation is {self.activation!r}: use one of {', '.join(ACTIVATIONS)}")

    @property
    def mlp_channels(self) -> int:
        return 4 * self.n_embd if self.n_hidden is None else self.n_hidden

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: a multiple of 128, which matrix products like. No result shows the padding."""
        return -(-self.vocab_size // 128) * 128


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: Config, layer: int, *, std: float, residual_std: float, **place):
        self.layer = layer
        self.n_head = config.n_head
        self.scale = 1 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, std=std, **place)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, std=residual_std, **place)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).reshape((B, T, 3 * self.n_head, C // self.n_head))  # (B, T, 3H, D)
        q, k, v = qkv.permute_dims((0, 2, 1, 3)).split(self.n_head, axis=1)  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = tinyarr.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)  # (B, H, T, D)
        return self.c_proj(y.permute_dims((0, 2, 1, 3)).reshape((B, T, C)))


def activate(x: Tensor, name: str) -> Tensor:
    """One of ACTIVATIONS, elementwise."""
    return x.gelu(approximate="tanh") if name == "gelu_new" else getattr(x, name)()


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: Config, *, std: float, residual_std: float, **place):
        self.activation = config.activation
        self.c_fc = nn.Linear(config.n_embd, config.mlp_channels, std=std, **place)
        self.c_proj = nn.Linear(config.mlp_channels, config.n_embd, std=residual_std, **place)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and added to its input."""

    def __init__(self, config: Config, layer: int, **given):
        here = {"eps": config.norm_eps, "dtype": given["dtype"], "device": given["device"]}
        self.ln_1 = nn.LayerNorm(config.n_embd, **here)
        self.attn = Attention(config, layer, **given)
        self.ln_2 = nn.LayerNorm(config.n_embd, **here)
        self.mlp = MLP(config, **given)
        self.dropout = nn.Dropout(config.dropout, generator=given["generator"])

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x), cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class GPT2(nn.Module):
    """The language model: tokens (B, T) of integers in [0, V) to logits (B, T, V). The head is the embedding table.

    Weights start normal with standard deviation 0.02, the projections back into the residual stream with
    0.02 / sqrt(2 n_layer) (section 2.3 of the paper), biases at 0.
    """

    name = "gpt2"
    sizes = {
        "tiny": Config(vocab_size=257, block_size=64, n_layer=4, n_head=4, n_embd=128),
        "124M": Config(n_layer=12, n_head=12, n_embd=768),
        "350M": Config(n_layer=24, n_head=16, n_embd=1024),
        "774M": Config(n_layer=36, n_head=20, n_embd=1280),
        "1558M": Config(n_layer=48, n_head=25, n_embd=1600),
    }

    def __init__(self, config: Config, *, dtype=tinyarr.float32, device="cpu", generator: Generator | None = None):
        std, place = 0.02, {"dtype": dtype, "device": device, "generator": generator}
        given = place | {"std": std, "residual_std": std / math.sqrt(2 * config.n_layer)}
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd, std=std, **place)
        self.wpe = nn.Embedding(config.block_size, config.n_embd, std=std, **place)
        self.dropout = nn.Dropout(config.dropout, generator=generator)
        self.h = [Block(config, layer, **given) for layer in range(config.n_layer)]
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.norm_eps, dtype=dtype, device=device)
        with tinyarr.no_grad():
            self.wte.weight[config.vocab_size :] = 0.0

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return tinyarr.linear(self._hidden(tokens, cache), self.wte.weight)[..., : self.config.vocab_size]

    def _hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Returns the head's input: (B, T, C)."""
        T, start = tokens.shape[1], 0 if cache is None else cache.length
        end = start + T
        if self.config.block_size < end:
            raise ValueError(
                f"GPT2: {end} tokens came, the model has {self.config.block_size} positions: pass the last ones"
            )
        V = self.config.vocab_size
        x = self.dropout(tinyarr.embedding(self.wte.weight[:V], tokens) + self.wpe.weight[start:end])  # (B, T, C)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy in nats a token: tokens and targets (B, T), the targets one position ahead."""
        V = self.config.vocab_size
        return tinyarr.linear_cross_entropy(self._hidden(tokens), self.wte.weight, targets, classes=V)

    def new_cache(self, B: int, capacity: int) -> KVCache:
        """An empty cache for up to `capacity` positions of B sequences."""
        c, like = self.config, self.wte.weight
        shape = (B, c.n_head, capacity, c.n_embd // c.n_head)
        return KVCache(c.n_layer, shape, dtype=like.dtype, device=like.device)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """For the optimizer: matrices decay, biases and layer norms don't."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        return [
            {"parameters": matrices, "weight_decay": weight_decay},
            {"parameters": others, "weight_decay": 0.0},
        ]

    def flops_per_token(self, T: int) -> int:
        """Of a training step: 6 N + 6 L C T, the N parameters of the products, attention's causal half counted once."""
        N = sum(p.size for p in self.parameters()) - self.wpe.weight.size
        return 6 * N + 6 * self.config.n_layer * self.config.n_embd * T


if __name__ == "__main__":
    from models.command import main

    main(GPT2)
