"""How a type checker sees tinyarr: `make lint` reads this file, nothing runs it."""

from typing import Any, assert_type

import numpy as np

import tinyarr
from tinyarr import Tensor, nn, optim

x = tinyarr.ones((2, 3))
assert_type(x, Tensor)
assert_type(x.sum(axis=0, keepdims=True), Tensor)
assert_type(x.mean().sqrt() * 2 + 1 - x[0], Tensor)
assert_type(1 / x @ x.T == x, Tensor)
assert_type(x.maximum(0.5).topk(1), tuple[Tensor, Tensor])
assert_type(x.item(), Any)
assert_type(float(x.max()), float)
assert_type(x.numpy(), np.ndarray)
assert_type([row for row in x], list[Tensor])
assert_type(tinyarr.softmax(tinyarr.concat([x, x]), axis=0), Tensor)
assert_type(nn.Linear(3, 4).weight.shape, tuple[int, ...])
assert_type(optim.AdamW(nn.Linear(3, 4).parameters()).lr, Tensor)

x.summ()  # type: ignore[attr-defined]
x.sum(dim=0)  # type: ignore[call-arg]
x.view(6)  # type: ignore[attr-defined]
tinyarr.sum(x, keepdim=True)  # type: ignore[call-arg]
tinyarr.cat([x, x])  # type: ignore[attr-defined]
tinyarr.tensor([1.0])  # type: ignore[operator]
nn.MultiheadAttention(8, 2)  # type: ignore[attr-defined]
