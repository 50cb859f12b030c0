"""Scans, each line of elements by one thread."""

from __future__ import annotations

from .... import views
from ...scalar_source import TYPES, cast
from .kernel import Site, kernel, loop, parallel


@kernel("cumulative_sum", first="0", operator="+")
@kernel("cumulative_prod", first="1", operator="*")
def scan(site: Site, *, first: str, operator: str) -> str:
    (x,), (out,), axis = site.inputs, site.outputs, site.params["axis"]
    kept = [a for a in range(len(x.shape)) if a != axis]
    count, compute = views.size(tuple(x.shape[a] for a in kept)), out.dtype.compute
    body = "\n".join([
        f"const {x.type} *x_line = x + {x.offset('n', kept)};",
        f"{out.type} *out_line = out + {out.offset('n', kept)};",
        f"{TYPES[compute]} total = {first};",
        loop("i", x.shape[axis], "\n".join([
            f"total {operator}= {cast(f'x_line[{x.strides[axis]} * i]', x.dtype, compute)};",
            f"out_line[{out.strides[axis]} * i] = {cast('total', compute, out.dtype)};",
        ])),
    ])  # fmt: skip
    return loop("n", count, body, parallel(count, x.size))
