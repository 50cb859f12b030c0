"""A neural ordinary differential equation (Chen et al. 2018) learns the field of a spiral from points on it.

The truth is dx/dt = A x^3 of the paper's demo. Fourth-order Runge-Kutta steps are differentiated through. Prints the
mean error of the whole path that the learned field gives, from its start alone: below 0.15.
"""

import tinyarr
from tinyarr import Tensor, nn, optim

tinyarr.manual_seed(0)
POINTS, AHEAD, DT = 400, 20, 0.01
A = Tensor([[-0.1, 2.0], [-2.0, -0.1]])


def runge_kutta(field, x):
    """x a time DT later."""
    k1 = field(x)
    k2 = field(x + DT / 2 * k1)
    k3 = field(x + DT / 2 * k2)
    k4 = field(x + DT * k3)
    return x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def path(field, x, steps):
    """x (..., 2) and what it becomes, (steps + 1, ..., 2)."""
    points = [x]
    for _ in range(steps):
        points.append(runge_kutta(field, points[-1]))
    return tinyarr.stack(points)


truth = path(lambda x: x**3 @ A, Tensor([2.0, 0.0]), POINTS)  # (POINTS + 1, 2)
perceptron = nn.Sequential(nn.Linear(2, 50), tinyarr.tanh, nn.Linear(50, 2))
optimizer = optim.AdamW(perceptron.parameters(), lr=1e-2, weight_decay=0.0)


def field(x):
    return perceptron(x**3)


@tinyarr.compile
def train_step():
    starts = tinyarr.randint(0, POINTS - AHEAD, (50,))  # (B,): numbers of points
    wanted = tinyarr.stack([truth[starts + i] for i in range(AHEAD + 1)])  # (AHEAD + 1, B, 2)
    loss = (path(field, truth[starts], AHEAD) - wanted).abs().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


for step in range(2001):
    optimizer.lr = 1e-2 * (1 - step / 2001)
    loss = train_step()
    if step % 500 == 0:
        print(f"step {step:4}  loss {loss.item():.5f}")
with tinyarr.no_grad():
    print(f"error of the path: {(path(field, truth[0], POINTS) - truth).abs().mean().item():.4f}")
