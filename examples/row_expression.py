"""Row expressions of your own: a norm of queries and keys, and a loss of capped logits, each one kernel.

Prints that gradcheck accepts their gradients and the gradients of those, which are derived, and how far C's results are
from NumPy's.
"""

import numpy as np

import tinyarr
from tinyarr import Tensor, row, rowwise
from tinyarr.testing import gradcheck, gradgradcheck


@rowwise(outputs=("out", "rstd"))
def qk_norm(x, weight, *, eps):
    """x / sqrt(mean(x**2) + eps) * weight, over the channels of a head; with rstd, from which the gradient is made."""
    rstd = tinyarr.rsqrt(row.mean(x * x) + eps)
    return x * rstd * weight, rstd


@rowwise
def capped_loss(logits, target, *, cap):
    """Cross-entropy of cap * tanh(logits / cap), for a class (..., 1): a logit can't leave [-cap, cap]."""
    capped = cap * tinyarr.tanh(logits / cap)
    return row.logsumexp(capped) - row.at(capped, target)


def main() -> None:
    rng = np.random.default_rng(0)
    q, weight = Tensor(rng.standard_normal((2, 3, 4, 8))), Tensor(rng.standard_normal(8))  # B H T D
    logits, target = Tensor(rng.standard_normal((6, 10)) * 20), Tensor(rng.integers(0, 10, (6, 1)))
    for name, function, inputs in (
        ("qk_norm", lambda q, w: qk_norm(q, w, eps=1e-6)[0], (q, weight)),
        ("capped_loss", lambda x: capped_loss(x, target, cap=15.0), (logits,)),
    ):
        gradcheck(function, *inputs)
        gradgradcheck(function, *inputs)
        print(f"{name}: gradcheck and gradgradcheck agree")
        apart = tinyarr.max(tinyarr.abs(tinyarr.compile(function)(*inputs) - function(*inputs))).item()
        print(f"{name}: C and NumPy differ by {apart:.0e} at most")


if __name__ == "__main__":
    main()
