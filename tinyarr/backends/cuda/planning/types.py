"""Dtypes as CUDA types: how elements are stored, and what they are computed with. Floor 3."""

from __future__ import annotations

from .... import dtypes
from ....dtypes import Dtype
from ...source.scalar_source import TYPES as STORED

# Small floats are structs, so that nothing can be computed with their bits by mistake.
TYPES = STORED | {d: d.name for d in (dtypes.bfloat16, dtypes.float16, *dtypes.FLOAT8)}


def files(*kinds: Dtype) -> tuple[str, ...]:
    """The files that define these dtypes' types."""
    return ("types.cuh", "../../source/scalar.h", "float8.cuh") if set(kinds) & set(dtypes.FLOAT8) else ("types.cuh",)


def packed(*kinds: Dtype) -> int:
    """Returns the number of elements of the smallest of these dtypes that fill 16 bytes."""
    return 16 // min(d.itemsize for d in kinds)


def wide(dtype: Dtype) -> str:
    """The type in which elements are computed: float for half types, their own for all others."""
    return TYPES[dtype.compute]


def function(name: str, dtype: Dtype) -> str:
    """The mathematical function in the precision in which elements are computed."""
    return name if dtype is dtypes.float64 else f"{name}f"
