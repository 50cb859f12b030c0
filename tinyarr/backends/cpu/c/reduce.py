"""Reductions: each result is one thread's, cut into pieces where there are few results of much."""

from __future__ import annotations

from .... import views
from ....dtypes import Dtype
from ...scalar_source import TYPES, cast
from .kernel import Operand, Site, indented, kernel, loop, parallel, unravel

PIECE = 4096  # elements that are added one after another (by as many lanes as a vector has)
STRIP = 64  # neighbouring results that are made together


@kernel("sum", "prod", "max", "min")
def reduction(site: Site) -> str:
    name, axes = site.call.primitive.name, site.params["axis"]
    (x,), (out,) = site.inputs, site.outputs
    kept = [a for a in range(len(x.shape)) if a not in axes]
    if site.params["keepdims"]:
        sizes = [out.strides[a] for a in kept]
        out = Operand(out.name, out.dtype, tuple(x.shape[a] for a in kept), tuple(sizes))
    compute = out.dtype.compute
    first = {"sum": "0", "prod": "1"}.get(name)
    reduced = tuple(x.shape[a] for a in axes)
    count, length = views.size(tuple(x.shape[a] for a in kept)), views.size(reduced)
    if not count:
        return ""

    def value(position: str) -> str:
        return cast(f"x_part[{position}]", x.dtype, compute)

    def combined(total: str, y: str) -> str:
        if name in ("sum", "prod"):
            return f"{total} {'+' if name == 'sum' else '*'}= {y};"
        if compute.is_float:
            return f"{total} = {name}imum_{compute.name}({total}, {y});"
        return f"{total} = {total} {'>' if name == 'max' else '<'} {y} ? {total} : {y};"

    type_ = TYPES[compute]
    shape, (strides,) = views.merge_axes(reduced, [tuple(x.strides[a] for a in axes)])
    begin = first or value("0")
    if kept and x.strides[kept[-1]] == 1 and strides[-1] != 1 and x.shape[kept[-1]] >= 8:
        return _strips(site, x, out, kept, shape, strides, combined, begin)

    # A result at a time; the reduced elements in row-major order, the innermost axis in pieces of fixed length.
    inner, step = shape[-1], strides[-1]
    outer = views.size(shape[:-1])
    directive = f"#pragma omp simd reduction({'+' if name == 'sum' else '*'}:piece)" if first else ""
    position = ("" if step == 1 else f"{step} * ") + ("j" if inner <= PIECE else "(start + j)")
    size = str(inner) if inner <= PIECE else f"MIN({PIECE}, {inner} - start)"
    body = loop("j", size, combined("piece", value(position)), directive)
    body = f"{type_} piece = {begin};\n{body}\n{combined('total', 'piece')}"
    declare = f"const {x.type} *x_part = x_outer + {unravel('k', shape[:-1], strides[:-1])};"
    if inner > PIECE:
        body = f"for (int64_t start = 0; start < {inner}; start += {PIECE}) {{\n{indented(body)}\n}}"
    if count < 8 and length > 16 * PIECE and first:
        return _pieces(site, x, out, kept, shape, strides, combined, first, compute, value)
    if length:
        body = loop("k", outer, f"{declare}\n{body}")
    start = first if first else cast("x_outer[0]", x.dtype, compute)
    body = "\n".join([
        f"const {x.type} *x_outer = x + {x.offset('n', kept)};",
        f"{type_} total = {start};",
        body if length else "",
        f"out[{out.offset('n', range(len(kept)))}] = {cast('total', compute, out.dtype)};",
    ])  # fmt: skip
    return loop("n", count, body, parallel(count, count * length))


