"""A classifier of two moons, as in micrograd's demo: a perceptron with a hinge loss and weight decay.

Prints loss and accuracy, which reaches 100 %.
"""

import math

import tinyarr
from tinyarr import nn

tinyarr.manual_seed(1)

angle = math.pi * tinyarr.rand(100)  # (N / 2,)
upper = tinyarr.stack([angle.cos(), angle.sin()], axis=1)  # (N / 2, 2)
x = tinyarr.concat([upper, tinyarr.Tensor([1.0, 0.5]) - upper]) + 0.1 * tinyarr.randn(200, 2)  # (N, 2)
sign = tinyarr.concat([tinyarr.ones(100), -tinyarr.ones(100)])  # (N,): which moon

model = nn.Sequential(nn.Linear(2, 16), tinyarr.relu, nn.Linear(16, 16), tinyarr.relu, nn.Linear(16, 1))
optimizer = tinyarr.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


@tinyarr.compile
def train_step():
    margin = sign * model(x).squeeze(-1)  # (N,): positive where the point is on its side
    loss = tinyarr.relu(1 - margin).mean() + 1e-4 * sum((p * p).sum() for p in model.parameters())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss, (margin > 0).mean()


for step in range(201):
    loss, accuracy = train_step()
    if step % 50 == 0:
        print(f"step {step:3}  loss {loss.item():.4f}  accuracy {accuracy.item():.1%}")
