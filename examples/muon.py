"""An optimizer of your own: Muon for the matrices of a small classifier, beside AdamW on the same data.

Prints the loss of both while they learn which of three arms of a spiral a point lies on.
"""

import math

import tinyarr
from tinyarr import Generator, Tensor, nn
from tinyarr.optim import AdamW


def orthogonalized(g: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of g = U S V^T: five steps of a polynomial that moves all singular values near 1.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (tinyarr.vector_norm(g) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose direction is orthogonalized: for matrices inside a network, not for embeddings or biases."""

    def __init__(self, parameters, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        self.parameters = list(parameters)
        if any(p.ndim != 2 for p in self.parameters):
            raise ValueError("Muon: every parameter must be a matrix: give the others to AdamW")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity = [tinyarr.zeros_like(p) for p in self.parameters]

    @tinyarr.no_grad()
    def step(self) -> None:
        for p, v in zip(self.parameters, self.velocity):
            if p.grad is None:
                continue
            v.assign(self.momentum * v + p.grad)
            direction = orthogonalized(p.grad + self.momentum * v)  # Nesterov's
            scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            p.assign((1 - self.lr * self.weight_decay) * p - self.lr * scale * direction)

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None


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
    optimizers = [AdamW(others, lr=3e-3)] + ([Muon(hidden, lr=0.05)] if use_muon else [])
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
