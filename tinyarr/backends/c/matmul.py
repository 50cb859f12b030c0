"""Matrix products: packed panels for float32 and float64; half types are widened into scratch first. Floor 2.

product.c serves every processor, product_amx.c float32 on those with a matrix unit.
"""

from __future__ import annotations

from dataclasses import replace

from ... import dtypes, views
from ...dtypes import Dtype
from ..source.scalar_source import TYPES, cast, constant, unravel
from .kernel import CCall, COperand, indented, kernel, loop, parallel

DEPTH, GROUP = 256, 96  # as in program.h
WIDEST = 48  # columns of a panel: three vectors of float32
SHARED = 1 << 18  # elements of the smaller operand that are packed at once: they stay in the L2 cache
SIDE, PIECE, JOB = 32, 64, 2  # as in product_amx.c
PANEL = 6 * SIDE * PIECE + 64  # bytes: three bfloat16 for each element, and a flag


def shared_size(m: int, n: int, k: int) -> int:
    """Elements of the panels of the operand that all threads share: of all k, or a multiple of DEPTH of it."""
    width = -(-min(m, n) // WIDEST) * WIDEST + WIDEST
    depth = min(-(-k // DEPTH), max(SHARED // (width * DEPTH), 1)) * DEPTH
    return width * depth


def product(site: CCall, dtype: Dtype, a: COperand, b: COperand, c: COperand, *, add: bool = False) -> str:
    """c = a b, or c += a b, for matrices in `dtype`, float32 or float64, with any strides, by all threads together."""
    turned = c.strides[1] != 1 and c.strides[0] == 1
    if turned:  # then the rows of the result are contiguous: the same sums
        a, b, c = (replace(x, shape=x.shape[::-1], strides=x.strides[::-1]) for x in (b, a, c))
    name = site.product(dtype)
    (m, k), n = a.shape, b.shape[1]
    shared = shared_size(m, n, k)
    nbytes = (shared + site.threads * GROUP * DEPTH) * dtype.itemsize
    operands = ", ".join(f"{x.name}, {x.strides[0]}, {x.strides[1]}" for x in (a, b, c))
    given, type_ = f"{m}, {n}, {k}, {operands}, {int(add)}", TYPES[dtype]
    if dtype is not dtypes.float32 or min(m, n, k) < SIDE:
        return f"product_{name}({given}, ({type_} *)({site.take_scratch(nbytes)}), {shared});"
    panels = -(-min(m, n) // SIDE)
    held = min(-(-k // PIECE), max(5 * SHARED // (panels * PANEL), 1))  # 1.25 MiB of an L2 cache of 2
    in_parts = panels * held * PANEL + site.threads * JOB * (PANEL + panels * SIDE * SIDE * 4)
    scratch = site.take_scratch(max(nbytes, in_parts))
    return (
        f"if (amx_allowed)\n    product_in_parts({given}, (float *)({scratch}), {held}, {int(turned)});\n"
        f"else\n    product_float32({given}, (float *)({scratch}), {shared});"
    )


def widened(site: CCall, x: COperand, name: str, dtype: Dtype) -> tuple[str, COperand]:
    """x itself, or the statements that copy it into scratch in `dtype`."""
    if x.dtype is dtype:
        return "", x
    place = site.take_scratch(x.size * dtype.itemsize)
    value = cast(f"{x.name}[{x.offset('i', range(len(x.shape)))}]", x.dtype, dtype)
    copy = loop("i", x.size, f"{name}[i] = {value};", parallel(x.size, x.size))
    declare = f"{TYPES[dtype]} *{name} = ({TYPES[dtype]} *)({place});\n"
    return declare + copy, COperand(name, dtype, x.shape, views.contiguous_strides(x.shape))


def wide_result(site: CCall, out: COperand, name: str, dtype: Dtype) -> tuple[str, COperand, str]:
    """Returns a place for a result in `dtype`: its declaration, itself, and the statements that round it into `out`."""
    if out.dtype is dtype:
        return "", out, ""
    place = site.take_scratch(out.size * dtype.itemsize)
    wide = COperand(name, dtype, out.shape, views.contiguous_strides(out.shape))
    at = out.offset("i", range(len(out.shape)))
    store = loop("i", out.size, f"{out.name}[{at}] = {cast(f'{name}[i]', dtype, out.dtype)};",
                 parallel(out.size, out.size))  # fmt: skip
    return f"{TYPES[dtype]} *{name} = ({TYPES[dtype]} *)({place});", wide, store


@kernel("matmul")
@kernel("matmul_wide")
def matmul(site: CCall) -> str:
    (x, y), (out,) = site.inputs, site.outputs
    if not out.size:
        return ""
    compute = out.dtype.compute
    if not compute.is_float or not x.shape[-1]:
        return _plain(x, y, out)
    before_x, x = widened(site, x, "wide_x", compute)
    before_y, y = widened(site, y, "wide_y", compute)
    declare, wide, after = wide_result(site, out, "wide_out", compute)
    return "\n".join(filter(None, [before_x, before_y, declare, _batched(site, compute, x, y, wide), after]))


@kernel("matmul_add")
def matmul_add(site: CCall) -> str:
    (c, x, y), (out,) = site.inputs, site.outputs
    to, at = (o.offset("i", range(len(out.shape))) for o in (out, c))
    copy = loop("i", out.size, f"out[{to}] = c[{at}];", parallel(out.size, out.size))
    text = [f"if (c != out) {{\n{indented(copy)}\n}}"] if out.size else []
    if out.size and x.shape[-1]:
        before_x, x = widened(site, x, "wide_x", out.dtype)
        before_y, y = widened(site, y, "wide_y", out.dtype)
        text += [before_x, before_y, _batched(site, out.dtype, x, y, out, add=True)]
    return "\n".join(filter(None, text))


def _batched(site: CCall, dtype: Dtype, x: COperand, y: COperand, out: COperand, *, add: bool = False) -> str:
    """The products of a stack of matrices one after another."""
    batch = out.shape[:-2]
    x, y, out = (_matrices(o, batch, rank) for o, rank in ((x, 2), (y, 2), (out, 2)))
    matrices = [replace(o, shape=o.shape[-2:], strides=o.strides[-2:]) for o in (x, y, out)]
    count = views.size(batch)
    if count == 1:
        return product(site, dtype, *matrices, add=add)
    named = [replace(m, name=f"{m.name}_matrix") for m in matrices]
    declare = [
        f"{o.type} *{m.name} = {o.name} + {unravel('batch', batch, o.strides[:-2])};"
        for o, m in zip((x, y, out), named, strict=True)
    ]
    return loop("batch", count, "\n".join([*declare, product(site, dtype, *named, add=add)]))


def _matrices(x: COperand, batch: views.Shape, rank: int) -> COperand:
    shape = (*batch, *x.shape[-rank:])
    return replace(x, shape=shape, strides=views.broadcast_to(views.View(x.shape, x.strides), shape).strides)


def _plain(x: COperand, y: COperand, out: COperand) -> str:
    """Integers, or sums of nothing."""
    batch, (_, n), k = out.shape[:-2], out.shape[-2:], x.shape[-1]
    x, y = _matrices(x, batch, 2), _matrices(y, batch, 2)
    lead = (*batch, out.shape[-2])
    x_at = unravel("row", lead, x.strides[:-1])
    y_at = unravel("row", lead, (*y.strides[:-2], 0))
    out_at = unravel("row", lead, out.strides[:-1])
    inner = loop("p", k, f"total += x_row[{x.strides[-1]} * p] * y_matrix[{y.strides[-2]} * p + {y.strides[-1]} * j];")
    body = "\n".join([
        f"const {x.type} *x_row = x + {x_at};",
        f"const {y.type} *y_matrix = y + {y_at};",
        f"{out.type} *out_row = out + {out_at};",
        loop("j", n, f"{out.type} total = 0;\n{inner}\nout_row[{out.strides[-1]} * j] = total;"),
    ])  # fmt: skip
    return loop("row", views.size(lead), body, parallel(views.size(lead), out.size * (k + 1)))


def _as_matrix(x: COperand) -> COperand:
    view = views.reshape(views.View(x.shape, x.strides), (views.size(x.shape[:-1]), x.shape[-1]))
    assert view is not None
    return replace(x, shape=view.shape, strides=view.strides)


@kernel("scaled_matmul")
def scaled_matmul(site: CCall) -> str:
    """out = (x scale_x) (weight scale_weight)^T in float32."""
    x, weight, scale_x, scale_weight = site.inputs
    (out,) = site.outputs
    text, wide = [], []
    for o, scale in ((x, scale_x), (weight, scale_weight)):
        before, w = widened(site, o, f"wide_{o.name}", dtypes.float32)
        text += [before, loop("i", o.size, f"{w.name}[i] *= {scale.load()};", parallel(o.size, o.size))]
        wide.append(w)
    declare, result, after = wide_result(site, out, "wide_out", dtypes.float32)
    transposed = replace(wide[1], shape=wide[1].shape[::-1], strides=wide[1].strides[::-1])
    left, target = _as_matrix(wide[0]), _as_matrix(result)
    if x.shape[-1]:
        text += [declare, product(site, dtypes.float32, left, transposed, target), after]
    else:
        zero = constant(0.0, out.dtype.compute)
        text = [loop("i", out.size, f"out[i] = {cast(zero, out.dtype.compute, out.dtype)};", "#pragma omp single")]
    return "\n".join(filter(None, text)) if out.size else ""
