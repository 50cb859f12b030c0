"""A physics-informed network (Raissi et al. 2019): a perceptron that satisfies a differential equation.

u'' = -pi^2 sin(pi x) with u(-1) = u(1) = 0, whose solution is sin(pi x). The loss is the mean of the squared residual,
so that training differentiates second derivatives. Prints the largest error, which falls below 0.01.
"""

import math

import tinyarr
from tinyarr import nn, optim

tinyarr.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 32), tinyarr.tanh, nn.Linear(32, 32), tinyarr.tanh, nn.Linear(32, 1))
optimizer = optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
grid = tinyarr.linspace(-1, 1, 200).reshape((-1, 1))  # (N, 1)
exact = (math.pi * grid).sin()


def u(x):  # (N, 1)
    return (1 - x * x) * model(x)  # zero at both ends, whatever the model says


def slope(f):
    """The derivative of a function of each element alone."""
    return tinyarr.grad(lambda x: f(x).sum())


@tinyarr.compile
def train_step():
    x = tinyarr.uniform((200, 1), -1, 1)
    residual = slope(slope(u))(x) + math.pi**2 * (math.pi * x).sin()  # (N, 1)
    loss = (residual**2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


for step in range(1001):
    optimizer.lr = 5e-3 * (1 - step / 1001)
    loss = train_step()
    if step % 250 == 0:
        with tinyarr.no_grad():
            error = (u(grid) - exact).abs().max()
        print(f"step {step:4}  loss {loss.item():9.5f}  largest error {error.item():.5f}")
