"""erf for NumPy, which has none. Floor 1.

erf |x| = 1 - exp(-(x + x q(x))), where the polynomial q was fitted to -log(erfc(x)) / x - 1 by Remez's algorithm, so
that the largest relative error of erf is smallest. scalar.h says the same in C.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# For each dtype: where erf has rounded to 1, and q's coefficients, the highest power first. The fits' errors are
# 2^-27.9 and 2^-56.0.
_FITS: dict[Any, tuple[float, tuple[float, ...]]] = {
    np.dtype(np.float32): (4.0, (
        -9.255904748e-6, 1.176380056e-4, -6.328250765e-4, 1.667005769e-3, -1.603743285e-4, -1.915307555e-2,
        1.027778335e-1, 6.366193817e-1, 1.283791716e-1,
    )),
    np.dtype(np.float64): (5.93, (
        -9.74356736276880747e-17, 5.43089167922742235e-15, -1.41954566955198844e-13, 2.31283829848917254e-12,
        -2.63234430622294501e-11, 2.22113406918151051e-10, -1.43705174415843982e-9, 7.25331848555892912e-9,
        -2.86272384953331236e-8, 8.66860824461905431e-8, -1.88104897940172777e-7, 2.20314347297338709e-7,
        2.15472486915256407e-7, -1.59947515828104149e-6, 2.70099760894496952e-6, 3.50813404266974436e-6,
        -2.97837194374042681e-5, 6.45191830589720371e-5, 2.5869131960821838e-5, -5.90123138528224555e-4,
        1.69620595130468986e-3, -2.09194642769172662e-4, -1.91284470088771602e-2, 1.02772603301935281e-1,
        6.36619772367581389e-1, 1.28379167095512574e-1,
    )),
}  # fmt: skip


def erf(x: Any, out: np.ndarray) -> None:
    """The error function of float32 or float64, within 2 ulp; takes two temporaries of x's size."""
    end, (highest, *others) = _FITS[out.dtype]
    t = np.minimum(np.abs(x), out.dtype.type(end))
    q = np.multiply(t, highest)
    for c in others[:-1]:
        q += c
        q *= t
    q += others[-1]
    q *= t
    q += t
    # In float64, because NumPy's expm1 of float32 is up to 2.4 ulp off.
    np.copysign(np.expm1(np.negative(q), dtype=np.float64), x, out, casting="same_kind")
