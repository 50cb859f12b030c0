"""Muon for the matrices inside a small classifier and AdamW for all else, beside AdamW alone on the same data.

Prints the loss of both while they learn which of three arms of a spiral a point lies on.
"""

import math

import tinyarr
from tinyarr import Generator, Tensor, nn
from tinyarr.optim import AdamW, Muon


def spiral(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Points (n, 2) on three arms and the number of each one's arm (n,)."""
    arm = tinyarr.randint(0, 3, (n,), generator=generator)
    radius = tinyarr.rand(n, generator=generator)
    angle = 2 * math.pi * (arm / 3 + 1.5 * radius) + 0.1 * tinyarr.randn(n, generator=generator)
    return tinyarr.stack([radius * angle.cos(), radius * angle.sin()], axis=-1), arm


def train(use_muon: bool, steps: int = 300) -> list[float]:
    generator = Generator(0)
    points, arms = spiral(600, generator)
    layers = [nn.Linear(n, m, generator=generator) for n, m in ((2, 64), (64, 64), (64, 3))]
    model = nn.Sequential(layers[0], tinyarr.relu, layers[1], tinyarr.relu, layers[2])
    hidden = [layers[1].weight] if use_muon else []
    others = [p for p in model.parameters() if not any(p is h for h in hidden)]
    optimizers = [AdamW(others, lr=3e-3)] + ([Muon(hidden, lr=0.05, weight_decay=0.0)] if use_muon else [])
    losses = []
    for _ in range(steps):
        loss = tinyarr.cross_entropy(model(points), arms)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


with_muon, with_adamw = train(True), train(False)
print("step   Muon  AdamW")
for step in (0, 50, 100, 200, 299):
    print(f"{step:4} {with_muon[step]:6.3f} {with_adamw[step]:6.3f}")
