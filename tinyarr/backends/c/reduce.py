"""Reductions: each result is one thread's, cut into pieces where there are few results of much. Floor 2.

Which elements are added to which depends on the shape alone: pieces of neighbours along the reduced axes, or, where the
last axis is kept, strips of neighbouring results, whose elements are neighbours too.
"""

from __future__ import annotations

from ... import views
from ..source.row_source import Joining
from ..source.scalar_source import TYPES, cast
from .kernel import FOLDED, STRIP, CCall, COperand, fold, in_pairs, indented, kernel, loop, parallel
from .source import CExpression

STRIPS = (STRIP, 64)  # neighbouring results that are made together: as many as leave all threads something to do
BLOCK = 32  # rows of a strip that are added one after another
FEW = 8  # results: so many threads' work is not worth sharing out more finely


class _Fold(Joining):
    """A sum, max or min of elements, in C."""

    def in_pairs(self, pieces: int, width: int | str, piece: str) -> str:
        """Declares `total`, the pieces joined (kernel.in_pairs)."""
        return in_pairs(self.type, pieces, width, piece, self.start, self.join("{0}", "{1}"))

    def over(self, total: str, length: str, x: str) -> str:
        """Declares `total`, of `length` neighbours in x."""
        return fold(total, self.type, length, f"{x}[i]", self.start, self.join("{0}", "{1}"))


def _reduced(site: CCall) -> tuple[CExpression, COperand, list[int], tuple[int, ...]]:
    """Returns the operand, the result as if without the axes reduced, the axes kept and those reduced."""
    source, (out,), axes = CExpression.first(site), site.outputs, site.params["axis"]
    kept = [a for a in range(len(source.shape)) if a not in axes]
    if site.params["keepdims"]:
        out = COperand(out.name, out.dtype, tuple(out.shape[a] for a in kept), tuple(out.strides[a] for a in kept))
    return source, out, kept, axes


@kernel("sum", name="sum")
@kernel("max", name="max")
@kernel("min", name="min")
def reduction(site: CCall, *, name: str) -> str:
    source, out, kept, axes = _reduced(site)
    if not out.size:
        return ""
    how, last = _Fold(name, out.dtype.compute), len(source.shape) - 1
    if last in kept and source.shape[last] >= FEW:
        return _strips(source.ordered([*kept[:-1], *axes, last]), how, out, source.shape[last])
    return _pieces(site, source.ordered([*kept, *axes]), how, out)


