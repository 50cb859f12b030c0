"""Rows by number, and the sum of gradients back into the rows. A bad index is reported and read as 0. Floor 2."""

from __future__ import annotations

from dataclasses import replace

from ... import views
from ...ops.primitive import Bounds
from ..source.scalar_source import TYPES, cast
from .elementwise import copied, filled
from .kernel import CCall, COperand, indented, kernel, loop, parallel

STRIP = 64


def _index(indices: COperand, number: str, size: int, wrap: bool) -> str:
    """Declares `index`, checked."""
    at = f"{indices.name}[{indices.offset(number, range(len(indices.shape)))}]"
    wrapped = f"index += index < 0 ? {size} : 0;\n" if wrap else ""
    return (
        f"int64_t index = {at};\n{wrapped}"
        f"if (index < 0 || index >= {size}) {{\n"
        f"    report(error, launch, {number}, {at});\n    index = 0;\n}}"
    )


def checked(indices: COperand, bounds: Bounds) -> str:
    """Reports indices out of bounds, before they are used or where nothing is there that they could be used for."""
    ignored = "" if bounds.ignored is None else f" && index != {bounds.ignored}"
    body = "\n".join([
        f"int64_t index = {indices.name}[{indices.offset('k', range(len(indices.shape)))}];",
        f"if ((index < {bounds.low} || index >= {bounds.high}){ignored})",
        "    report(error, launch, k, index);",
    ])  # fmt: skip
    return loop("k", indices.size, body, parallel(indices.size, indices.size))


@kernel("take")
def take(site: CCall) -> str:
    (x, indices), (out,) = site.inputs, site.outputs
    axis, n = site.params["axis"], x.shape[site.params["axis"]]
    outer, inner = range(axis), range(axis + 1, len(x.shape))
    inside = [a + len(indices.shape) - 1 for a in inner]
    rows, width = views.size(x.shape[:axis]), views.size(x.shape[axis + 1 :])
    if not n:
        return ""
    source = f"x_row[{x.offset('i', inner)}]"
    body = "\n".join([
        _index(indices, f"row % {indices.size}" if rows > 1 else "row", n, site.params["wrap"]),
        f"const {x.type} *x_row = x + {x.offset(f'(row / {indices.size})', outer)} + {x.strides[axis]} * index;",
        f"{out.type} *out_row = out + {out.offset('row', range(axis + len(indices.shape)))};",
        loop("i", width, f"out_row[{out.offset('i', inside)}] = {source};"),
    ])  # fmt: skip
    return loop("row", rows * indices.size, body, parallel(rows * indices.size, out.size))


