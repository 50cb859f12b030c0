"""Matrix products whose result is worked on before it is stored: products fused with what follows. Floor 2.

The product is not rounded in between, so that the result is closer to the exact one than the parts' is.
"""

from __future__ import annotations

from ..transforms import vjp
from .activation import gelu
from .matmul import matmul
from .primitive import Primitive


def _product(shapes, types):
    (m, _), (_, n) = shapes[:2]
    return (m, n), types[0]


def _biased(x, y, bias):
    return matmul(x, y) + bias


def _gelu(x, y, bias):
    before = _biased(x, y, bias)
    return before, gelu(before, approximate="tanh")


def _gelu_gradient(x, y, before):
    _, pull = vjp(lambda before: gelu(before, approximate="tanh"), before)
    return pull(matmul(x, y))[0]


# x (m, k), y (k, n), bias (n,): x y + bias; before = x y + bias and its GELU; x y times GELU's slope at before (m, n).
matmul_bias = Primitive(
    "matmul_bias", lambda shapes, types: [_product(shapes, types)], inputs=("x", "y", "bias"), composite=_biased
).no_gradient()
matmul_bias_gelu = Primitive(
    "matmul_bias_gelu",
    lambda shapes, types: [_product(shapes, types)] * 2,
    inputs=("x", "y", "bias"),
    outputs=("before", "out"),
    composite=_gelu,
).no_gradient()
matmul_gelu_gradient = Primitive(
    "matmul_gelu_gradient",
    lambda shapes, types: [_product(shapes, types)],
    inputs=("x", "y", "before"),
    composite=_gelu_gradient,
).no_gradient()
