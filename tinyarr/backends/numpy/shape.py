"""Joining tensors, and placing one in zeros. Floor 1."""

from __future__ import annotations

import numpy as np

from .registry import kernel


@kernel("concat", takes_lists=True)
def concat(inputs, outputs, *, axis):
    np.concatenate(inputs, axis, outputs[0])


@kernel("unslice")
def unslice(x, out, *, shape, starts, stops, steps):
    out.fill(0)
    # A stop of -1 with a negative step means 'down to the first element', which a Python slice spells None.
    where = tuple(slice(a, None if b < 0 else b, s) for a, b, s in zip(starts, stops, steps, strict=True))
    if x.size:  # an empty slice may start at -1, before the first element, which Python takes for the last
        np.copyto(out[(*where, ...)], x)
