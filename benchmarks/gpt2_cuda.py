"""GPT-2 124M trained on a GPU, against the CPU and beside PyTorch, on tokenized text.

`python -m benchmarks.gpt2_cuda "train_*.bin"` takes llm.c's token shards. First 5 eager steps in float32 on both
devices: their losses must be equal to 1e-4. Then 300 compiled steps in bfloat16 beside PyTorch's eager ones (bfloat16
autocast over float32 weights): same initial weights, batches and hyperparameters; prints the mean difference of the
losses over the last 50, which must be below 0.02. --eager and --stochastic train once more, without tinyarr.compile and
without master weights.
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


def ours(
    model, batches, steps: int, lr, device: str, dtype, *, compiled: bool, masters: bool = True
) -> tuple[list[float], float]:
    """The loss of each step, and tokens a second over the last half. Without masters weights round stochastically."""
    own = GPT2(model.config, dtype=dtype, device=device)
    own.load_state_dict({name: t.detach().astype(dtype).to(device) for name, t in model.state_dict().items()})
    optimizer = optim.AdamW(own.parameter_groups(DECAY), lr=LR, betas=BETAS, stochastic_rounding=not masters)
    if masters:
        optimizer.load_masters(own.parameters(), model.parameters())

    def train(x, y):
        loss = own.loss(x, y)
        loss.backward()
        norm = optim.clip_grad_norm(own.parameters(), CLIP)
        optimizer.step(where=tinyarr.isfinite(norm))
        optimizer.zero_grad()
        return loss.detach()

    run = tinyarr.compile(train) if compiled else train
    losses, tokens, started = [], 0, 0.0
    for step in range(steps):
        if step == steps // 2:
            losses[-1].item()
            started, tokens = time.perf_counter(), 0
        x, y = (Tensor(part, device=device) for part in batches.batch(step))
        optimizer.lr = lr(step)
        losses.append(run(x, y))
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
    parser.add_argument("--eager", action="store_true", help="also train without compiling")
    parser.add_argument("--stochastic", action="store_true", help="also train without masters, rounding stochastically")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}")
    shards = read_shards(options.data)
    tinyarr.manual_seed(0)
    model = GPT2(GPT2.sizes["124M"])
    small = Batches(shards, batch_size=2, seq_len=64, vocab_size=50257, seed=1)
    constant = lambda step: 1e-4  # noqa: E731
    on_cpu, on_gpu = (ours(model, small, 5, constant, d, tinyarr.float32, compiled=False)[0] for d in ("cpu", "cuda"))
    difference = max(abs(a - b) for a, b in zip(on_cpu, on_gpu))
    print(f"float32, 5 steps: CPU {on_cpu}, GPU {on_gpu}: at most {difference:.1e} apart")
    assert difference < 1e-4

    batches = Batches(shards, batch_size=options.batch_size, seq_len=1024, vocab_size=50257, seed=2)
    lr = schedule.cosine(LR, options.steps, warmup=options.steps // 10, final=0.1)
    variants = {"compiled": dict(compiled=True)}
    if options.eager:
        variants["eager"] = dict(compiled=False)
    if options.stochastic:
        variants["stochastic"] = dict(compiled=True, masters=False)
    curves, rates = {}, {}
    for name, how in variants.items():
        curves[name], rates[name] = ours(model, batches, options.steps, lr, "cuda", tinyarr.bfloat16, **how)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), model)
        reference, torch_rate = theirs(Path(folder), batches, options.steps, lr)
    for step in (*range(0, options.steps - 1, 25), options.steps - 1):
        print(f"step {step:4}: PyTorch {reference[step]:.4f}",
              *(f"{name} {losses[step]:.4f}" for name, losses in curves.items()), sep=", ")
    print(f"bfloat16, {options.steps} steps, less PyTorch's loss over the last 50:")
    differences = {name: np.array(losses[-50:]) - reference[-50:] for name, losses in curves.items()}
    for name, difference in differences.items():
        print(f"{name}: {difference.mean():+.4f} nats on average, {np.abs(difference).mean():.4f} apart a step")
    rates["PyTorch eager"] = torch_rate
    print("tokens/s:", ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()))
    assert abs(differences["compiled"].mean()) < 0.02


if __name__ == "__main__":
    main()
