"""A GPT that learns to sort, as in minGPT's demo: six digits in, the same digits in order out.

Prints the loss of the sorted half, then how many of 1,000 new sequences it sorts without an error: 99 % and more.
"""

import tinyarr
from models.gpt2 import GPT2, Config
from tinyarr import optim

tinyarr.manual_seed(0)
LENGTH, DIGITS = 6, 3

model = GPT2(Config(vocab_size=DIGITS, block_size=2 * LENGTH - 1, n_layer=3, n_head=3, n_embd=48))
optimizer = optim.AdamW(model.parameters(), lr=2e-3)


def draw(n):
    """Digits (n, LENGTH), and the same in order."""
    digits = tinyarr.randint(0, DIGITS, (n, LENGTH))
    return digits, digits.sort(axis=1)


@tinyarr.compile
def train_step():
    digits, ordered = draw(64)
    both = tinyarr.concat([digits, ordered], axis=1)  # (B, 2 LENGTH)
    logits = model(both[:, :-1])[:, LENGTH - 1 :]  # only what comes after the last digit can be known
    loss = tinyarr.cross_entropy(logits, ordered)
    loss.backward()
    optim.clip_grad_norm(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


for step in range(201):
    loss = train_step()
    if step % 50 == 0:
        print(f"step {step:3}  loss {loss.item():.4f}")

digits, ordered = draw(1000)
written = digits
with tinyarr.no_grad():
    for _ in range(LENGTH):
        written = tinyarr.concat([written, model(written)[:, -1:].argmax(axis=-1)], axis=1)
right = (written[:, LENGTH:] == ordered).all(axis=1).mean()  # ()
print(f"sorted {right.item():.1%} of 1000")
