"""A variational autoencoder (Kingma & Welling 2014) whose best value is known.

Encoder and decoder are linear, so that the best evidence lower bound is the likelihood of probabilistic PCA, which
the eigenvalues of the covariance give (Lucas et al. 2019, "Don't blame the ELBO!"; Tipping & Bishop 1999, eq. 8). Both
are printed, in nats a point; they agree to 0.05.
"""

import math

import numpy as np

import tinyarr
from tinyarr import Tensor, nn, optim

tinyarr.manual_seed(0)
POINTS, SIZE, LATENT = 2000, 8, 2

rng = np.random.default_rng(0)
data = rng.normal(size=(POINTS, LATENT)) @ rng.normal(size=(LATENT, SIZE)) + 0.3 * rng.normal(size=(POINTS, SIZE))
data -= data.mean(axis=0)
eigenvalues = np.linalg.eigvalsh(data.T @ data / POINTS)[::-1]
noise = eigenvalues[LATENT:].mean()
log_determinant = np.log(eigenvalues[:LATENT]).sum() + (SIZE - LATENT) * np.log(noise)
best = -0.5 * (SIZE * math.log(2 * math.pi) + log_determinant + SIZE)
x = Tensor(data, dtype=tinyarr.float32)  # (POINTS, SIZE)


class Autoencoder(nn.Module):
    def __init__(self):
        self.mean = nn.Linear(SIZE, LATENT)
        self.log_std = nn.Parameter(tinyarr.zeros(LATENT))  # the same for all points, as in the exact posterior
        self.decoder = nn.Linear(LATENT, SIZE)
        self.log_noise = nn.Parameter(tinyarr.zeros(()))

    def bound(self, x):  # (B, SIZE)
        """The evidence lower bound of each point (B,), with one draw of its latent variables."""
        mean = self.mean(x)  # (B, LATENT)
        z = mean + self.log_std.exp() * tinyarr.randn_like(mean)  # reparametrized, so that it has a gradient
        error = (x - self.decoder(z)) * (-self.log_noise).exp()
        likelihood = -0.5 * (error**2 + math.log(2 * math.pi)).sum(axis=-1) - SIZE * self.log_noise
        divergence = 0.5 * (mean**2 + (2 * self.log_std).exp() - 1 - 2 * self.log_std).sum(axis=-1)
        return likelihood - divergence


model = Autoencoder()
optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)


@tinyarr.compile
def train_step():
    rows = tinyarr.randint(0, POINTS, (200,))
    loss = -model.bound(x[rows]).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


for step in range(2001):
    optimizer.lr = 0.01 * (1 - step / 2001)
    loss = train_step()
    if step % 500 == 0:
        print(f"step {step:4}  bound {-loss.item():.3f}")
with tinyarr.no_grad():
    print(f"bound on all: {model.bound(x).mean().item():.3f}, likelihood of PCA: {best:.3f}")
