"""GPT-2 and Llama 3 in PyTorch, written for speed there, and a training step of either.

Modules and parameters are named as in models/, so the weights of one load into the other. GPT-2 is nanoGPT's: fused
attention, the vocabulary padded to a multiple of 128 (50,304), logits of the padding too. Parameters are float32 under
bfloat16 autocast, or all bfloat16 with AdamW's state.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class GPT2Attention(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.n_head = c.n_head
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (heads(part, C // self.n_head) for part in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class GPT2MLP(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd)
        self.attn = GPT2Attention(c)
        self.ln_2 = nn.LayerNorm(c.n_embd)
        self.mlp = GPT2MLP(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Tokens and targets (B, T) to the mean cross-entropy. `recompute`: keep no activations inside the blocks."""

    def __init__(self, c: Any, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.wte = nn.Embedding(-(-c.vocab_size // 128) * 128, c.n_embd)
        self.wpe = nn.Embedding(c.block_size, c.n_embd)
        self.h = nn.ModuleList(GPT2Block(c) for _ in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return cross_entropy(F.linear(self.ln_f(x), self.wte.weight), targets)


class Llama3Attention(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.head_size = D = c.n_embd // c.n_head
        self.q_proj = nn.Linear(c.n_embd, c.n_head * D, bias=False)
        self.k_proj = nn.Linear(c.n_embd, c.n_kv_head * D, bias=False)
        self.v_proj = nn.Linear(c.n_embd, c.n_kv_head * D, bias=False)
        self.o_proj = nn.Linear(c.n_head * D, c.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (heads(project(x), self.head_size) for project in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Llama3MLP(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.gate_proj = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.up_proj = nn.Linear(c.n_embd, c.n_hidden, bias=False)
        self.down_proj = nn.Linear(c.n_hidden, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Llama3Block(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.n_embd, eps=c.norm_eps)
        self.self_attn = Llama3Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.n_embd, eps=c.norm_eps)
        self.mlp = Llama3MLP(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama3(nn.Module):
    """As GPT2. Rotary frequencies are never stretched: that costs nothing in a step."""

    def __init__(self, c: Any, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.rotary_base, self.head_size = c.rotary_base, c.n_embd // c.n_head
        self.embed_tokens = nn.Embedding(c.vocab_size, c.n_embd)
        self.layers = nn.ModuleList(Llama3Block(c) for _ in range(c.n_layer))
        self.norm = nn.RMSNorm(c.n_embd, eps=c.norm_eps)
        self.lm_head = None if c.tied else nn.Linear(c.n_embd, c.vocab_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        D, T = self.head_size, tokens.shape[1]
        frequencies = self.rotary_base ** (-torch.arange(0, D, 2, device=x.device) / D)
        angles = torch.arange(T, device=x.device)[:, None] * frequencies
        rotation = angles.cos(), angles.sin()
        for layer in self.layers:
            x = checkpoint(layer, x, *rotation, use_reentrant=False) if self.recompute else layer(x, *rotation)
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return cross_entropy(F.linear(self.norm(x), head.weight), targets)


def heads(x: Tensor, head_size: int) -> Tensor:
    """(B, T, H D) as (B, H, T, D)."""
    return x.unflatten(2, (-1, head_size)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of heads, as Hugging Face's files need it: channel i turns with channel i + D/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


MODELS = {"gpt2": GPT2, "llama3": Llama3}


def new_model(name: str, config: Any, device: str, recompute: bool = False) -> nn.Module:
    """A model with its first weights as in models/, drawn on the device."""
    with torch.device("meta"):
        model = MODELS[name](config, recompute)
    model.to_empty(device=device)
    into_residual = ("c_proj.weight", "o_proj.weight", "down_proj.weight")
    for parameter_name, p in model.named_parameters():
        if p.ndim >= 2:
            smaller = math.sqrt(2 * config.n_layer) if parameter_name.endswith(into_residual) else 1
            nn.init.normal_(p, std=0.02 / smaller)
        else:
            nn.init.constant_(p, 0.0 if parameter_name.endswith("bias") else 1.0)
    return model


class Torch:
    """A training step in PyTorch, as train.py's Tinyarr: clip and fused AdamW after forward and backward."""

    def __init__(self, job: Any, compiled: bool):
        self.job, self.compiled = job, compiled
        self.on_gpu = job.device == "cuda"

    def memory_info(self) -> tuple[int, int]:
        return torch.cuda.mem_get_info()

    def build(self, tokens: np.ndarray) -> None:
        job = self.job
        if self.on_gpu:
            torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        model = new_model(job.model, job.config, job.device, job.checkpoint)
        if job.all_bf16:
            model.to(torch.bfloat16)
        self.parameters = list(model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": job.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=job.lr, betas=job.betas, fused=True)
        self.loss = torch.compile(model) if self.compiled else model
        autocast = job.dtype == "bfloat16" and not job.all_bf16
        self.autocast = torch.autocast(job.device, torch.bfloat16, enabled=autocast)
        given = torch.from_numpy(tokens).to(job.device)
        self.batches = [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in given]

    def step(self) -> Tensor:
        for tokens, targets in self.batches:
            with self.autocast:
                loss = self.loss(tokens, targets)
            (loss / len(self.batches)).backward()
        nn.utils.clip_grad_norm_(self.parameters, self.job.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        found = {"versions": {"Python": platform.python_version(), "PyTorch": torch.__version__}}
        if self.on_gpu:
            found |= {"card": torch.cuda.get_device_name(), "counted": torch.cuda.max_memory_allocated()}
        return found