@kernel("take_gradient")
def take_gradient(site: CCall) -> str:
    """Each job adds all rows to a strip of columns, in their order."""
    (g, indices), (out,) = site.inputs, site.outputs
    axis, size = site.params["axis"], site.params["size"]
    compute = out.dtype.compute
    total, begin = out, []
    if compute is not out.dtype:
        place = site.take_scratch(out.size * compute.itemsize)
        begin = [f"{TYPES[compute]} *total = ({TYPES[compute]} *)({place});"]
        total = COperand("total", compute, out.shape, views.contiguous_strides(out.shape))
    rows, width = views.size(out.shape[:axis]), views.size(out.shape[axis + 1 :])
    strips = -(-width // STRIP)
    inner = range(axis + 1, len(out.shape))
    inside = [a + len(indices.shape) - 1 for a in inner]
    source = cast(f"g_row[{g.offset('i', inside)}]", g.dtype, compute)
    add = "\n".join([
        _index(indices, "k", size, site.params["wrap"]),
        f"const {g.type} *g_row = g + {g.offset(f'(outer * {indices.size} + k)', range(axis + len(indices.shape)))};",
        f"{total.type} *row = {total.name} + {total.offset('outer', range(axis))} + {total.strides[axis]} * index;",
        f"for (int64_t i = first; i < MIN(first + {STRIP}, {width}); i++)",
        f"    row[{total.offset('i', inner)}] += {source};",
    ])  # fmt: skip
    body = "\n".join([
        f"int64_t outer = job / {strips}, first = job % {strips} * {STRIP};",
        loop("k", indices.size, add),
    ])  # fmt: skip
    text = [*begin, filled(total, "0")]
    if size and strips:
        text.append(loop("job", rows * strips, body, parallel(rows * strips, g.size)))
    if compute is not out.dtype:
        text.append(_converted(total, out))
    return "\n".join(text)


@kernel("index_add")
def index_add(site: CCall) -> str:
    """Rows with one index are linked in their order; for the first of them all are added up."""
    (x, g, indices), (out,) = site.inputs, site.outputs
    compute, (start, size) = out.dtype.compute, (site.params["start"], site.params["size"])
    t, count, width = TYPES[compute], indices.size, views.size(out.shape[1:])
    strips, inner = -(-width // STRIP), range(1, len(out.shape))
    at = [f"{name}[{o.offset('i', axes)}]" for name, o, axes in (
        ("x_row", x, inner), ("g_row", g, range(len(indices.shape), len(g.shape))), ("out_row", out, inner))]
    link = "\n".join([
        _index(indices, "k", size, False),
        "is_first[k] = last[index] < 0;",
        "next[k] = -1;",
        "if (!is_first[k])\n    next[last[index]] = k;",
        "last[index] = k;",
    ])  # fmt: skip
    linked = f"{loop('i', size, 'last[i] = -1;')}\n{loop('k', count, link)}"
    rows = "\n".join([
        f"const {g.type} *g_row = g + {g.offset('row', range(len(indices.shape)))};",
        loop("i", "end", f"total[i - first] += {cast(at[1], g.dtype, compute)};").replace("i = 0", "i = first"),
    ])  # fmt: skip
    sum_ = cast(cast("total[i - first]", compute, out.dtype), out.dtype, compute)
    result = cast(f"{cast(at[0], x.dtype, compute)} + {sum_}", compute, out.dtype)
    body = "\n".join([
        f"int64_t k = job / {strips}, first = job % {strips} * {STRIP}, end = MIN(first + {STRIP}, {width});",
        "if (!is_first[k])\n    continue;",
        f"{t} total[{STRIP}] = {{0}};",
        f"for (int64_t row = k; row >= 0; row = next[row]) {{\n{indented(rows)}\n}}",
        f"int64_t index = {start} + {indices.name}[{indices.offset('k', range(len(indices.shape)))}];",
        f"const {x.type} *x_row = x + {x.strides[0]} * index;",
        f"{out.type} *out_row = out + {out.strides[0]} * index;",
        f"for (int64_t i = first; i < end; i++)\n    {at[2]} = {result};",
    ])  # fmt: skip
    lengths = {"last": size, "next": count, "is_first": count}
    scratch = {name: site.take_scratch(8 * max(n, 1)) for name, n in lengths.items()}
    return "\n".join([
        *(f"int64_t *{name} = (int64_t *)({place});" for name, place in scratch.items()),
        f"if (out != x) {{\n{indented(copied(x, out))}\n}}",
        f"#pragma omp single\n{{\n{indented(linked)}\n}}",
        loop("job", count * strips, body, parallel(count * strips, g.size)),
    ])  # fmt: skip


def _converted(x: COperand, out: COperand) -> str:
    value = cast(f"{x.name}[{x.offset('i', range(len(x.shape)))}]", x.dtype, out.dtype)
    store = f"out[{out.offset('i', range(len(out.shape)))}] = {value};"
    return loop("i", out.size, store, parallel(out.size, out.size))


@kernel("scatter")
def scatter(site: CCall) -> str:
    """The last of several values for one row stays."""
    (x, indices, values), (out,) = site.inputs, site.outputs
    width = views.size(x.shape[1:])
    inner = range(1, len(x.shape))
    value_axes = range(len(indices.shape), len(values.shape))
    body = "\n".join([
        _index(indices, "row", x.shape[0], False),
        f"const {x.type} *values_row = values + {values.offset('row', range(len(indices.shape)))};",
        f"{out.type} *out_row = out + {out.strides[0]} * index;",
        loop("i", width, f"out_row[{out.offset('i', inner)}] = values_row[{values.offset('i', value_axes)}];"),
    ])  # fmt: skip
    text = [copied(x, replace(out))]
    if x.shape[0]:
        text.append(loop("row", indices.size, body, "#pragma omp single"))
    return "\n".join(text)