def _pieces(site: CCall, source: CExpression, how: _Fold, out: COperand) -> str:
    length = views.size(source.shape) // out.size
    cut = -(-length // FOLDED)
    store = f"out[{out.offset('n', range(len(out.shape)))}] = {cast('total[0]', how.dtype, out.dtype)};"
    if not length:
        return loop("n", out.size, f"{how.type} total[] = {{{how.start}}};\n{store}", parallel(out.size, out.size))
    size = f"MIN({FOLDED}, {length} - start)" if length % FOLDED else str(FOLDED)
    begin = f"n * {length} + start"
    if cut == 1:
        size, begin = str(length), f"n * {length}"
    one = "\n".join([
        f"const int64_t start = k * {FOLDED};",
        source.run("x_part", begin, size, min(FOLDED, length), length),
        how.over("joined", size, "x_part"),
        "piece[0] = joined;",
    ])  # fmt: skip
    if cut == 1 or out.size >= FEW:
        body = f"{how.in_pairs(cut, 1, one)}\n{store}"
        return loop("n", out.size, body, parallel(out.size, out.size * length))
    scratch = site.take_scratch(out.size * cut * how.dtype.itemsize)
    job = f"int64_t n = job / {cut}, k = job % {cut};\n{how.type} *piece = pieces + job;\n{one}"
    total = how.in_pairs(cut, 1, f"piece[0] = pieces[n * {cut} + k];")
    return "\n".join([
        f"{how.type} *pieces = ({how.type} *)({scratch});",
        loop("job", out.size * cut, job, parallel(out.size * cut, out.size * length)),
        loop("n", out.size, f"{total}\n{store}", "#pragma omp single"),
    ])  # fmt: skip


def _strips(source: CExpression, how: _Fold, out: COperand, width: int) -> str:
    strip = next((n for n in STRIPS if out.size // n >= FEW), STRIPS[-1])
    outer, strips = out.size // width, -(-width // strip)
    length = views.size(source.shape) // out.size
    size = f"MIN({strip}, {width} - first)" if width % strip else str(strip)
    row = source.run("x_row", f"(outer * {length} + r) * {width} + first", size, min(strip, width), width)
    add = loop("i", size, how.join("piece[i]", "x_row[i]"), "#pragma omp simd")
    rows = f"for (int64_t r = k * {BLOCK}; r < MIN((k + 1) * {BLOCK}, {length}); r++)"
    block = "\n".join([
        loop("i", size, f"piece[i] = {how.start};"),
        f"{rows} {{\n{indented(row)}\n{indented(add)}\n}}",
    ])  # fmt: skip
    at = out.offset("outer", range(len(out.shape) - 1))
    body = "\n".join([
        f"int64_t outer = job / {strips}, first = job % {strips} * {strip};",
        how.in_pairs(max(-(-length // BLOCK), 1), size, block),
        loop("i", size, f"out[{at} + {out.strides[-1]} * (first + i)] = {cast('total[i]', how.dtype, out.dtype)};"),
    ])  # fmt: skip
    return loop("job", outer * strips, body, parallel(outer * strips, outer * width * length))


@kernel("prod")
def product(site: CCall) -> str:
    """Factors are taken in order, as NumPy takes them: whether they overflow on the way depends on it."""
    source, out, kept, axes = _reduced(site)
    if not out.size:
        return ""
    source = source.ordered([*kept, *axes])
    length, compute = views.size(source.shape) // out.size, out.dtype.compute
    store = f"out[{out.offset('n', range(len(out.shape)))}] = {cast('total', compute, out.dtype)};"
    if not length:
        return loop("n", out.size, f"{TYPES[compute]} total = 1;\n{store}", parallel(out.size, out.size))
    run = source.run("x_part", f"n * {length} + start", f"MIN({FOLDED}, {length} - start)", FOLDED, length)
    body = "\n".join([
        f"{TYPES[compute]} total = 1;",
        f"for (int64_t start = 0; start < {length}; start += {FOLDED}) {{",
        indented(f"{run}\n{loop('i', f'MIN({FOLDED}, {length} - start)', 'total *= x_part[i];')}"),
        "}",
        store,
    ])  # fmt: skip
    return loop("n", out.size, body, parallel(out.size, out.size * length))


@kernel("argmax", sign=">")
@kernel("argmin", sign="<")
def extreme_position(site: CCall, *, sign: str) -> str:
    """The first position of the largest or smallest; a NaN counts as both."""
    (x,), (out,), axis = site.inputs, site.outputs, site.params["axis"]
    kept = [a for a in range(len(x.shape)) if a != axis]
    out_axes = kept if site.params["keepdims"] else list(range(len(kept)))
    count = views.size(tuple(x.shape[a] for a in kept))
    compute = x.dtype.compute
    type_ = TYPES[compute]
    at = cast(f"x_part[{x.strides[axis]} * i]", x.dtype, compute)
    better = f"value {sign} best || (value != value && best == best)"
    body = "\n".join([
        f"const {x.type} *x_part = x + {x.offset('n', kept)};",
        f"{type_} best = {cast('x_part[0]', x.dtype, compute)};",
        "int64_t position = 0;",
        loop("i", x.shape[axis], f"{type_} value = {at};\nif ({better}) {{\n    best = value;\n    position = i;\n}}"),
        f"out[{out.offset('n', out_axes)}] = position;",
    ])  # fmt: skip
    return loop("n", count, body, parallel(count, x.size))
