"""NumPy functions of the scalar language's operations; and those that NumPy lacks. Floor 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .erf import erf


def _where(condition: Any, x: Any, y: Any, out: np.ndarray) -> None:
    # NumPy's own mispredicts a branch at every other element of a mask without order: 4 to 5 ns, where three passes
    # over bits take 0.6. They read y once more than they write over it, and cost small tensors 1 us.
    if out.size < 4096 or np.may_share_memory(out, y) or np.may_share_memory(out, condition):
        np.copyto(out, np.where(condition, x, y))
    else:
        x, y, out = (np.asarray(a).view(f"u{out.itemsize}") for a in (x, y, out))
        np.bitwise_xor(np.multiply(np.bitwise_xor(x, y, out), condition, out), y, out)


def _power(x: Any, y: Any, out: np.ndarray) -> None:
    """x**y; where NumPy raises, for integers and negative y, 1 / x**-y rounded toward zero, and 0 for x = 0.

    NumPy takes the square root, which differs from a power at -0.0 and -inf, where y is 0.5 for all elements.
    """
    if out.dtype.kind == "f":
        np.power(x, y, out)
        if np.ndim(y):
            np.sqrt(x, out, where=np.equal(y, 0.5))
    elif not np.any(negative := np.less(y, 0)):
        np.power(x, y, out)
    else:
        quotient = np.where(np.abs(x) == 1, np.where(np.bitwise_and(y, 1), x, 1), 0)
        np.power(x, np.where(negative, 0, y), out)
        np.copyto(out, quotient, where=negative)


def _cast(x: Any, out: np.ndarray) -> None:
    # NumPy's loops for uint32 differ from one another where a number does not fit; this is what its scalar loop gives.
    if out.dtype == np.uint32 and x.dtype.kind == "f":
        x = x.astype(np.int64)
    np.copyto(out, x, casting="unsafe")


def _rounding(ufunc: np.ufunc) -> Callable:
    """Integers are whole already; NumPy would compute them in floating point."""

    def function(x: Any, out: np.ndarray) -> None:
        (ufunc if out.dtype.kind == "f" else np.positive)(x, out=out)

    return function


FUNCTIONS: dict[str, Callable] = {
    name: getattr(np, name)
    for name in (
        "add subtract multiply divide floor_divide remainder negative abs sign maximum minimum sqrt exp expm1 "
        "log log1p log2 log10 sin cos tan sinh cosh tanh hypot copysign nextafter equal not_equal less "
        "less_equal greater greater_equal isnan isinf isfinite signbit bitwise_and bitwise_or bitwise_xor"
    ).split()
}
# NumPy has several loops for these, which differ in the last bit, and takes another when one writes over its operand
# or walks backwards.
APPROXIMATE = frozenset(
    "power exp expm1 log log1p log2 log10 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh "
    "hypot erf".split()
)
FUNCTIONS |= {
    "power": _power,
    "floor": _rounding(np.floor),
    "ceil": _rounding(np.ceil),
    "trunc": _rounding(np.trunc),
    "round": _rounding(np.rint),
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": erf,
    "bitwise_invert": np.invert,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
    "where": _where,
    "cast": _cast,
}


_ROUNDS = 10
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def philox_scratch(n: int) -> list[tuple[tuple[int, ...], Any]]:
    """The working memory of random_bits for `n` elements: the four words and two products, as 64-bit integers."""
    return [((6, n // 4 + 2), np.uint64)]


def random_bits(
    key: int, counter: int, stream: int, start: int, out: np.ndarray, scratch: Sequence[np.ndarray]
) -> None:
    """Words start, start+1, ... of a draw: word i is word i % 4 of block i // 4.

    Philox 4x32-10 (Salmon et al. 2011, section 3.3) of the 128-bit counter (block number, stream, counter) and the
    64-bit key.
    """
    first, last = start // 4, (start + out.size + 3) // 4
    c0, c1, c2, c3, p0, p1 = scratch[0][:, : last - first]
    c0[...] = np.arange(first, last, dtype=np.uint64)
    np.right_shift(c0, np.uint64(32), c1)
    np.bitwise_and(c0, _LOW, c0)
    np.add(c1, np.uint64(stream << 16), c1)
    c2[...] = counter & 0xFFFFFFFF
    c3[...] = counter >> 32
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        np.multiply(c0, _M0, p0)
        np.multiply(c2, _M1, p1)
        np.right_shift(p1, np.uint64(32), c0)
        np.bitwise_xor(c0, c1, c0)
        np.bitwise_xor(c0, np.uint64(k0), c0)
        np.bitwise_and(p1, _LOW, c1)
        np.right_shift(p0, np.uint64(32), c2)
        np.bitwise_xor(c2, c3, c2)
        np.bitwise_xor(c2, np.uint64(k1), c2)
        np.bitwise_and(p0, _LOW, c3)
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    # The four words of a block stand in four arrays; `out` takes each with a stride of 4, cut to its own range.
    flat = out.reshape(-1)
    for word, c in enumerate((c0, c1, c2, c3)):
        skip = max(-(-(start - 4 * first - word) // 4), 0)
        begin = 4 * (first + skip) + word - start
        target = flat[begin::4]
        np.copyto(target, c[skip : skip + target.size], casting="unsafe")
