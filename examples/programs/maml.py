"""Model-agnostic meta-learning (Finn et al. 2017, section 5.1): weights from which one step fits a new sine.

The loss after a step is differentiated through that step, which takes second derivatives. Prints the error on new
sines before and after one step from ten points: the first stays near 3, the second falls below 1.
"""

import itertools
import math

import tinyarr

tinyarr.manual_seed(0)
TASKS, POINTS, INNER_RATE = 25, 10, 0.01
SIZES = (1, 40, 40, 1)

weights = {}
for layer, (n, m) in enumerate(itertools.pairwise(SIZES)):
    weights[f"weight {layer}"] = tinyarr.nn.Parameter(tinyarr.randn(n, m) * math.sqrt(0.5 / n))
    weights[f"bias {layer}"] = tinyarr.nn.Parameter(tinyarr.zeros(m))
optimizer = tinyarr.optim.AdamW(weights.values(), lr=3e-3, weight_decay=0.0)


def error(weights, x, y):
    """Each task with weights of its own, (TASKS, n, m), or all with the same, (n, m)."""
    for layer in range(len(SIZES) - 1):
        x = x @ weights[f"weight {layer}"] + weights[f"bias {layer}"]
        x = x.relu() if layer < len(SIZES) - 2 else x
    return ((x - y) ** 2).mean(axis=(1, 2)).sum()


def draw():
    """Points and values of sines, (TASKS, POINTS, 1) each, to learn from and to be judged by."""
    amplitude = tinyarr.uniform((TASKS, 1, 1), 0.1, 5.0)
    phase = tinyarr.uniform((TASKS, 1, 1), 0.0, math.pi)
    xs = [tinyarr.uniform((TASKS, POINTS, 1), -5.0, 5.0) for _ in range(2)]
    return [t for x in xs for t in (x, amplitude * (x - phase).sin())]


@tinyarr.compile
def train_step():
    x, y, new_x, new_y = draw()
    own = {name: w.expand_dims(0) * tinyarr.ones((TASKS,) + (1,) * w.ndim) for name, w in weights.items()}
    own = {name: w.reshape((TASKS, -1, w.shape[-1])) for name, w in own.items()}
    before = error(own, new_x, new_y) / TASKS
    gradient = tinyarr.grad(error)(own, x, y)
    own = {name: w - INNER_RATE * gradient[name] for name, w in own.items()}
    after = error(own, new_x, new_y) / TASKS
    after.backward()
    optimizer.step()
    optimizer.zero_grad()
    return before, after


for step in range(1501):
    before, after = train_step()
    if step % 500 == 0:
        print(f"step {step:4}  before {before.item():.3f}  after a step {after.item():.3f}")
