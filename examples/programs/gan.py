"""A generative adversarial network (Goodfellow et al. 2014) learns a normal distribution, two programs in turn.

Prints mean and standard deviation of what is generated as they approach those of the data, 3 and 0.5.
"""

import tinyarr
from tinyarr import nn, optim

tinyarr.manual_seed(0)
BATCH = 256


def perceptron():
    return nn.Sequential(nn.Linear(1, 32), tinyarr.tanh, nn.Linear(32, 1))


generator, discriminator = perceptron(), perceptron()
of_generator = optim.AdamW(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
of_discriminator = optim.AdamW(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9), weight_decay=0.1)
real, fake = tinyarr.ones((BATCH, 1)), tinyarr.zeros((BATCH, 1))
loss_of = tinyarr.binary_cross_entropy_with_logits


@tinyarr.compile
def discriminate():
    """Teaches the discriminator to tell data from what is generated."""
    data = 3 + 0.5 * tinyarr.randn(BATCH, 1)
    generated = generator(tinyarr.randn(BATCH, 1)).detach()
    loss = loss_of(discriminator(data), real) + loss_of(discriminator(generated), fake)
    loss.backward()
    of_discriminator.step()
    of_discriminator.zero_grad()
    return loss


@tinyarr.compile
def generate():
    """Teaches the generator to be taken for data."""
    generated = generator(tinyarr.randn(BATCH, 1))
    loss_of(discriminator(generated), real).backward()
    of_generator.step()
    of_generator.zero_grad()
    discriminator.zero_grad()
    return generated


for step in range(3001):
    loss, generated = discriminate(), generate()
    if step % 500 == 0:
        mean, std = generated.mean().item(), generated.std().item()
        print(f"step {step:4}  loss {loss.item():.3f}  mean {mean:.2f}  std {std:.2f}")
