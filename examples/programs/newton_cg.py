"""Newton's method with conjugate gradients (Nocedal & Wright 2006, algorithm 7.1): curvature without a Hessian.

Minimizes Rosenbrock's function of 100 variables, whose minimum is 0 at (1, ..., 1), in float64. A product of the
Hessian with a vector is a Jacobian-vector product of the gradient. Prints value and norm of the gradient, to 1e-9.
"""

import tinyarr

x = tinyarr.full(100, -1.0, dtype=tinyarr.float64)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


value_and_gradient = tinyarr.compile(tinyarr.value_and_grad(rosenbrock))


@tinyarr.compile
def curvature(x, v):
    """The Hessian at x times v, and v times that."""
    _, product = tinyarr.jvp(tinyarr.grad(rosenbrock), (x,), (v,))
    return product, (product * v).sum()


def direction(x, g):
    """Nearly the solution of Hessian d = -g; where the curvature is negative, what was found before."""
    d, r, p = tinyarr.zeros_like(x), g, -g
    square = (r * r).sum().item()
    enough = min(0.25, square**0.25) * square  # more exact as the gradient falls, so that it converges ever faster
    for _ in range(2 * len(x)):
        product, bend = curvature(x, p)
        if bend.item() <= 0:
            return d if d.any() else -g
        d = d + square / bend.item() * p
        r = r + square / bend.item() * product
        before, square = square, (r * r).sum().item()
        if square <= enough:
            break
        p = square / before * p - r
    return d


for step in range(1000):
    value, g = value_and_gradient(x)
    norm = tinyarr.vector_norm(g).item()
    if step % 20 == 0 or norm < 1e-9:
        print(f"step {step:3}  value {value.item():.3e}  norm of the gradient {norm:.1e}")
    if norm < 1e-9:
        break
    d, rate = direction(x, g), 1.0
    fall = (g * d).sum().item()
    while rosenbrock(x + rate * d).item() > value.item() + 1e-4 * rate * fall and rate > 1e-10:
        rate /= 2
    x = x + rate * d
print(f"largest error {(x - 1).abs().max().item():.1e}")
