"""GPT-2 124M trained eagerly on a GPU, against the CPU and beside PyTorch, on tokenized text.

`python benchmarks/gpt2_cuda.py "train_*.bin"` takes llm.c's token shards. First 5 steps in float32 on both devices:
their losses must be equal to 1e-4. Then 300 steps in bfloat16 beside PyTorch (bfloat16 autocast over float32 weights):
same initial weights, batches and hyperparameters; prints the mean difference of the losses over the last 50.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

import tinyarr
from models.gpt2 import GPT2
from models.hugging_face import save
from tinyarr import Tensor, optim, schedule
from tinyarr.data import Batches, read_shards

LR, BETAS, DECAY, CLIP = 6e-4, (0.9, 0.95), 0.1, 1.0


def ours(model, batches, steps: int, lr, device: str, dtype, masters: bool = True) -> tuple[list[float], float]:
    """The loss of each step, and tokens a second over the last half. Without masters weights round stochastically."""
    copy = GPT2(model.config, dtype=dtype, device=device)
    copy.load_state_dict({name: t.detach().astype(dtype).to(device) for name, t in model.state_dict().items()})
    optimizer = optim.AdamW(copy.parameter_groups(DECAY), lr=LR, betas=BETAS, stochastic_rounding=not masters)
    if masters:
        optimizer.load_masters(copy.parameters(), model.parameters())
    losses, tokens, started = [], 0, 0.0
    for step in range(steps):
        if step == steps // 2:
            losses[-1].item()
            started, tokens = time.perf_counter(), 0
        x, y = (Tensor(part, device=device) for part in batches.batch(step))
        loss = copy.loss(x, y)
        loss.backward()
        optim.clip_grad_norm(copy.parameters(), CLIP)
        optimizer.lr = lr(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        tokens += x.size
    values = [loss.item() for loss in losses]
    return values, tokens / (time.perf_counter() - started)


def theirs(folder: Path, batches, steps: int, lr) -> tuple[list[float], float]:
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="sdpa").cuda().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    losses, tokens, started = [], 0, 0.0
    for step in range(steps):
        if step == steps // 2:
            losses[-1].item()
            started, tokens = time.perf_counter(), 0
        x, y = (torch.from_numpy(part.astype(np.int64)).cuda() for part in batches.batch(step))
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(x).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        tokens += x.numel()
    values = [loss.item() for loss in losses]
    return values, tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="token shards of llm.c's format, as a quoted pattern")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}")
    shards = read_shards(options.data)
    tinyarr.manual_seed(0)
    model = GPT2(GPT2.sizes["124M"])
    small = Batches(shards, batch_size=2, seq_len=64, vocab_size=50257, seed=1)
    constant = lambda step: 1e-4  # noqa: E731
    on_cpu, on_gpu = (ours(model, small, 5, constant, d, tinyarr.float32)[0] for d in ("cpu", "cuda"))
    difference = max(abs(a - b) for a, b in zip(on_cpu, on_gpu))
    print(f"float32, 5 steps: CPU {on_cpu}, GPU {on_gpu}: at most {difference:.1e} apart")
    assert difference < 1e-4

    batches = Batches(shards, batch_size=options.batch_size, seq_len=1024, vocab_size=50257, seed=2)
    lr = schedule.cosine(LR, options.steps, warmup=options.steps // 10, final=0.1)
    found, rate = ours(model, batches, options.steps, lr, "cuda", tinyarr.bfloat16)
    rounded, _ = ours(model, batches, options.steps, lr, "cuda", tinyarr.bfloat16, masters=False)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), model)
        reference, torch_rate = theirs(Path(folder), batches, options.steps, lr)
    for step in range(0, options.steps, 25):
        print(f"step {step:4}: {found[step]:.4f}, PyTorch {reference[step]:.4f}")
    print(f"last:      {found[-1]:.4f}, PyTorch {reference[-1]:.4f}")
    mean = float(np.mean(found[-50:]) - np.mean(reference[-50:]))
    apart = float(np.mean(np.abs(np.array(found[-50:]) - reference[-50:])))
    print(f"bfloat16, {options.steps} steps: the last 50 differ by {mean:+.4f} nats on average ({apart:.4f} a step)")
    mean_rounded = float(np.mean(rounded[-50:]) - np.mean(reference[-50:]))
    print(f"without masters, rounded stochastically: {mean_rounded:+.4f} nats")
    print(f"eager: {rate:,.0f} tokens/s, PyTorch eager {torch_rate:,.0f}")
    assert abs(mean) < 0.02


if __name__ == "__main__":
    main()
