"""A multilayer perceptron learns which arm of a spiral a point belongs to, and draws what it has learned.

Prints loss and accuracy, which passes 98 %, and writes multilayer_perceptron.png, or the file named as an argument.
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import tinyarr
from tinyarr import Tensor, nn, optim

out = sys.argv[1] if len(sys.argv) > 1 else "multilayer_perceptron.png"
tinyarr.manual_seed(0)
# Three arms of 200 points. Each turns as it goes outwards, and starts a third of a circle after the one before.
labels = tinyarr.arange(600) // 200  # (N,): 0, 1 or 2
radius = tinyarr.rand(600)  # (N,)
angle = 2 * np.pi * labels / 3 + 4.5 * radius + 0.2 * tinyarr.randn(600)  # (N,)
x = tinyarr.stack([radius * tinyarr.cos(angle), radius * tinyarr.sin(angle)], axis=1)  # (N, 2)


class MultilayerPerceptron(nn.Module):
    def __init__(self):
        self.hidden = nn.Linear(2, 100)
        self.output = nn.Linear(100, 3)

    def forward(self, x):  # (N, 2)
        h = tinyarr.relu(self.hidden(x))  # (N, 100)
        return self.output(h)  # (N, 3): the logits, a score for each arm


model = MultilayerPerceptron()
optimizer = optim.AdamW(model.parameters(), lr=0.03)
losses = []
for step in range(201):
    logits = model(x)  # (N, 3)
    loss = tinyarr.cross_entropy(logits, labels)  # ()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 25 == 0:
        accuracy = (logits.argmax(axis=-1) == labels).mean()  # ()
        print(f"step {step:3d}  loss {loss.item():.4f}  accuracy {accuracy.item():.1%}")

colors = Tensor([[0.84, 0.37, 0.00], [0.00, 0.45, 0.70], [0.00, 0.62, 0.45]])  # (3, RGB)
plane = Tensor(np.mgrid[-1.2:1.2:300j, -1.2:1.2:300j].T, dtype=tinyarr.float32)  # (300, 300, 2)
with tinyarr.no_grad():
    regions = tinyarr.softmax(model(plane)) @ colors  # (300, 300, RGB): each color as strong as its arm is likely

left, right = Figure(figsize=(11, 4.8), layout="constrained").subplots(1, 2)
left.semilogy(losses)
left.set(title="Loss", xlabel="step", ylabel="cross-entropy (nats)")
right.imshow(0.5 + 0.5 * regions.numpy(), origin="lower", extent=(-1.2, 1.2, -1.2, 1.2))
right.scatter(*x.numpy().T, c=colors[labels].numpy(), s=14, edgecolors="white", linewidths=0.5)
right.set(title="The points, and which arm the model sees where", xlabel="x[:, 0]", ylabel="x[:, 1]")
right.figure.savefig(out, dpi=150)
print(f"wrote {out}")
