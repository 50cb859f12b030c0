"""Operations of your own: a gradient that is derived, one written by hand, and gradcheck, which catches a wrong one.

Prints values and slopes of mish, how exactly a matrix was inverted, that gradcheck accepts the gradients of both
operations, and what it says of a gradient in which the transposes were forgotten.
"""

import tinyarr
from tinyarr import Tensor
from tinyarr.testing import GradientMismatch, gradcheck

tinyarr.manual_seed(0)


# Written for one number; works on tensors of every shape, as one kernel. The gradient is derived from the expression.
@tinyarr.elementwise
def mish(x):
    """x tanh(softplus(x)) (Misra 2019, "Mish: A self regularized non-monotonic activation function", eq. 1)."""
    return x * tinyarr.tanh(tinyarr.softplus(x))


x = Tensor([-2.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)  # (5,)
mish(x).sum().backward()
print("mish ", mish(x).detach())
print("slope", x.grad)


# Any computation, of which only the result counts: 50 steps of an iteration need not be differentiated one by one when
# the gradient is known. The function returns its result, and how the result's gradient becomes the argument's.
@tinyarr.custom_gradient
def inverse(a):  # (N, N)
    """The inverse of a matrix, by the iteration x <- x (2 - a x) (Schulz 1933)."""
    x = a.T / (abs(a).sum(axis=0).max() * abs(a).sum(axis=1).max())  # (N, N), close enough to converge
    for _ in range(50):
        x = 2 * x - x @ a @ x
    return x, lambda g: -(x.T @ g @ x.T)


a = tinyarr.eye(3, dtype=tinyarr.float64) + 0.3 * tinyarr.randn(3, 3, dtype=tinyarr.float64)  # (3, 3)
error = abs(inverse(a) @ a - tinyarr.eye(3, dtype=tinyarr.float64)).max()  # ()
print(f"\ninverse(a) @ a differs from the identity by at most {error.item():.1e}")

# gradcheck compares a gradient with differences of the function's values. Those need the precision of float64.
print("\ngradcheck of mish:   ", gradcheck(mish, x.detach().astype(tinyarr.float64)))
print("gradcheck of inverse:", gradcheck(inverse, a))


@tinyarr.custom_gradient
def wrong_inverse(a):
    x = inverse(a)
    return x, lambda g: -(x @ g @ x)  # the transposes are missing


try:
    gradcheck(wrong_inverse, a)
except GradientMismatch as error:
    print(f"\ngradcheck of wrong_inverse:\n{error}")
