"""Time to compile a training step against the depth of the model: GPT-2 of width 64, on the CPU.

    python benchmarks/compile_time.py [--layers 2 4 8 16 32 48] [--rounds 3]

A step is forward, backward, gradient clip and AdamW. The phases, as explain() says them: trace, passes over the graph,
the plan of memory, C code and its compilation (into an empty cache). The fastest of the rounds counts; a line is fitted
to each phase.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable

import numpy as np

import tinyarr
from models.gpt2 import GPT2, Config

PHASES = ("trace", "passes", "plan", "compile", "all")


def step_of(layers: int) -> Callable:
    """A training step without arguments."""
    model = GPT2(Config(vocab_size=256, block_size=64, n_layer=layers, n_head=4, n_embd=64))
    optimizer = tinyarr.optim.AdamW(model.parameter_groups(0.1), lr=1e-4)
    batch = np.random.default_rng(0).integers(0, 256, (4, 65))
    tokens, targets = tinyarr.Tensor(batch[:, :-1]), tinyarr.Tensor(batch[:, 1:])

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        tinyarr.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def measure(layers: int) -> tuple[int, list[float]]:
    """The number of nodes, and the seconds of each phase and of all."""
    with tempfile.TemporaryDirectory() as os.environ["TINYARR_CACHE"]:
        step = tinyarr.compile(step_of(layers))
        step()
    seconds = dict(re.findall(r"(\w+) ([\d.]+) s", step.explain()))
    return len(step.graphs[0].nodes), [*(float(seconds[phase]) for phase in PHASES[:-1]), step.seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 48])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{'layers':24} {'nodes':>6}", *(f"{phase + ' s':>9}" for phase in PHASES))
    rows = []
    for layers in chosen.layers:
        counts, times = zip(*(measure(layers) for _ in range(chosen.rounds)), strict=True)
        rows.append(np.min(times, axis=0))
        print(f"{layers:<24} {counts[0]:6}", *(f"{seconds:9.3f}" for seconds in rows[-1]))
    lines = np.polyfit(chosen.layers, rows, 1)
    residuals = np.abs(rows - (np.outer(chosen.layers, lines[0]) + lines[1])).max(axis=0)
    for name, values in zip(("line: a layer", "line: without layers", "largest distance"), (*lines, residuals)):
        print(f"{name:31}", *(f"{seconds:9.4f}" for seconds in values))


if __name__ == "__main__":
    main()
