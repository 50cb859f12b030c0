"""Trains transformers' GPT-2 in float64 and records it in gpt2.safetensors: `python -m tests.recorded.make_gpt2`.

Needs the extra `parity`. test_gpt2.py repeats what is recorded, without transformers; test_gpt2_parity.py calls what
stands here for other models.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers

from models.gpt2 import Config
from models.hugging_face import GPT2Format
from tinyarr import Tensor, saving

FILE = Path(__file__).with_name("gpt2.safetensors")
# The bias of the keys has the gradient 0 but for roundings, which AdamW divides by eps: lr / eps carries them on.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
WEIGHT_DECAY = 0.1  # of matrices; biases and layer norms don't decay


def random_model(config: Config, seed: int) -> transformers.GPT2LMHeadModel:
    """A GPT-2 in float64 in which no weight is 0 or 1, without dropout."""
    torch.manual_seed(seed)
    keys = {key.name: getattr(config, field) for field, key in GPT2Format.keys.items()}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**keys | none, bos_token_id=0, eos_token_id=0)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


def random_tokens(config: Config, seed: int, B: int, T: int) -> np.ndarray:
    """Token numbers (B, T + 1): inputs and, one position ahead, targets."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (B, T + 1))


def train(model: transformers.GPT2LMHeadModel, tokens: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """Logits, loss and gradients of the first step, and the weights before and after `steps` steps on the same batch.

    The loss isn't transformers' own, which is computed in float32.
    """
    inputs, targets = torch.from_numpy(tokens[:, :-1]), torch.from_numpy(tokens[:, 1:])
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    record = {}

    def keep(name, value):
        record[name] = value.detach().numpy().copy()

    for name, p in model.named_parameters():
        keep(f"weights.{name}", p)
    for step in range(steps):
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            keep("logits", logits)
            keep("loss", loss)
            for name, p in model.named_parameters():
                keep(f"gradients.{name}", p.grad)
        optimizer.step()
    for name, p in model.named_parameters():
        keep(f"trained.{name}", p)
    return record


def main() -> None:
    config = Config(vocab_size=61, block_size=8, n_layer=2, n_head=3, n_embd=12)
    tokens = random_tokens(config, 0, B=2, T=7)
    record = {"tokens": tokens} | train(random_model(config, 0), tokens, steps=10)
    metadata = {
        "config": json.dumps(asdict(config)), "adamw": json.dumps(ADAMW), "weight_decay": json.dumps(WEIGHT_DECAY),
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }  # fmt: skip
    saving.save(FILE, {name: Tensor(value) for name, value in record.items()}, metadata)


if __name__ == "__main__":
    main()
