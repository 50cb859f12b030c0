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


def _along_rows(place: str, size: int, positions: int, stride: int, dilation: int, padding: int) -> str:
    """Declares `begin`, the element of the last axis that the first window reads, and which windows are inside."""
    ahead = f"begin < 0 ? ({stride - 1} - begin) / {stride} : 0"
    reached = f"begin < {size} ? ({size - 1} - begin) / {stride} + 1 : 0"
    return "\n".join([
        f"const int64_t begin = {place} * {dilation} - {padding};",
        f"const int64_t first = MIN({ahead}, {positions});",
        f"const int64_t stop = MAX(MIN({reached}, {positions}), first);",
    ])  # fmt: skip


def _sum(strides: Sequence[int], names: Sequence[str]) -> str:
    return " + ".join([f"{s} * {name}" for s, name in zip(strides, names, strict=True)]) or "0"


@kernel("unfold")
def unfold(site: CCall) -> str:
    (x,), (out,), how = site.inputs, site.outputs, site.params
    axes, sizes, positions = len(how["kernel"]), x.shape[2:], how["positions"]
    stride, dilation, padding = how["stride"], how["dilation"], how["padding"]
    places, windows = [f"k{a}" for a in range(axes)], [f"i{a}" for a in range(axes - 1)]
    lead = out.shape[: 2 + axes]
    zero = f"row[{out.strides[-1]} * i] = 0;"
    text = [
        f"{out.type} *row = out_plane + {_sum(out.strides[2 + axes : -1], windows)};",
        f"const {x.type} *x_row = x_plane + {x.strides[-1]} * begin;",
    ]
    for a, window in enumerate(windows):
        text += [
            f"const int64_t at{a} = {window} * {stride[a]} + k{a} * {dilation[a]} - {padding[a]};",
            f"if (at{a} < 0 || at{a} >= {sizes[a]}) {{\n{indented(loop('i', positions[-1], zero))}\n    continue;\n}}",
            f"x_row += {x.strides[2 + a]} * at{a};",
        ]
    text += [
        loop("i", "first", zero),
        f"for (int64_t i = first; i < stop; i++)\n    row[{out.strides[-1]} * i] = x_row[{x.strides[-1] * stride[-1]} * i];",
        f"for (int64_t i = stop; i < {positions[-1]}; i++)\n    {zero}",
    ]
    plane = "\n".join(text)
    for a in reversed(range(axes - 1)):
        plane = loop(windows[a], positions[a], plane)
    body = "\n".join([
        _declared(["c", *places, "b"], "job", lead),
        f"const {x.type} *x_plane = x + {_sum(x.strides[:2], ['b', 'c'])};",
        f"{out.type} *out_plane = out + {_sum(out.strides[: 2 + axes], ['c', *places, 'b'])};",
        _along_rows(places[-1], sizes[-1], positions[-1], stride[-1], dilation[-1], padding[-1]),
        plane,
    ])  # fmt: skip
    return loop("job", views.size(lead), body, parallel(views.size(lead), out.size))


@kernel("fold")
def fold(site: CCall) -> str:
    """Places of the kernel are added up in their order, as NumPy's kernel does."""
    (columns,), (out,), how = site.inputs, site.outputs, site.params
    axes, compute = len(how["sizes"]), out.dtype.compute
    kernel_size, positions = columns.shape[1 : 1 + axes], columns.shape[2 + axes :]
    stride, dilation, padding = how["stride"], how["dilation"], how["padding"]
    rows, width, type_ = views.size(out.shape[:-1]), out.shape[-1], TYPES[compute]
    here = [f"y{a}" for a in range(axes - 1)]
    total = f"{type_} total[{width}];"
    if width > ON_STACK:
        place = site.take_scratch(site.threads * width * compute.itemsize)
        total = f"{type_} *total = ({type_} *)({place}) + omp_get_thread_num() * (int64_t){width};"
    value = cast(f"line[{columns.strides[-1]} * i]", columns.dtype, compute)
    text = "\n".join([
        _along_rows(f"k{axes - 1}", width, positions[-1], stride[-1], dilation[-1], padding[-1]),
        f"const {columns.type} *line = place{axes - 1} + {columns.strides[axes]} * k{axes - 1};",
        f"for (int64_t i = first; i < stop; i++)\n    total[begin + {stride[-1]} * i] += {value};",
    ])  # fmt: skip
    text = loop(f"k{axes - 1}", kernel_size[-1], text)
    for a in reversed(range(axes - 1)):
        text = "\n".join([
            f"const int64_t reads{a} = y{a} + {padding[a]} - k{a} * {dilation[a]}, i{a} = reads{a} / {stride[a]};",
            f"if (reads{a} < 0 || reads{a} % {stride[a]} || i{a} >= {positions[a]})\n    continue;",
            f"const {columns.type} *place{a + 1} = place{a} + {_sum((columns.strides[1 + a], columns.strides[2 + axes + a]), (f'k{a}', f'i{a}'))};",
            text,
        ])  # fmt: skip
        text = loop(f"k{a}", kernel_size[a], text)
    body = "\n".join([
        _declared(["b", "c", *here], "row", out.shape[:-1]),
        total,
        loop("i", width, "total[i] = 0;"),
        f"const {columns.type} *place0 = columns + {_sum((columns.strides[0], columns.strides[1 + axes]), ('c', 'b'))};",
        text,
        f"{out.type} *out_row = out + {_sum(out.strides[:-1], ['b', 'c', *here])};",
        loop("i", width, f"out_row[{out.strides[-1]} * i] = {cast('total[i]', compute, out.dtype)};"),
    ])  # fmt: skip
    return loop("row", rows, body, parallel(rows, columns.size))
