"""erf for NumPy, which has none."""

from __future__ import annotations

import math

import numpy as np


def erf(x: np.ndarray, out: np.ndarray) -> None:
    out[...] = np.reshape([math.erf(v) for v in np.ravel(x).tolist()], np.shape(x))
