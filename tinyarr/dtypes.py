"""Dtype: names, sizes, and what two of them promote to. Floor 1.

Promotion follows the Python Array API standard (2024.12, "Type promotion rules"), extended in four places where
the standard leaves the result open, as PyTorch and JAX extend it:
  - an integer with a floating dtype gives the floating one;
  - bool with any other dtype gives the other one;
  - bfloat16 with float16 gives float32, the smallest dtype that holds both;
  - float8 promotes with nothing but itself, because a silent cast would lose its scale.
Python scalars are weak: they take the dtype of the tensor they meet, unless they are of a higher kind
(bool < integer < floating), and then the default dtype of their kind.
"""

from __future__ import annotations

import builtins
import functools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .errors import DtypeError

KINDS = ("bool", "unsigned", "signed", "float")


class Dtype:
    """An element type. There is exactly one object a dtype, so `is` compares them.

    Attributes: `name`, `itemsize` in bytes, `kind` (one of KINDS), `numpy` (the np.dtype that stores it), and
    `compute`, the dtype in which expressions are evaluated: float32 for the half and quarter types, else itself.
    """

    __slots__ = ("compute", "is_float", "itemsize", "kind", "name", "numpy")

    name: str
    itemsize: int
    kind: str
    is_float: bool
    numpy: np.dtype
    compute: Dtype

    def __init__(self, name: str, kind: str, numpy_type, compute: Dtype | None = None):
        self.name = name
        self.kind = kind
        self.numpy = np.dtype(numpy_type)
        self.itemsize = self.numpy.itemsize
        self.is_float = kind == "float"
        self.compute = compute or self

    def __repr__(self) -> str:
        return f"tinyarr.{self.name}"

    def __reduce__(self):
        return dtype, (self.name,)


bool = Dtype("bool", "bool", np.bool_)
uint8 = Dtype("uint8", "unsigned", np.uint8)
uint16 = Dtype("uint16", "unsigned", np.uint16)
uint32 = Dtype("uint32", "unsigned", np.uint32)
uint64 = Dtype("uint64", "unsigned", np.uint64)
int8 = Dtype("int8", "signed", np.int8)
int16 = Dtype("int16", "signed", np.int16)
int32 = Dtype("int32", "signed", np.int32)
int64 = Dtype("int64", "signed", np.int64)
float64 = Dtype("float64", "float", np.float64)
float32 = Dtype("float32", "float", np.float32)
float16 = Dtype("float16", "float", np.float16, compute=float32)
bfloat16 = Dtype("bfloat16", "float", ml_dtypes.bfloat16, compute=float32)
float8_e4m3fn = Dtype("float8_e4m3fn", "float", ml_dtypes.float8_e4m3fn, compute=float32)
float8_e5m2 = Dtype("float8_e5m2", "float", ml_dtypes.float8_e5m2, compute=float32)

ALL = (
    bool, uint8, uint16, uint32, uint64, int8, int16, int32, int64,
    float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2,
)  # fmt: skip
FLOAT8 = (float8_e4m3fn, float8_e5m2)
DEFAULT = {"bool": bool, "signed": int64, "float": float32}

_by_name = {d.name: d for d in ALL}
_by_numpy = {d.numpy: d for d in ALL}
# The types of weak scalars; the compiler adds what stands for a float whose value a call will bring.
SCALARS: dict[type, str] = {builtins.bool: "bool", int: "signed", float: "float"}


def dtype(x) -> Dtype:
    """The Dtype that `x` names: a Dtype, its name, a NumPy dtype or scalar type, or Python's bool, int, float.

    Raises DtypeError for anything else (complex numbers and strings among them).
    """
    if isinstance(x, Dtype):
        return x
    if isinstance(x, str) and x in _by_name:
        return _by_name[x]
    if isinstance(x, type) and x in SCALARS:
        return DEFAULT[SCALARS[x]]
    try:
        if x is None:  # which NumPy takes for float64
            raise TypeError
        return _by_numpy[np.dtype(x).newbyteorder("=")]
    except (TypeError, KeyError):
        names = ", ".join(_by_name)
        raise DtypeError(f"dtype: {x!r} is not a dtype of tinyarr: use one of {names}") from None


def scalar_kind(x) -> str | None:
    """The kind of a Python scalar ('bool', 'signed' or 'float'), or None for anything else."""
    return SCALARS.get(type(x))


def python_scalar(x):
    """A NumPy scalar or 0-d array as a Python scalar, an int of another class as an int; anything else as it is."""
    if isinstance(x, np.generic | np.ndarray):
        return x.item() if x.ndim == 0 else x
    return int(x) if issubclass(type(x), int) and type(x) not in (builtins.bool, int) else x


