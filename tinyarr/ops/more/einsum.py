"""Products over chosen axes, composed of matmul: tensordot, vecdot, outer, einsum. Floor 5."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from ... import views
from ...errors import ArgumentError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from ..matmul import matmul
from ..reduce import sum
from ..shape import broadcast_to, expand_dims, moveaxis, permute_dims, reshape


def tensordot(x1: Tensor, x2: Tensor, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """The products summed over pairs of axes: the last `axes` of x1 with the first of x2, or those of two lists."""
    require_tensors("tensordot", x1=x1, x2=x2)
    if isinstance(axes, int):
        if not 0 <= axes <= builtins.min(x1.ndim, x2.ndim):
            raise ArgumentError(f"tensordot: axes is {axes}, {describe('x1', x1)}, {describe('x2', x2)}: too many")
        first, second = list(range(x1.ndim - axes, x1.ndim)), list(range(axes))
    else:
        first, second = ([views.normalize_axis("tensordot", a, x.ndim) for a in named]
                         for x, named in zip((x1, x2), axes, strict=True))
    if [x1.shape[a] for a in first] != [x2.shape[a] for a in second]:
        raise ShapeError(
            f"tensordot: x1 has shape {x1.shape}, x2 has shape {x2.shape}, axes are {first} and {second}: "
            "the axes that are summed over must be equally many and equally long"
        )
    rows = [a for a in range(x1.ndim) if a not in first]
    columns = [a for a in range(x2.ndim) if a not in second]
    n = math.prod(x1.shape[a] for a in first)
    left, right = tuple(x1.shape[a] for a in rows), tuple(x2.shape[a] for a in columns)
    x = reshape(permute_dims(x1, (*rows, *first)), (math.prod(left), n))
    y = reshape(permute_dims(x2, (*second, *columns)), (n, math.prod(right)))
    return reshape(matmul(x, y), left + right)


def vecdot(x1: Tensor, x2: Tensor, /, *, axis: int = -1) -> Tensor:
    """The sum of products along one axis, which both have; the others broadcast."""
    require_tensors("vecdot", x1=x1, x2=x2)
    if not -builtins.min(x1.ndim, x2.ndim) <= axis < 0:
        raise ArgumentError(f"vecdot: axis is {axis}, {describe('x1', x1)}, {describe('x2', x2)}: it must count from "
                            "the end, -1 the last, and both must have it")
    if x1.shape[axis] != x2.shape[axis]:
        raise ShapeError(f"vecdot: {describe('x1', x1)}, {describe('x2', x2)}: axis {axis} must be equally long")
    x, y = moveaxis(x1, axis, -1), moveaxis(x2, axis, -1)
    product = matmul(expand_dims(x, -2), expand_dims(y, -1))
    return reshape(product, product.shape[:-2])


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The products of each element of x1 (M,) with each of x2 (N,): (M, N)."""
    require_tensors("outer", x1=x1, x2=x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ShapeError(f"outer: {describe('x1', x1)}, {describe('x2', x2)}: both must have 1 dimension")
    return expand_dims(x1, -1) * x2


def einsum(subscripts: str, *operands: Tensor) -> Tensor:
    """Einstein's sum: `einsum("bij,bjk->bik", x, y)` multiplies, letters missing on the right are summed over.

    Without `->` the result has, in alphabetical order, the letters that occur once. `...` stands for axes that
    broadcast. A letter repeated in one operand takes its diagonal. Operands are combined from left to right, each
    pair in one matrix product.
    """
    require_tensors("einsum", **{f"operand {i}": x for i, x in enumerate(operands)})
    inputs, output = _parsed(subscripts, operands)
    sizes: dict[str, int] = {}
    terms = []
    for i, (letters, x) in enumerate(zip(inputs, operands, strict=True)):
        if len(letters) != x.ndim:
            raise ShapeError(f"einsum: operand {i} has shape {x.shape}, its subscripts {letters!r} name {len(letters)}")
        for letter, n in zip(letters, x.shape, strict=True):
            if sizes.setdefault(letter, n) != n and 1 not in (n, sizes[letter]):
                raise ShapeError(f"einsum: axis {letter!r} has sizes {sizes[letter]} and {n} in {subscripts!r}")
            sizes[letter] = builtins.max(sizes[letter], n) if n else 0
        terms.append(_diagonal(letters, x))
    letters, x = terms[0]
    for k, (others, y) in enumerate(terms[1:], 1):
        later = set(output).union(*(names for names, _ in terms[k + 1 :]))
        letters, x = _contract(letters, x, others, y, later, sizes)
    summed = tuple(a for a, letter in enumerate(letters) if letter not in output)
    x = sum(x, axis=summed, dtype=x.dtype) if summed else x
    letters = "".join(letter for letter in letters if letter in output)
    x = permute_dims(x, [letters.index(letter) for letter in output])
    return broadcast_to(x, tuple(sizes[letter] for letter in output))


def _parsed(subscripts: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand's axes and of the result's, `...` replaced by letters beyond ASCII."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    inputs = left.split(",")
    plain = text.replace("...", "").replace(",", "").replace("->", "")
    if not operands or len(inputs) != len(operands) or not (plain.isalpha() or not plain) or not plain.isascii():
        raise ArgumentError(f"einsum: subscripts are {subscripts!r}, {len(operands)} operands came: it must be letters "
                            "for each operand, separated by commas, then -> and the letters of the result")
    missing = [x.ndim - len(letters.replace("...", "")) for letters, x in zip(inputs, operands, strict=True)]
    most = builtins.max([n for n, letters in zip(missing, inputs, strict=True) if "..." in letters], default=0)
    unused = [chr(c) for c in range(0x100, 0x100 + builtins.max(most, 0))]
    expanded = [letters.replace("...", "".join(unused[len(unused) - n :] if n > 0 else ""))
                for letters, n in zip(inputs, missing, strict=True)]
    if arrow:
        output = right.replace("...", "".join(unused))
    else:
        once = sorted({letter for letter in plain if left.count(letter) == 1})
        output = "".join([*unused, *once])
    unknown = set(output) - set("".join(expanded))
    if unknown or len(set(output)) != len(output):
        raise ArgumentError(f"einsum: subscripts are {subscripts!r}: each letter of the result must stand there once, "
                            "and in an operand")
    return expanded, output


def _diagonal(letters: str, x: Tensor) -> tuple[str, Tensor]:
    """The operand with each letter once: elements whose repeated letters agree."""
    for letter in sorted(set(letters)):
        while letters.count(letter) > 1:
            a, b = letters.index(letter), letters.rindex(letter)
            n, view = x.shape[a], moveaxis(x, (a, b), (-2, -1))
            flat = reshape(view, (*view.shape[:-2], n * n))
            letters = "".join(k for i, k in enumerate(letters) if i not in (a, b)) + letter
            x = flat[..., :: n + 1] if n else flat
    return letters, x


def _contract(a: str, x: Tensor, b: str, y: Tensor, later: set[str], sizes: dict[str, int]) -> tuple[str, Tensor]:
    """Two operands combined by one batched matrix product; letters that nobody needs later are summed over."""
    x, a = _summed(x, a, later | set(b))
    y, b = _summed(y, b, later | set(a))
    batch = [k for k in a if k in b and k in later]
    inner = [k for k in a if k in b and k not in later]
    rows, columns = [k for k in a if k not in b], [k for k in b if k not in a]

    shared = {k: sizes[k] for k in (*batch, *inner)}
    own = dict(zip(b, y.shape, strict=True)) | dict(zip(a, x.shape, strict=True)) | shared

    def arranged(x: Tensor, letters: str, *groups: list[str]) -> Tensor:
        order = [k for group in groups for k in group]
        x = broadcast_to(permute_dims(x, [letters.index(k) for k in order]), tuple(own[k] for k in order))
        return reshape(x, tuple(math.prod(own[k] for k in group) for group in groups))

    result = matmul(arranged(x, a, batch, rows, inner), arranged(y, b, batch, inner, columns))
    letters = "".join([*batch, *rows, *columns])
    return letters, reshape(result, tuple(own[k] for k in letters))


def _summed(x: Tensor, letters: str, needed: set[str]) -> tuple[Tensor, str]:
    axes = tuple(i for i, k in enumerate(letters) if k not in needed)
    if not axes:
        return x, letters
    return sum(x, axis=axes, dtype=x.dtype), "".join(k for k in letters if k in needed)
