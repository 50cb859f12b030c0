"""Gradients of each example, and Hessians, by vmap: beside torch.func, and beside loops over the examples.

    python -m benchmarks.batching [--rounds 9] [--out benchmarks/results/batching.txt]

One thread; all in turns, of each the least time that the thread took, since others use the machine. Results are
compared first. "shared" is the gradient of the mean loss with respect to the weights through the map: what is written
with arrays of all examples is the same mathematics.
"""

from __future__ import annotations

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tinyarr as ta
from tinyarr import Tensor

B, C, V, N = 128, 256, 10, 100  # examples, channels, classes; variables of the Hessian's function


def ours(weights, X, Y, A, x) -> dict[str, dict[str, Callable]]:
    def loss(weights, x, y):
        return ta.cross_entropy(ta.tanh(x @ weights[0]) @ weights[1], y)

    def function(x):
        return (ta.tanh(A @ x) ** 2).sum()

    gradient = ta.grad(loss)
    each = ta.vmap(gradient, (None, 0, 0))
    shared = ta.grad(lambda w: ta.vmap(loss, (None, 0, 0))(w, X, Y).mean())
    hessian = ta.hessian(function)
    compiled_each, compiled_shared, compiled_hessian = map(ta.compile, (each, shared, hessian))

    def rows():
        _, pull = ta.vjp(ta.grad(function), x)
        return ta.stack([pull(unit)[0] for unit in ta.eye(N)])

    def loop():
        found = [gradient(weights, x, y) for x, y in zip(X, Y)]
        return [ta.stack(same) for same in zip(*found)]

    return {
        "each": {
            "tinyarr, vmap": lambda: each(weights, X, Y),
            "tinyarr, vmap, compiled": lambda: compiled_each(weights, X, Y),
            "tinyarr, loop": loop,
        },
        "shared": {
            "tinyarr, vmap": lambda: shared(weights),
            "tinyarr, vmap, compiled": lambda: compiled_shared(weights),
            "tinyarr, arrays": lambda: ta.grad(loss)(weights, X, Y),
        },
        "hessian": {
            "tinyarr, vmap": lambda: [hessian(x)],
            "tinyarr, vmap, compiled": lambda: [compiled_hessian(x)],
            "tinyarr, loop": lambda: [rows()],
        },
    }


def theirs(weights, X, Y, A, x) -> dict[str, dict[str, Callable]]:
    import torch
    from torch.func import grad, hessian, vmap

    torch.set_num_threads(1)
    weights, (X, Y, A, x) = [torch.tensor(w) for w in weights], map(torch.tensor, (X, Y, A, x))

    def loss(weights, x, y):
        logits = torch.tanh(x @ weights[0]) @ weights[1]
        return torch.nn.functional.cross_entropy(logits[None], y[None])

    each = vmap(grad(loss), (None, 0, 0))
    shared = grad(lambda w: vmap(loss, (None, 0, 0))(w, X, Y).mean())
    second = hessian(lambda x: (torch.tanh(A @ x) ** 2).sum())
    return {
        "each": {"torch.func": lambda: each(weights, X, Y)},
        "shared": {"torch.func": lambda: shared(weights)},
        "hessian": {"torch.func": lambda: [second(x)]},
    }


def measured(functions: dict[str, Callable], rounds: int) -> dict[str, float]:
    """The least time of each, in ms, after all were found to compute the same."""
    first, *others = ([np.asarray(x) for x in f()] for f in functions.values())
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max())
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.thread_time()
            function()
            least[name] = min(least[name], 1000 * (time.thread_time() - start))
    return least


def report(rounds: int) -> str:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    weights, X, Y = [drawn(C, C), drawn(C, V)], drawn(B, C), rng.integers(0, V, B)
    A, x = drawn(N, N), drawn(N)
    mine = ours([Tensor(w) for w in weights], *map(Tensor, (X, Y, A, x)))
    try:
        peer = theirs(weights, X, Y, A, x)
    except ImportError:
        peer = {}
    titles = {
        "each": f"gradients of each of {B} examples: ({C}, {C}) and ({C}, {V}), tanh, cross-entropy",
        "shared": "gradient of their mean, with respect to the weights that all share",
        "hessian": f"Hessian of sum(tanh(A x)^2) in {N} variables",
    }
    lines = [f"Machine: {platform.processor() or platform.machine()}, one thread, float32; ms, least of {rounds}"]
    for kind, title in titles.items():
        lines += ["", title]
        lines += [f"  {name:<24} {ms:9.2f}" for name, ms in measured(mine[kind] | peer.get(kind, {}), rounds).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = report(arguments.rounds)
    print(text, end="")
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
