"""A step of a gated recurrent network, elementwise, after the products with its weights. Floor 5."""

from __future__ import annotations

from ..activation import sigmoid
from ..elementwise import tanh
from ..elementwise_primitive import elementwise


@elementwise(outputs=("h", "c"))
def lstm_step(i, f, g, o, c):
    """The next output and cell: c' = s(f) c + s(i) tanh(g) and h' = s(o) tanh(c'), where s is the sigmoid.

    i, f, g and o are the sums that enter the input gate, the forget gate, the new cell and the output gate.
    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


@elementwise
def gru_step(x_r, x_z, x_n, h_r, h_z, h_n, h):
    """The next output: n + z (h - n), where z = s(x_z + h_z) and n = tanh(x_n + r h_n) with r = s(x_r + h_r).

    The sums that enter the reset gate, the update gate and the new output come in two parts, from input and output.
    Source: Cho et al. 2014, appendix A, with the reset gate after the product, as in PyTorch.
    """
    n = tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return n + sigmoid(x_z + h_z) * (h - n)