@functools.cache
def promote(a: Dtype, b: Dtype) -> Dtype:
    """The dtype that holds the values of both; the module's docstring states the rules."""
    if a is b:
        return a
    if a in FLOAT8 or b in FLOAT8:
        if bool in (a, b):
            return b if a is bool else a
        raise DtypeError(
            f"promotion: {a.name} and {b.name} have no common dtype: float8 has no implicit casts, use astype"
        )
    if KINDS.index(a.kind) > KINDS.index(b.kind):
        a, b = b, a
    if a.kind == "bool" or (b.kind == "float" and a.kind != "float"):
        return b
    if a.kind == b.kind:
        if a.itemsize == b.itemsize:
            return float32  # float16 with bfloat16
        return a if a.itemsize > b.itemsize else b
    if a.itemsize < b.itemsize:  # unsigned with signed
        return b
    if a is uint64:
        raise DtypeError("promotion: uint64 and a signed integer have no common integer dtype: use astype")
    return {1: int16, 2: int32, 4: int64}[a.itemsize]


@functools.cache
def promote_weak(a: Dtype, kind: str) -> Dtype:
    """The dtype of a tensor of dtype `a` combined with a Python scalar of `kind`."""
    if KINDS.index(kind) > KINDS.index("signed" if a.kind == "unsigned" else a.kind):
        return DEFAULT[kind]
    return a


def result_type(*operands) -> Dtype:
    """The dtype of an operation on `operands`: dtypes, tensors, and Python and NumPy scalars, which are weak.

    With scalars alone, the default dtype of the highest kind (int64, float32, bool).
    Raises DtypeError where two dtypes have no common one.
    """
    strong: Dtype | None = None
    kinds = []
    for x in operands:
        kind = scalar_kind(python_scalar(x))
        if kind:
            kinds.append(kind)
        else:
            d = dtype(x if isinstance(x, type) else getattr(x, "dtype", x))
            strong = d if strong is None else promote(strong, d)
    if not kinds:
        if strong is None:
            raise DtypeError("result_type: needs at least one operand")
        return strong
    highest = max(kinds, key=KINDS.index)
    return DEFAULT[highest] if strong is None else promote_weak(strong, highest)


def can_cast(source, target, /) -> builtins.bool:
    """Returns whether promotion takes `source` (a dtype or tensor) to the dtype `target`, so that no value is lost."""
    source, target = dtype(getattr(source, "dtype", source)), dtype(target)
    try:
        return promote(source, target) is target
    except DtypeError:
        return False


_KIND_NAMES = {
    "bool": ("bool",),
    "signed integer": ("signed",),
    "unsigned integer": ("unsigned",),
    "integral": ("signed", "unsigned"),
    "real floating": ("float",),
    "complex floating": (),
    "numeric": ("signed", "unsigned", "float"),
}


def kinds_named(name: str) -> tuple[str, ...]:
    """The kinds (see KINDS) that a name of the Array API standard stands for. Raises DtypeError for an unknown one."""
    if name not in _KIND_NAMES:
        raise DtypeError(f"isdtype: kind is {name!r}: use a dtype, one of {', '.join(_KIND_NAMES)}, or a tuple of them")
    return _KIND_NAMES[name]


def isdtype(dtype: Dtype, kind: Dtype | str | tuple) -> builtins.bool:
    """Returns whether a dtype is `kind`: a dtype, a kind of the Array API standard by name, or one of a tuple.

    >>> import tinyarr
    >>> tinyarr.isdtype(tinyarr.bfloat16, "real floating"), tinyarr.isdtype(tinyarr.int8, ("bool", "unsigned integer"))
    (True, False)
    """
    if isinstance(kind, tuple):
        return any([isdtype(dtype, k) for k in kind])
    return dtype is kind if isinstance(kind, Dtype) else dtype.kind in kinds_named(kind)


class FloatInfo(NamedTuple):
    """Bits, the distance from 1 to the next number, the largest and lowest number, the smallest normal one."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: Dtype


class IntegerInfo(NamedTuple):
    """Bits, the largest and the smallest number."""

    bits: int
    max: int
    min: int
    dtype: Dtype


def _info(operation: str, x: Any, kinds: tuple[str, ...]) -> Dtype:
    found = dtype(getattr(x, "dtype", x))
    if found.kind not in kinds:
        raise DtypeError(f"{operation}: {found.name} came: it must be one of the {' or '.join(kinds)} dtypes")
    return found


def finfo(x, /) -> FloatInfo:
    """The limits of a floating dtype, or of a tensor's. Raises DtypeError for others."""
    d = _info("finfo", x, ("float",))
    info = ml_dtypes.finfo(d.numpy)
    return FloatInfo(info.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), d)


def iinfo(x, /) -> IntegerInfo:
    """The limits of an integer dtype, or of a tensor's. Raises DtypeError for others."""
    d = _info("iinfo", x, ("signed", "unsigned"))
    info = np.iinfo(d.numpy)
    return IntegerInfo(info.bits, int(info.max), int(info.min), d)
