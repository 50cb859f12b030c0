"""Convolutions, pooling and a training step of LeNet on the CPU, beside torch and beside the products in them.

    python benchmarks/convolution.py [--rounds 15] [word ...]

The processor time of one thread in float32, so that a busy machine matters less; the systems take turns in one process,
and of each the fastest run counts. Forward alone, then with the gradients of input and weights. "products" are NumPy's
of the sizes that a convolution comes down to: no convolution by products takes less. Words choose layers by name.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch

import tinyarr as ta
from tinyarr import nn

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
Run = Callable[[], object]


class Layer(NamedTuple):
    """A convolution of images (B, C, H, H), or, without `out`, a max pooling."""

    B: int
    C: int
    H: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0


LAYERS = {
    "MNIST 5 x 5, first": Layer(64, 1, 28, 32, 5, 1, 2),
    "MNIST 5 x 5, second": Layer(64, 32, 14, 64, 5, 1, 2),
    "MNIST 3 x 3, first": Layer(64, 1, 28, 16, 3, 1, 1),
    "MNIST pool": Layer(64, 32, 28, 0, 2, 2),
    "CIFAR 3 x 3": Layer(32, 64, 32, 64, 3, 1, 1),
    "ResNet 7 x 7, first": Layer(8, 3, 224, 64, 7, 2, 3),
    "ResNet pool": Layer(8, 64, 112, 0, 3, 2, 1),
    "ResNet 3 x 3 of 56": Layer(16, 64, 56, 64, 3, 1, 1),
    "ResNet 3 x 3 of 28": Layer(16, 128, 28, 128, 3, 1, 1),
    "ResNet 3 x 3 of 14": Layer(16, 256, 14, 256, 3, 1, 1),
    "ResNet 3 x 3 of 7": Layer(16, 512, 7, 512, 3, 1, 1),
    "ResNet 1 x 1 of 28": Layer(16, 512, 28, 128, 1),
}


def runs(layer: Layer) -> dict[str, tuple[Run, Run]]:
    """Of each system forward alone, and forward and backward."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((layer.B, layer.C, layer.H, layer.H), np.float32)]
    if layer.out:
        arrays.append(rng.standard_normal((layer.out, layer.C, layer.kernel, layer.kernel), np.float32))
    ours, theirs = [ta.Tensor(a) for a in arrays], [torch.from_numpy(a) for a in arrays]

    def function(x, weight=None):
        if weight is None:
            return ta.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        return ta.conv2d(x, weight, None, layer.stride, layer.padding)

    def torch_function(x, weight=None):
        if weight is None:
            return torch.nn.functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)
        return torch.nn.functional.conv2d(x, weight, None, layer.stride, layer.padding)

    g = rng.standard_normal(function(*ours).shape, np.float32)
    our_g, their_g = ta.Tensor(g), torch.from_numpy(g)

    def both(g, *operands):
        y, pull = ta.vjp(function, *operands)
        return y, *pull(g)

    def torch_both():
        operands = [x.detach().requires_grad_() for x in theirs]
        torch_function(*operands).backward(their_g)

    forward, backward = ta.compile(function), ta.compile(both)
    found = {
        "eager": (lambda: function(*ours), lambda: both(our_g, *ours)),
        "compiled": (lambda: forward(*ours), lambda: backward(our_g, *ours)),
        "torch": (lambda: torch_function(*theirs), torch_both),
    }
    return found | ({"products": products(layer, g.shape[-1])} if layer.out else {})


def products(layer: Layer, positions: int) -> tuple[Run, Run]:
    rng = np.random.default_rng(0)
    depth, width = layer.C * layer.kernel**2, layer.B * positions**2
    sizes = [(layer.out, depth), (depth, width), (layer.out, width)]
    weight, columns, y = (rng.standard_normal(size, np.float32) for size in sizes)
    into = [np.empty(size, np.float32) for size in sizes]

    def forward():
        np.matmul(weight, columns, out=into[2])

    def both():
        forward()
        np.matmul(y, columns.T, out=into[0])
        np.matmul(weight.T, y, out=into[1])

    return forward, both


def lenet() -> dict[str, tuple[Run, ...]]:
    """A step of a convolutional network on 64 images of MNIST's size, with SGD."""

    def layers(nn):
        return [
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
        ]  # fmt: skip

    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((64, 1, 28, 28), np.float32), rng.integers(0, 10, 64)
    model = nn.Sequential(*layers(nn))
    optimizer = ta.optim.SGD(model.parameters(), lr=0.01)
    theirs = torch.nn.Sequential(*layers(torch.nn))
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01)

    def step(images, labels, model=model, optimizer=optimizer, loss=ta.cross_entropy):
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()

    compiled, data = ta.compile(step), [ta.Tensor(images), ta.Tensor(labels)]
    their_data = [torch.from_numpy(images), torch.from_numpy(labels)]
    return {
        "eager": (lambda: step(*data),),
        "compiled": (lambda: compiled(*data),),
        "torch": (lambda: step(*their_data, theirs, their_optimizer, torch.nn.functional.cross_entropy),),
    }


def measure(found: dict[str, tuple[Run, ...]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run of each system, the least of all rounds."""
    best = {name: [float("inf")] * len(pair) for name, pair in found.items()}
    for number in range(rounds + 1):
        for name, pair in found.items():
            for i, run in enumerate(pair):
                start = time.thread_time()
                run()
                if number:  # the first call compiles
                    best[name][i] = min(best[name][i], 1e3 * (time.thread_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("words", nargs="*")
    chosen = parser.parse_args()
    if os.environ | ONE_THREAD != os.environ:  # it must be said before a library starts its threads
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | ONE_THREAD).returncode)
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch"))
    print(f"{platform.machine()}, one thread; Python {platform.python_version()}, {versions}")
    print("milliseconds, and in brackets the ratio to torch's\n")
    print(f"{'':34}" + "".join(f"{name:>17}" for name in ("eager", "compiled", "torch", "products")))
    for name in [*LAYERS, "LeNet, a step"]:
        if chosen.words and not any(word in name for word in chosen.words):
            continue
        best = measure(runs(LAYERS[name]) if name in LAYERS else lenet(), chosen.rounds)
        for i, label in enumerate([name, "    and backward"][: len(best["torch"])]):
            cells = [f"{times[i]:9.2f} ({times[i] / best['torch'][i]:4.2f})" for times in best.values()]
            print(f"{label:34}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
