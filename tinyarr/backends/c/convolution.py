"""Windows unfolded, a plane of positions by one thread, and folded back, a row of the result by one thread. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence

from ... import views
from ..source.scalar_source import TYPES, cast
from .kernel import ON_STACK, CCall, indented, kernel, loop, parallel


def _declared(names: Sequence[str], number: str, shape: Sequence[int]) -> str:
    """Declares the position along each axis of the element of a row-major number."""
    steps = views.contiguous_strides(tuple(shape))
    each = [f"{name} = {number} / {step} % {n}" for name, step, n in zip(names, steps, shape, strict=True)]
    return f"const int64_t {', '.join(each)};"


def _at(names: Sequence[str], strides: Sequence[int]) -> str:
    """The offset of the element at these positions."""
    return " + ".join(f"{stride} * {name}" for name, stride in zip(names, strides, strict=True)) or "0"


def _windows(place: str, size: int, positions: int, stride: int, dilation: int, padding: int) -> str:
    """Declares `begin`, the element that a row's first window reads at a place, and which windows are inside there."""
    first = f"begin < 0 ? ({stride - 1} - begin) / {stride} : 0"
    stop = f"begin < {size} ? ({size - 1} - begin) / {stride} + 1 : 0"
    return "\n".join([
        f"const int64_t begin = {place} * {dilation} - {padding};",
        f"const int64_t first = MIN({first}, {positions});",
        f"const int64_t stop = MAX(MIN({stop}, {positions}), first);",
    ])  # fmt: skip


def _inside(body: str) -> str:
    return f"for (int64_t i = first; i < stop; i++)\n{indented(body)}"


@kernel("unfold")
def unfold(site: CCall) -> str:
    (x,), (out,), how = site.inputs, site.outputs, site.params
    positions, stride, dilation, padding = how["positions"], how["stride"], how["dilation"], how["padding"]
    sizes, axes = x.shape[2:], len(positions)
    outer, step = range(axes - 1), out.strides[-1]
    lead, names = out.shape[: 2 + axes], ["c", *(f"k{a}" for a in range(axes)), "b"]
    zero = f"row[{step} * i] = 0;"
    text = [
        f"{out.type} *row = plane + {_at([f'i{a}' for a in outer], out.strides[2 + axes : -1])};",
        f"const {x.type} *x_row = x_plane + {x.strides[-1]} * begin;",
    ]
    for a in outer:
        text += [
            f"const int64_t at{a} = {stride[a]} * i{a} + {dilation[a]} * k{a} - {padding[a]};",
            f"if (at{a} < 0 || at{a} >= {sizes[a]}) {{",
            indented(loop("i", positions[-1], zero)),
            "    continue;",
            "}",
            f"x_row += {x.strides[2 + a]} * at{a};",
        ]
    text += [
        loop("i", "first", zero),
        _inside(f"row[{step} * i] = x_row[{x.strides[-1] * stride[-1]} * i];"),
        f"for (int64_t i = stop; i < {positions[-1]}; i++)\n    {zero}",
    ]
    rows = "\n".join(text)
    for a in reversed(outer):
        rows = loop(f"i{a}", positions[a], rows)
    body = "\n".join([
        _declared(names, "job", lead),
        f"const {x.type} *x_plane = x + {_at('bc', x.strides[:2])};",
        f"{out.type} *plane = out + {_at(names, out.strides[: 2 + axes])};",
        _windows(f"k{axes - 1}", sizes[-1], positions[-1], stride[-1], dilation[-1], padding[-1]),
        rows,
    ])  # fmt: skip
    return loop("job", views.size(lead), body, parallel(views.size(lead), out.size))


@kernel("fold")
def fold(site: CCall) -> str:
    """The places of a window are added up in their order, as in NumPy's kernel."""
    (columns,), (out,), how = site.inputs, site.outputs, site.params
    sizes, stride, dilation, padding = how["sizes"], how["stride"], how["dilation"], how["padding"]
    axes, width, compute = len(sizes), sizes[-1], out.dtype.compute
    places, positions = columns.shape[1 : 1 + axes], columns.shape[2 + axes :]
    by_place, by_position = columns.strides[1 : 1 + axes], columns.strides[2 + axes :]
    outer, last = range(axes - 1), axes - 1
    names, lead = ["b", "c", *(f"y{a}" for a in outer)], out.shape[:-1]
    type_, total = TYPES[compute], f"total[{width}]"
    if width > ON_STACK:
        scratch = site.take_scratch(site.threads * width * compute.itemsize)
        total = f"*total = ({type_} *)({scratch}) + omp_get_thread_num() * (int64_t){width}"
    text = loop(f"k{last}", places[-1], "\n".join([
        _windows(f"k{last}", width, positions[-1], stride[-1], dilation[-1], padding[-1]),
        f"const {columns.type} *line = at{last} + {by_place[-1]} * k{last};",
        _inside(f"total[begin + {stride[-1]} * i] += {cast(f'line[{by_position[-1]} * i]', columns.dtype, compute)};"),
    ]))  # fmt: skip
    for a in reversed(outer):
        text = loop(f"k{a}", places[a], "\n".join([
            f"const int64_t ahead{a} = y{a} + {padding[a]} - {dilation[a]} * k{a}, i{a} = ahead{a} / {stride[a]};",
            f"if (ahead{a} < 0 || ahead{a} % {stride[a]} || i{a} >= {positions[a]})\n    continue;",
            f"const {columns.type} *at{a + 1} = at{a} + {by_place[a]} * k{a} + {by_position[a]} * i{a};",
            text,
        ]))  # fmt: skip
    body = "\n".join([
        _declared(names, "row", lead),
        f"{type_} {total};",
        loop("i", width, "total[i] = 0;"),
        f"const {columns.type} *at0 = columns + {_at('cb', (columns.strides[0], columns.strides[1 + axes]))};",
        text,
        f"{out.type} *out_row = out + {_at(names, out.strides[:-1])};",
        loop("i", width, f"out_row[{out.strides[-1]} * i] = {cast('total[i]', compute, out.dtype)};"),
    ])  # fmt: skip
    return loop("row", views.size(lead), body, parallel(views.size(lead), columns.size))
