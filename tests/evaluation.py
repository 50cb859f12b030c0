"""Evaluating scalar expressions with NumPy, without tensors."""

import numpy as np

from tinyarr import dtypes
from tinyarr.backends.numpy.expression import Tiles
from tinyarr.ops.typing import type_expression


def evaluate_into(outputs, typed, operands):
    """Evaluates a typed expression for operands that broadcast to the outputs' shape."""
    program = Tiles(typed, [np.shape(x) for x in operands], outputs[0].shape)
    scratch = [np.zeros(shape, dtype) for shape, dtype in program.scratch()]
    with np.errstate(all="ignore"):
        program.run(operands, outputs, scratch)


def evaluate(expressions, *operands, shape=None):
    """The expressions' values for arrays and Python scalars, which are weak."""
    types = tuple(dtypes.scalar_kind(x) or dtypes.dtype(x.dtype) for x in operands)
    typed = type_expression("test", tuple(expressions), types, tuple(not np.shape(x) for x in operands))
    shape = np.broadcast_shapes(*map(np.shape, operands)) if shape is None else shape
    outputs = [np.zeros(shape, dtype.numpy) for dtype in typed.dtypes]
    evaluate_into(outputs, typed, operands)
    return outputs
