"""Steps of gated recurrent networks."""

from __future__ import annotations

import numpy as np

from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of
from tinyarr.ops.more.gates import gru_step, lstm_step
from tinyarr.testing import shapes


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(i, f, g, o, c):
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(x_r, x_z, x_n, h_r, h_z, h_n, h):
    z, n = sigmoid(x_z + h_z), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return (1 - z) * n + z * h


def of_lstm(i, f, g, o, c):
    return sigmoid(f) * np.abs(c) + sigmoid(i) * np.abs(np.tanh(g))  # of which the sum may cancel


def of_gru(x_r, x_z, x_n, h_r, h_z, h_n, h):
    return np.abs(x_n) + np.abs(h_n) + np.abs(h)  # in tanh's argument, and in the mean of both


def alike(n):
    """Cases of n operands of one shape."""
    return cases_of(lambda draw: Case((Operand(draw(shapes(max_side=SIDE))),) * n))


SAMPLES["lstm_step"] = Sample(lstm_step, lstm, alike(5), refuses=(), scale=of_lstm)
SAMPLES["gru_step"] = Sample(gru_step, gru, alike(7), refuses=(), scale=of_gru)
