"""Sorting: a stable merge sort of positions, each line by one thread. NaN counts as the largest. Floor 2."""

from __future__ import annotations

from ... import views
from ..source.scalar_source import TYPES, cast
from .kernel import CCall, kernel, loop, parallel


@kernel("argsort")
def argsort(site: CCall) -> str:
    (x,), (out,), axis = site.inputs, site.outputs, site.params["axis"]
    kept = [a for a in range(len(x.shape)) if a != axis]
    count, length, compute = views.size(tuple(x.shape[a] for a in kept)), x.shape[axis], x.dtype.compute
    if not count or not length:
        return ""
    scratch = site.take_scratch(site.threads * 2 * length * 8)
    value = cast(f"x_line[{x.strides[axis]} * {{}}]", x.dtype, compute)
    a, b = (value.format(i) for i in ("from[left]", "from[right]"))
    if site.params["descending"]:
        a, b = b, a
    # The later element goes first only where it is strictly before the earlier one.
    body = "\n".join([
        f"const {x.type} *x_line = x + {x.offset('n', kept)};",
        f"int64_t *from = (int64_t *)({scratch}) + omp_get_thread_num() * {2 * length}, *to = from + {length};",
        loop("i", length, "from[i] = i;"),
        f"for (int64_t run = 1; run < {length}; run *= 2) {{",
        f"    for (int64_t start = 0; start < {length}; start += 2 * run) {{",
        f"        int64_t left = start, middle = MIN(start + run, {length}), right = middle;",
        f"        int64_t end = MIN(start + 2 * run, {length});",
        "        for (int64_t i = start; i < end; i++) {",
        "            int later = left == middle;",
        "            if (left < middle && right < end) {",
        f"                {TYPES[compute]} a = {a}, b = {b};",
        "                later = b < a || (a != a && b == b);",
        "            }",
        "            to[i] = later ? from[right++] : from[left++];",
        "        }",
        "    }",
        "    int64_t *swapped = from;",
        "    from = to;",
        "    to = swapped;",
        "}",
        f"{out.type} *out_line = out + {out.offset('n', kept)};",
        loop("i", length, f"out_line[{out.strides[axis]} * i] = from[i];"),
    ])  # fmt: skip
    return loop("n", count, body, parallel(count, x.size))
