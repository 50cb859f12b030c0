"""A step of each of examples/programs, eager and compiled, beside the same step in PyTorch's eager mode.

One thread each; the three take turns, and the median of their times counts, with its ratio to PyTorch's. A first step
with tracing and the C compiler is not counted.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
if __name__ == "__main__" and os.environ | ONE_THREAD != os.environ:
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)

import runpy  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks.overhead import processor  # noqa: E402

PROGRAMS = Path(__file__).parents[1] / "examples" / "programs"
ROUNDS = 31


def perceptron(*sizes: int, activation: type = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


def training(model: nn.Module, loss_of: Callable, *, clip: bool = False, make=torch.optim.AdamW) -> Callable:
    """A step that trains a model by a loss."""
    optimizer = make(model.parameters(), lr=1e-3)

    def step():
        loss = loss_of()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def moons() -> Callable:
    model = perceptron(2, 16, 16, 1, activation=nn.ReLU)
    x, sign = torch.randn(200, 2), torch.ones(200)

    def loss():
        margin = sign * model(x).squeeze(-1)
        return F.relu(1 - margin).mean() + 1e-4 * sum((p * p).sum() for p in model.parameters())

    return training(model, loss, make=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9))


def sorter() -> Callable:
    from types import SimpleNamespace

    from benchmarks.peers import GPT2Block

    config = SimpleNamespace(n_layer=3, n_head=3, n_embd=48)

    class Sorter(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(128, 48), nn.Embedding(11, 48)
            self.h, self.ln_f = nn.Sequential(*(GPT2Block(config) for _ in range(3))), nn.LayerNorm(48)

        def forward(self, tokens):
            return self.ln_f(self.h(self.wte(tokens) + self.wpe.weight)) @ self.wte.weight.T

    model = Sorter()

    def loss():
        digits = torch.randint(0, 3, (64, 6))
        ordered = digits.sort(dim=1).values
        logits = model(torch.cat([digits, ordered], dim=1)[:, :-1])[:, 5:, :3]
        return F.cross_entropy(logits.reshape(-1, 3), ordered.reshape(-1))

    return training(model, loss, clip=True)


def makemore() -> Callable:
    contexts, following = torch.randint(0, 8, (100_000, 3)), torch.randint(0, 8, (100_000,))
    embedding, rest = nn.Embedding(8, 10), perceptron(30, 100, 8)

    def loss():
        rows = torch.randint(0, len(contexts), (256,))
        return F.cross_entropy(rest(embedding(contexts[rows]).reshape(256, -1)), following[rows])

    return training(nn.ModuleList([embedding, rest]), loss)


def vae() -> Callable:
    x, mean_of, decoder = torch.randn(2000, 8), nn.Linear(8, 2), nn.Linear(2, 8)
    log_std, log_noise = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    model = nn.ModuleList([mean_of, decoder, nn.ParameterList([log_std, log_noise])])

    def loss():
        rows = x[torch.randint(0, 2000, (200,))]
        mean = mean_of(rows)
        error = (rows - decoder(mean + log_std.exp() * torch.randn(200, 2))) * (-log_noise).exp()
        likelihood = -0.5 * (error**2 + 1.8379).sum(dim=-1) - 8 * log_noise
        divergence = 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(dim=-1)
        return (divergence - likelihood).mean()

    return training(model, loss)


def gan() -> Callable:
    generator, discriminator = perceptron(1, 32, 1), perceptron(1, 32, 1)
    loss_of, real, fake = F.binary_cross_entropy_with_logits, torch.ones(256, 1), torch.zeros(256, 1)

    def discriminate():
        generated = generator(torch.randn(256, 1)).detach()
        data = 3 + 0.5 * torch.randn(256, 1)
        return loss_of(discriminator(data), real) + loss_of(discriminator(generated), fake)

    steps = training(discriminator, discriminate), training(
        generator, lambda: loss_of(discriminator(generator(torch.randn(256, 1))), real)
    )

    def step():
        for part in steps:
            part()
        discriminator.zero_grad()

    return step


def maml() -> Callable:
    sizes = [(1, 40), (40, 40), (40, 1)]
    weights = nn.ParameterList([p for n, m in sizes for p in (torch.randn(n, m) * n**-0.5, torch.zeros(1, m))])

    def error(weights, x, y):
        for layer in range(3):
            x = x @ weights[2 * layer] + weights[2 * layer + 1]
            x = x.relu() if layer < 2 else x
        return ((x - y) ** 2).mean(dim=(1, 2)).sum()

    def loss():
        amplitude, phase = 5 * torch.rand(25, 1, 1), 3 * torch.rand(25, 1, 1)
        x, new = (10 * torch.rand(25, 10, 1) - 5 for _ in range(2))
        own = [w.expand(25, *w.shape) for w in weights]
        error(own, new, amplitude * (new - phase).sin())
        gradient = torch.autograd.grad(error(own, x, amplitude * (x - phase).sin()), own, create_graph=True)
        return error([w - 0.01 * g for w, g in zip(own, gradient, strict=True)], new, amplitude * (new - phase).sin())

    return training(weights, loss)


def neural_ode() -> Callable:
    model, truth = perceptron(2, 50, 2), torch.randn(401, 2)

    def field(x):
        return model(x**3)

    def loss():
        starts = torch.randint(0, 380, (50,))
        wanted = torch.stack([truth[starts + i] for i in range(21)])
        points = [truth[starts]]
        for _ in range(20):
            x = points[-1]
            k1 = field(x)
            k2 = field(x + 0.005 * k1)
            k3 = field(x + 0.005 * k2)
            k4 = field(x + 0.01 * k3)
            points.append(x + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        return (torch.stack(points) - wanted).abs().mean()

    return training(model, loss)


def pinn() -> Callable:
    model = perceptron(1, 32, 32, 1)

    def slope(y, x):
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    def loss():
        x = (2 * torch.rand(200, 1) - 1).requires_grad_()
        residual = slope(slope((1 - x * x) * model(x), x), x) + 9.87 * (3.14 * x).sin()
        return (residual**2).mean()

    return training(model, loss)


def newton_cg() -> Callable:
    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    x, v = torch.full((100,), -1.0, dtype=torch.float64), torch.ones(100, dtype=torch.float64)

    def step():
        _, product = torch.autograd.functional.hvp(rosenbrock, x, v)
        return product, (product * v).sum()

    return step


def convolution() -> Callable:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip
    digits = torch.rand(350)

    def loss():
        labels = torch.randint(0, 10, (64,))
        down, right = torch.randint(0, 6, (64, 1, 1)), torch.randint(0, 8, (64, 1, 1))
        row, column = torch.arange(12).reshape(12, 1) - down, torch.arange(12) - right
        inside = (row >= 0) & (row < 7) & (column >= 0) & (column < 5)
        pixels = digits[labels.reshape(-1, 1, 1) * 35 + row.clip(0, 6) * 5 + column.clip(0, 4)]
        return F.cross_entropy(model((pixels * inside + 0.2 * torch.randn(64, 12, 12)).unsqueeze(1)), labels)

    return training(model, loss)


def recurrent() -> Callable:
    lstm, output = nn.LSTM(2, 32, batch_first=True), nn.Linear(32, 1)

    def loss():
        values, marks = torch.rand(64, 30), torch.zeros(64, 30)
        marks[:, 3] = marks[:, 20] = 1
        found, _ = lstm(torch.stack([values, marks], dim=-1))
        return ((output(found[:, -1]).squeeze(-1) - (values * marks).sum(dim=1)) ** 2).mean()

    return training(nn.ModuleList([lstm, output]), loss, clip=True)


TORCH = {
    make.__name__: make
    for make in (moons, sorter, makemore, vae, gan, maml, neural_ode, pinn, newton_cg, convolution, recurrent)
}


def steps_of(name: str) -> tuple[Callable, Callable]:
    """A step of the program as it is, eager, and as it compiles it."""
    with contextlib.redirect_stdout(io.StringIO()):
        program = runpy.run_path(str(PROGRAMS / f"{name}.py"))
    if name == "gan":
        parts = [program[part] for part in ("discriminate", "generate")]
        return (lambda: [part.function() for part in parts]), (lambda: [part() for part in parts])
    if name == "newton_cg":
        arguments = program["x"], program["g"]
        return (lambda: program["curvature"].function(*arguments)), (lambda: program["curvature"](*arguments))
    return program["train_step"].function, program["train_step"]


def medians(*steps: Callable) -> list[float]:
    """Milliseconds of each, called in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found[2:]) for found in times]


def main() -> None:
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "torch"))
    print(f"{processor()}; Python {platform.python_version()}, {versions}; one thread, milliseconds a step\n")
    print(f"{'program':<12} {'lines':>5} {'eager':>8} {'compiled':>9} {'torch':>8}   of torch's: eager, compiled")
    for name, make in TORCH.items():
        lines = len((PROGRAMS / f"{name}.py").read_text(encoding="utf-8").splitlines())
        eager, compiled, torch_eager = medians(*steps_of(name), make())
        ratios = f"{eager / torch_eager:.2f}, {compiled / torch_eager:.2f}"
        print(f"{name:<12} {lines:5} {eager:8.3f} {compiled:9.3f} {torch_eager:8.3f}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
