"""Time to compile on the CPU: a training step of GPT-2 of width 64 against its depth, and loops against their rounds.

    python -m benchmarks.compile_time [--layers 2 4 8 16 32 48] [--loops 200 1000 2500] [--rounds 3]

A step is forward, backward, gradient clip and AdamW. The phases: trace, passes over the graph, the plan of memory, C
code and its compilation (into an empty cache). They are seconds of a processor, the C compiler's too, which other
programs change little. The fastest of the rounds counts; a line is fitted to each phase of the steps. Last comes what
passes take with a memory_budget, for the deepest step as planned for a GPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

import tinyarr
from models.gpt2 import GPT2, Config
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes.order import PASSES, passes_within
from tinyarr.program import Graph

PHASES = ("trace", "passes", "plan", "compile", "all")


def step_of(layers: int) -> Callable:
    """A training step without arguments."""
    config = Config(vocab_size=256, block_size=64, n_layer=layers, n_head=4, n_embd=64)
    model = GPT2(config, device=tinyarr.default_device())
    optimizer = tinyarr.optim.AdamW(model.parameter_groups(0.1), lr=1e-4)
    batch = np.random.default_rng(0).integers(0, 256, (4, 65))
    tokens, targets = (tinyarr.Tensor(part).to(tinyarr.default_device()) for part in (batch[:, :-1], batch[:, 1:]))

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        tinyarr.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def loops_of(rounds: int) -> dict[str, Callable]:
    """Loops of two operations a round: elementwise, with a product, and one of which the gradient is taken."""
    start = tinyarr.ones((8, 8))

    def repeated(operation: Callable, x: tinyarr.Tensor = start) -> tinyarr.Tensor:
        for _ in range(rounds):
            x = operation(x)
        return x

    def waves(x: tinyarr.Tensor) -> tinyarr.Tensor:
        return repeated(lambda x: tinyarr.sin(x * 1.0001), x).sum()

    return {
        "x * a + b": lambda: repeated(lambda x: x * 1.0001 + 0.5),
        "tanh(x @ w)": lambda: repeated(lambda x: tinyarr.tanh(x @ start)),
        "grad of sin(x * a)": lambda: tinyarr.grad(waves)(start),
    }


def seconds() -> float:
    """Processor time of this process, and of those that it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(function: Callable) -> tuple[int, list[float]]:
    """The number of nodes traced, and the seconds of each phase and of all."""
    marks, nodes = [seconds()], []

    def mark(graph: Graph) -> Graph:
        marks.append(seconds())
        nodes.append(len(graph.nodes))
        return graph

    def build(graph: Graph) -> Interpreter:
        planned = plan(mark(graph))
        mark(graph)
        tinyarr.Device("cpu").backend.program(graph, planned)
        mark(graph)
        return Interpreter(graph)

    with tempfile.TemporaryDirectory() as os.environ["TINYARR_CACHE"]:
        Compiled(function, [mark, *PASSES], build)()
    return nodes[0], [*np.diff(marks), marks[-1] - marks[0]]


def fastest(name: str, make: Callable[[], Callable], rounds: int) -> np.ndarray:
    """The least seconds of each phase, which it prints."""
    counts, times = zip(*(measure(make()) for _ in range(rounds)), strict=True)
    found = np.min(times, axis=0)
    print(f"{name:31} {counts[0]:6}", *(f"{x:9.3f}" for x in found), flush=True)
    return found


def search(layers: int) -> None:
    """Prints what passes take without a budget, with 0, and with one between what is taken then."""
    device, arenas = tinyarr.Device("meta", like="cuda:sm_90"), list[int]()
    for title, budget in (("none", lambda: None), ("0 bytes", lambda: 0), ("between", lambda: sum(arenas) // 2)):
        marks: list[float] = []

        def mark(graph: Graph, marks: list[float] = marks) -> Graph:
            marks.append(seconds())
            return graph

        with tinyarr.use_device(device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 0 bytes are too few
            step = Compiled(step_of(layers), [mark, *passes_within(budget()), mark], Interpreter)
            step()
        arenas.append(step.memory[0].arena)
        print(f"memory_budget, {title:16} {len(step.graphs[0].nodes):6} {marks[1] - marks[0]:19.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 48])
    parser.add_argument("--loops", type=int, nargs="*", default=[200, 1000, 2500])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{'layers, or rounds of a loop':31} {'nodes':>6}", *(f"{phase + ' s':>9}" for phase in PHASES))
    rows = [fastest(str(layers), functools.partial(step_of, layers), chosen.rounds) for layers in chosen.layers]
    lines = np.polyfit(chosen.layers, rows, 1)
    residuals = np.abs(rows - (np.outer(chosen.layers, lines[0]) + lines[1])).max(axis=0)
    for name, values in zip(("line: a layer", "line: without layers", "largest distance"), (*lines, residuals)):
        print(f"{name:38}", *(f"{x:9.4f}" for x in values))
    for rounds in chosen.loops:
        for name in loops_of(1):
            fastest(f"{rounds} rounds of {name}", functools.partial(loops_of(rounds).get, name), chosen.rounds)
    search(chosen.layers[-1])


if __name__ == "__main__":
    main()
