"""GPT-2 training steps on the CPU beside PyTorch: time of a step, time to the end of the first, peak memory.

    python benchmarks/gpt2_cpu.py [--size 124M] [--steps 6] [--rounds 2]

Each system runs in processes of its own, in turns: in each round one whose caches of compiled code are empty (cold),
and one that finds there what the first left (warm). Time to the first step counts from the start of the process, Python
and imports included. The best of all processes counts. A step is forward, backward, gradient clip and AdamW, in
float32, on B=4 sequences of T=64 tokens. It needs tinyarr[parity].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time

B, T = 4, 64
TOUCHED = 4 << 30  # bytes
SIZES = {"124M": (12, 12, 768), "tiny": (4, 4, 128)}


def tinyarr_step(size: str, compiled: bool):
    import numpy as np

    import tinyarr
    from models.gpt2 import GPT2

    model = GPT2(GPT2.sizes[size])
    optimizer = tinyarr.optim.AdamW(model.parameter_groups(0.1), lr=1e-4)
    batch = np.random.default_rng(0).integers(0, model.config.vocab_size, (B, T + 1))
    tokens, targets = tinyarr.Tensor(batch[:, :-1]), tinyarr.Tensor(batch[:, 1:])

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        tinyarr.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = tinyarr.compile(step) if compiled else step
    return lambda: run(tokens, targets).item()


def torch_step(size: str, compiled: bool):
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, channels = SIZES[size]
    vocabulary = 50257 if size == "124M" else 257
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=channels, vocab_size=vocabulary, use_cache=False,
                        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="sdpa")  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (B, T + 1)))
    tokens, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def loss_of(tokens, targets):
        logits = model(tokens).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, vocabulary), targets.view(-1))

    forward = torch.compile(loss_of) if compiled else loss_of

    def step():
        loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


SYSTEMS = {
    "tinyarr compile": lambda size: tinyarr_step(size, True),
    "torch eager": lambda size: torch_step(size, False),
    "torch compile": lambda size: torch_step(size, True),
}


def measure(system: str, size: str, steps: int, started: float) -> dict:
    """Seconds from `started` to the end of the first step, those of the best later one, and the most memory in GiB."""
    step = SYSTEMS[system](size)
    step()
    first = time.time() - started
    seconds = []
    for _ in range(steps - 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"first": first, "best": min(seconds), "peak": peak}


def run(system: str, size: str, steps: int, caches: str) -> dict:
    """`measure` in a process that keeps compiled code in a folder."""
    folders = {name: f"{caches}/{name}" for name in ("TINYARR_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    # A virtual machine may have given unused memory back: whoever touches it first waits, here a process before.
    subprocess.run([sys.executable, "-c", f"import numpy; numpy.ones({TOUCHED}, 'u1')"], check=True)
    environment = {**os.environ, **folders, "PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, __file__, "--size", size, "--steps", str(steps), "--one", system, str(time.time())]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{system} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="124M", choices=SIZES)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        system, started = chosen.one
        print(json.dumps(measure(system, chosen.size, chosen.steps, float(started))))
        return
    print(f"GPT-2 {chosen.size}, B={B} T={T}, float32; {platform.machine()}, {os.cpu_count()} cores, "
          f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}")  # fmt: skip
    found: dict[str, list[list[dict]]] = {system: [] for system in chosen.systems}
    for _ in range(chosen.rounds):
        for system, rounds in found.items():
            with tempfile.TemporaryDirectory() as caches:
                rounds.append([run(system, chosen.size, chosen.steps, caches) for _ in ("cold", "warm")])
    best = {system: min(r["best"] for pair in rounds for r in pair) for system, rounds in found.items()}
    print(f"{'':16} {'step ms':>8} {'ratio':>6} {'first step: cold s':>19} {'warm s':>7} {'peak GiB':>9}")
    for system, rounds in found.items():
        ratio = f"{best[system] / best['torch eager']:6.2f}" if "torch eager" in best else ""
        cold, warm = (min(r["first"] for r in runs) for runs in zip(*rounds, strict=True))
        peak = max(r["peak"] for pair in rounds for r in pair)
        print(f"{system:16} {1000 * best[system]:8.0f} {ratio:>6} {cold:19.1f} {warm:7.1f} {peak:9.2f}")


if __name__ == "__main__":
    main()
