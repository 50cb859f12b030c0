"""Scans, each line of elements by one thread. Floor 2."""

from __future__ import annotations

from ... import views
from ..source.scalar_source import TYPES, cast
from .kernel import CCall, indented, kernel, loop, parallel

BLOCK = 64  # elements that are added one after another


def _over_lines(site: CCall, body) -> str:
    """A parallel loop over the lines along the axis; body(load, store) has their element `i` read and written."""
    (x,), (out,), axis = site.inputs, site.outputs, site.params["axis"]
    kept = [a for a in range(len(x.shape)) if a != axis]
    count = views.size(tuple(x.shape[a] for a in kept))
    lines = [
        f"const {x.type} *x_line = x + {x.offset('n', kept)};",
        f"{out.type} *out_line = out + {out.offset('n', kept)};",
    ]
    load = cast(f"x_line[{x.strides[axis]} * i]", x.dtype, out.dtype.compute)
    text = body(load, lambda total: f"out_line[{out.strides[axis]} * i] = {cast(total, out.dtype.compute, out.dtype)};")
    return loop("n", count, "\n".join([*lines, text]), parallel(count, x.size))


@kernel("cumulative_prod")
def cumulative_prod(site: CCall) -> str:
    (x,), (out,) = site.inputs, site.outputs
    length, type_ = x.shape[site.params["axis"]], TYPES[out.dtype.compute]

    def line(load: str, store) -> str:
        return f"{type_} total = 1;\n" + loop("i", length, f"total *= {load};\n{store('total')}")

    return _over_lines(site, line)


@kernel("cumulative_sum")
def cumulative_sum(site: CCall) -> str:
    """Each block is added to the sum of those before it, which are joined in pairs as in kernel.in_pairs."""
    (x,), (out,) = site.inputs, site.outputs
    length, type_ = x.shape[site.params["axis"]], TYPES[out.dtype.compute]
    start = "-0.0" if out.dtype.is_float else "0"  # that leaves -0.0 as it is
    blocks = -(-length // BLOCK)

    def line(load: str, store) -> str:
        block = "\n".join([
            f"{type_} before = {start}, total = {start};",
            "for (int64_t d = 0; d < depth; d++)",
            "    before += stack[d];",
            f"for (int64_t i = k * {BLOCK}; i < MIN((k + 1) * {BLOCK}, {length}); i++) {{",
            indented(f"total += {load};\n{store('before + total')}"),
            "}",
            "for (int64_t bits = k; bits & 1; bits >>= 1)",
            "    total += stack[--depth];",
            "stack[depth++] = total;",
        ])  # fmt: skip
        head = f"{type_} stack[{max(blocks, 1).bit_length()}];\nint64_t depth = 0;\n"
        return head + loop("k", blocks, block)

    return _over_lines(site, line)