def _strips(site, x, out, kept, shape, strides, combined, begin) -> str:
    """Neighbouring results together: their elements are neighbours too. Rows are added 64 at a time."""
    type_ = TYPES[out.dtype.compute]
    width, length = x.shape[kept[-1]], views.size(shape)
    blocks = -(-width // STRIP)
    outer = views.size(tuple(x.shape[a] for a in kept[:-1]))
    size = f"MIN({STRIP}, {width} - first)" if width % STRIP else str(STRIP)
    x_row = f"const {x.type} *x_row = x_outer + {unravel('k', shape, strides)};"
    load = begin.replace("x_part", "x_outer").replace("[0]", "[i]")
    inside = loop("i", size, combined("piece[i]", cast("x_row[i]", x.dtype, out.dtype.compute)), "#pragma omp simd")
    rows = f"for (int64_t k = from; k < MIN(from + 64, {length}); k++) {{\n{indented(x_row + chr(10) + inside)}\n}}"
    fresh = loop("i", size, f"piece[i] = {load};")
    join = loop("i", size, combined("total[i]", "piece[i]"))
    block = "\n".join([fresh, rows, join])
    blocked = f"for (int64_t from = 0; from < {length}; from += 64) {{\n{indented(block)}\n}}"
    store = f"out[{out.offset('n', range(len(kept) - 1))} + {out.strides[-1]} * (first + i)]"
    body = "\n".join([
        f"int64_t n = job / {blocks}, first = job % {blocks} * {STRIP};",
        f"const {x.type} *x_outer = x + {x.offset('n', kept[:-1])} + first;",
        f"{type_} total[{STRIP}], piece[{STRIP}];",
        loop("i", size, f"total[i] = {load};"),
        blocked,
        loop("i", size, f"{store} = {cast('total[i]', out.dtype.compute, out.dtype)};"),
    ])  # fmt: skip
    return loop("job", outer * blocks, body, parallel(outer * blocks, outer * width * length))


def _pieces(site, x, out, kept, shape, strides, combined, first, compute: Dtype, value) -> str:
    """Few results of much: pieces of fixed length by all threads, then their totals in order."""
    type_ = TYPES[compute]
    count, inner = views.size(tuple(x.shape[a] for a in kept)), shape[-1]
    outer, cut = views.size(shape[:-1]), -(-inner // PIECE)
    scratch = site.take_scratch(count * outer * cut * compute.itemsize)
    step = "" if strides[-1] == 1 else f"{strides[-1]} * "
    operator = "+" if site.call.primitive.name == "sum" else "*"
    body = "\n".join([
        f"int64_t n = job / {outer * cut}, k = job / {cut} % {outer}, start = job % {cut} * {PIECE};",
        f"const {x.type} *x_part = x + {x.offset('n', kept)} + {unravel('k', shape[:-1], strides[:-1])};",
        f"{type_} piece = {first};",
        loop("j", f"MIN({PIECE}, {inner} - start)", combined("piece", value(f"{step}(start + j)")),
             f"#pragma omp simd reduction({operator}:piece)"),
        "pieces[job] = piece;",
    ])  # fmt: skip
    total = "\n".join([
        f"{type_} total = {first};",
        loop("k", outer * cut, combined("total", f"pieces[n * {outer * cut} + k]")),
        f"out[{out.offset('n', range(len(kept)))}] = {cast('total', compute, out.dtype)};",
    ])  # fmt: skip
    return "\n".join([
        f"{type_} *pieces = ({type_} *)({scratch});",
        loop("job", count * outer * cut, body, "#pragma omp for schedule(static)"),
        loop("n", count, total, "#pragma omp single"),
    ])  # fmt: skip


@kernel("argmax", "argmin")
def extreme_position(site: Site) -> str:
    """The first position of the largest or smallest; a NaN counts as both."""
    (x,), (out,), axis = site.inputs, site.outputs, site.params["axis"]
    kept = [a for a in range(len(x.shape)) if a != axis]
    out_axes = kept if site.params["keepdims"] else list(range(len(kept)))
    count = views.size(tuple(x.shape[a] for a in kept))
    compute = x.dtype.compute
    type_, sign = TYPES[compute], ">" if site.call.primitive.name == "argmax" else "<"
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
