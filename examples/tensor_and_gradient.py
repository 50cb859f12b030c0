"""A tensor and its gradient: fits a line to noisy points by following the gradient downhill.

Prints the gradient that `backward()` finds beside the formula that one would derive by hand (they agree), then the
line as it improves, until it is close to y = 3 x - 2, from which the points were made.
"""

import tinyarr
from tinyarr import Tensor

tinyarr.manual_seed(0)

# A tensor holds numbers of one dtype in a shape. Operations work on all elements at once; shapes broadcast.
x = tinyarr.uniform((100,), -1, 1)  # (N,)
y = 3 * x - 2 + 0.1 * tinyarr.randn(100)  # (N,)

# What is to be learned asks for a gradient. Both are 0-d: a single number, shape ().
w = Tensor(0.0, requires_grad=True)
b = Tensor(0.0, requires_grad=True)

# Everything computed from w and b remembers how, ...
error = w * x + b - y  # (N,)
loss = (error**2).mean()  # ()
print(f"loss {loss}")  # a mean is a sum, divided

# ... so that backward() can walk the way back and leave d(loss)/dw in w.grad and d(loss)/db in b.grad.
loss.backward()
print(f"d(loss)/dw: backward {w.grad.item():.4f}, by hand {(2 * error * x).mean().item():.4f}")
print(f"d(loss)/db: backward {b.grad.item():.4f}, by hand {(2 * error).mean().item():.4f}")

# A step against the gradient makes the loss smaller. backward() adds to .grad, so each step starts with None.
print("\nstep    loss       w        b")
for step in range(101):
    w.grad = b.grad = None
    loss = ((w * x + b - y) ** 2).mean()
    loss.backward()
    if step % 20 == 0:
        print(f"{step:4d}  {loss.item():.4f}  {w.item():7.4f}  {b.item():7.4f}")
    with tinyarr.no_grad():  # the step itself is not part of what is differentiated
        w.assign(w - 0.2 * w.grad)
        b.assign(b - 0.2 * b.grad)
