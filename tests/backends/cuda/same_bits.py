"""Trains a compiled GPT-2 in two processes and compares all bits: `python -m tests.backends.cuda.same_bits --batch-size
64`.

What tells them is a digest of each step's loss and of all parameters and optimizer state at the end. The second
process takes the algorithms of products that the first has timed, from the disk cache.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time


def main() -> int:
    """0 where both processes print one digest."""
    options = parse()
    if options.alone:
        print(digest(options))
        return 0
    found = []
    for number in (1, 2):
        started = time.perf_counter()
        command = [sys.executable, "-m", "tests.backends.cuda.same_bits", "--alone", *sys.argv[1:]]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(process.stdout.splitlines()[-1])
        print(f"process {number}: {found[-1]} ({time.perf_counter() - started:.0f} s)", flush=True)
    print("the same bits" if found[0] == found[1] else "DIFFERENT bits")
    return 0 if found[0] == found[1] else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="124M", help="one of GPT2.sizes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--alone", action="store_true", help="train in this process, and print its digest")
    return parser.parse_args()


def digest(options: argparse.Namespace) -> str:
    """The losses of the first and last step, and a digest of everything."""
    import numpy as np

    import tinyarr
    from models.gpt2 import GPT2
    from tinyarr import Tensor, optim

    tinyarr.manual_seed(0)
    config = GPT2.sizes[options.size]
    model = GPT2(config, dtype=tinyarr.bfloat16, device="cuda")
    optimizer = optim.AdamW(model.parameter_groups(0.1), lr=6e-4, betas=(0.9, 0.95))

    @tinyarr.compile
    def step(x, y):
        loss = model.loss(x, y)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(options.steps):
        tokens = rng.integers(0, config.vocab_size, (options.batch_size, options.seq_len + 1))
        x, y = (Tensor(part, device="cuda") for part in (tokens[:, :-1], tokens[:, 1:]))
        losses.append(step(x, y))
    seen = hashlib.sha256()
    state = [*model.state_dict().values(), *optimizer.state_dict().values()]
    for tensor in [*losses, *state]:
        seen.update(tensor.detach().numpy().tobytes())
    return f"{losses[0].item()!r} {losses[-1].item()!r} {seen.hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())
