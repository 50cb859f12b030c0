"""Kernels over rows, the last axis: norms, softmax, cross-entropy, and their gradients.

A row is one thread's; the gradients of weights, sums over rows, are made a strip of columns at a time. Where a result
has the shape of an operand, it may be made in place of that, except for the gradients of norms, which read it again.
"""

from __future__ import annotations

import math
from dataclasses import replace

from .... import dtypes, views
from ....ops.norm import STEEPEST
from ....ops.statistics import LARGEST, SCALE, SMALLEST
from ...scalar_source import TYPES, constant
from .kernel import Operand, Site, fold, in_pairs, indented, kernel, loop, parallel, rows, vector

STRIP = 64  # columns
RUN = 32  # rows that are added one after another


def _largest(x: Operand, type_: str) -> str:
    text = f"{type_} top = {x.load('0')};\n"
    body = f"{type_} value = {x.load('i')};\ntop = value > top ? value : top;"
    return text + loop("i", x.shape[0], body, "#pragma omp simd reduction(max:top)")


def _each(n: int, body: str) -> str:
    return loop("i", n, body, "#pragma omp simd")


@kernel("layer_norm", centered=True)
@kernel("rms_norm", centered=False)
def norm(site: Site, *, centered: bool) -> str:
    x, weight, *bias = site.inputs
    out, *statistics = site.outputs
    n, compute = x.shape[-1], x.dtype.compute
    if not n:
        return ""
    t, f = TYPES[compute], "f" if compute is dtypes.float32 else ""
    eps, root_eps = (constant(e, compute) for e in (site.params["eps"], math.sqrt(site.params["eps"])))
    limit, factor = (constant(table[compute.itemsize], compute) for table in (LARGEST, SCALE))
    least = constant(SMALLEST[compute.itemsize] if site.params["eps"] else 0.0, compute)

    def stored(value: str, out: Operand) -> str:
        terms = [f"{value} * rstd * {weight.load('i')}", *(b.load("i") for b in bias)]
        return _each(n, out.store(" + ".join(terms), "i"))

    def average(name: str, value: str) -> str:
        return f"{fold(f'{name}_sum', t, n, value)}\n{t} {name} = {name}_sum / {n};"

    def again(x: Operand, out: Operand) -> str:
        """A row that was not normalized well, as the composite does it."""
        value = f"({x.load('i')} * scale)"
        size = f"{t} size = fabs{f}({x.load('i')});\ntop = size > top ? size : top;"
        lines = [
            f"{t} top = {root_eps};",
            loop("i", n, size, "#pragma omp simd reduction(max:top)"),
            f"{t} scale = top >= {limit} ? 1 / {factor} : top <= 1 / {limit} ? {factor} : 1;",
        ]
        if centered:
            lines += [
                average("about", value), average("more", f"({value} - about)"), "about += more;",
                average("rest", f"({value} - about)"), "mean = (about + rest) / scale;",
            ]  # fmt: skip
            value = f"({value} - about - rest)"
        return "\n".join([
            *lines,
            fold("squares", t, n, f"{value} * {value}"),
            f"{t} scaled_eps = {root_eps} * scale * ({root_eps} * scale);",
            f"rstd = 1 / sqrt{f}(squares / {n} + MAX(scaled_eps, {least}));",
            stored(value, out),
            "rstd *= scale;",
        ])  # fmt: skip

    def row(x: Operand, out: Operand, *kept: Operand) -> str:
        value, well = x.load("i"), f"rstd > 0 && rstd < {limit}"
        lines = []
        if centered:
            lines.append(average("mean", value))
            value, well = f"({value} - mean)", f"{well} && mean * mean <= squares / {n} * {STEEPEST**2}"
        names = ["mean", "rstd"] if centered else ["rstd"]
        lines += [
            fold("squares", t, n, f"{value} * {value}"),
            f"{t} rstd = 1 / sqrt{f}(squares / {n} + {eps});",
            f"if ({well}) {{\n{indented(stored(value, out))}\n}} else {{\n{indented(again(x, out))}\n}}",
            *(k.store(name, "0") for k, name in zip(kept, names, strict=True)),
        ]
        return "\n".join(lines)

    return rows(site, [x, out, *map(vector, statistics)], row)


@kernel("layer_norm_gradient", centered=True)
@kernel("rms_norm_gradient", centered=False)
def norm_gradient(site: Site, *, centered: bool) -> str:
    """With h the normalized x and d = g weight: dx = rstd (d - mean(d) - h mean(d h)); mean(d) for layer norm alone."""
    g, x, weight, *statistics = site.inputs
    dx, *totals = site.outputs
    n, compute = x.shape[-1], x.dtype.compute
    count = views.size(x.shape[:-1])
    if not n:
        return ""
    t = TYPES[compute]

    def pieces(g: Operand, x: Operand, *kept: Operand) -> tuple[str, str, str]:
        names = ["mean", "rstd"] if centered else ["rstd"]
        read = "\n".join(f"{t} {name} = {k.load('0')};" for name, k in zip(names, kept, strict=True))
        h = f"({x.load('i')} - mean) * rstd" if centered else f"{x.load('i')} * rstd"
        return read, h, g.load("i")

    def row(dx: Operand, g: Operand, x: Operand, *kept: Operand) -> str:
        read, h, d = pieces(g, x, *kept)
        d = f"{d} * {weight.load('i')}"
        lines = [read]
        if centered:
            lines += [fold("sum", t, n, d), f"{t} mean_d = sum / {n};"]
        lines += [fold("products", t, n, f"({d}) * ({h})"), f"{t} mean_dh = products / {n};"]
        less = " - mean_d" if centered else ""
        lines.append(_each(n, dx.store(f"(({d}){less} - ({h}) * mean_dh) * rstd", "i")))
        return "\n".join(lines)

    def strip(g: Operand, x: Operand, *kept: Operand) -> str:
        read, h, d = pieces(g, x, *kept)
        bias = f"\npiece[{STRIP} + j] += {d};" if centered else ""
        inside = f"int64_t i = first + j;\npiece[j] += {d} * ({h});{bias}"
        return f"{read}\n" + loop("j", f"MIN({STRIP}, {n} - first)", inside, "#pragma omp simd")

    declarations, parts = zip(*(o.row("row") for o in (g, x, *map(vector, statistics))), strict=True)
    one_row = "\n".join([*declarations, strip(*parts)])
    width = STRIP * len(totals)
    store = "\n".join(o.store(f"total[{i * STRIP} + j]", "(first + j)") for i, o in enumerate(totals))
    run = "\n".join([
        loop("i", width, "piece[i] = 0;"),
        f"for (int64_t row = k * {RUN}; row < MIN((k + 1) * {RUN}, {count}); row++) {{\n{indented(one_row)}\n}}",
    ])  # fmt: skip
    column = "\n".join([
        in_pairs(t, max(-(-count // RUN), 1), width, run),
        loop("j", f"MIN({STRIP}, {n} - first)", store),
    ])  # fmt: skip
    strips = -(-n // STRIP)
    head = f"for (int64_t first = 0; first < {n}; first += {STRIP}) {{"
    return "\n".join([
        rows(site, [dx, g, x, *map(vector, statistics)], row),
        parallel(strips, x.size),
        f"{head}\n{indented(column)}\n}}",
    ])  # fmt: skip


@kernel("softmax", log=False)
@kernel("log_softmax", log=True)
def softmax(site: Site, *, log: bool) -> str:
    (x,), (out,) = site.inputs, site.outputs
    n, compute = x.shape[-1], x.dtype.compute
    if not x.size:
        return ""
    t = TYPES[compute]

    def row(x: Operand, out: Operand) -> str:
        e = f"exp_{compute.name}({x.load('i')} - top)"
        result = f"{x.load('i')} - top - lse" if log else f"{e} / sum"
        lines = [_largest(x, t), fold("sum", t, n, e)]
        if log:
            lines.append(f"{t} lse = log_{compute.name}(sum);")
        return "\n".join([*lines, _each(n, out.store(result, "i"))])

    return rows(site, [x, out], row)


@kernel("softmax_gradient", log=False)
@kernel("log_softmax_gradient", log=True)
def softmax_gradient(site: Site, *, log: bool) -> str:
    """dx = out (g - sum(g out)), or g - exp(out) sum(g)."""
    (g, out), (dx,) = site.inputs, site.outputs
    n, compute = g.shape[-1], dx.dtype.compute
    if not g.size:
        return ""
    t = TYPES[compute]

    def row(g: Operand, out: Operand, dx: Operand) -> str:
        gi, y = g.load("i"), out.load("i")
        result = f"{gi} - exp_{compute.name}({y}) * sum" if log else f"{y} * ({gi} - sum)"
        return "\n".join([fold("sum", t, n, gi if log else f"{gi} * {y}"), _each(n, dx.store(result, "i"))])

    return rows(site, [g, out, dx], row)


def checked_target(targets: Operand, classes: int, ignore_index: int, number: str = "row") -> str:
    """Declares `target` and whether it counts; reports one that is neither a class nor ignored."""
    return "\n".join([
        f"int64_t target = {targets.name}[{targets.offset(number, range(len(targets.shape)))}];",
        f"int counts = target != {ignore_index};",
        f"if (counts && (target < 0 || target >= {classes})) {{",
        f"    report(error, launch, {number}, target);",
        "    counts = 0;",
        "}",
    ])  # fmt: skip


@kernel("cross_entropy")
def cross_entropy(site: Site) -> str:
    (logits, targets), (loss, lse) = site.inputs, site.outputs
    n, compute = logits.shape[-1], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: Operand, loss: Operand, lse: Operand) -> str:
        return "\n".join([
            checked_target(targets, n, site.params["ignore_index"]),
            _largest(x, t),
            fold("sum", t, n, f"exp_{compute.name}({x.load('i')} - top)"),
            f"{t} total = log_{compute.name}(sum) + top;",
            lse.store("total", "0"),
            loss.store(f"counts ? total - {x.load('target')} : 0", "0"),
        ])  # fmt: skip

    return rows(site, [logits, vector(loss), vector(lse)], row)


@kernel("cross_entropy_gradient")
def cross_entropy_gradient(site: Site) -> str:
    """g (softmax(logits) - onehot(target)); 0 where the target is ignored. The weights are divided by their sum."""
    (g, logits, targets, lse), (out,) = site.inputs, site.outputs
    n, compute = logits.shape[-1], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: Operand, out: Operand, g: Operand, lse: Operand) -> str:
        e = f"exp_{compute.name}({x.load('i')} - lse)"
        hit = f"exp_{compute.name}({x.load('target')} - lse) / sum - 1"
        return "\n".join([
            checked_target(targets, n, site.params["ignore_index"]),
            f"{t} lse = {lse.load('0')}, scale = counts ? {g.load('0')} : 0;",
            fold("sum", t, n, e),
            f"{t} at_target = counts ? {hit} : 0;",  # first: the result may be in the logits' place
            _each(n, out.store(f"{e} / sum * scale", "i")),
            "if (counts)",
            f"    {out.store('at_target * scale', 'target')}",
        ])  # fmt: skip

    return rows(site, [logits, out, vector(g), vector(lse)], row)


@kernel("linear_cross_entropy")
@kernel("linear_cross_entropy_with_gradients")
def linear_cross_entropy(site: Site) -> str:
    """The loss of each row of logits, and in their place softmax - onehot(target); 0 in what pads a row."""
    (logits, targets), (*slopes, loss) = site.inputs, site.outputs
    n, compute = site.params["classes"], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: Operand, loss: Operand, *slopes: Operand) -> str:
        e = f"exp_{compute.name}({x.load('i')} - top)"
        lines = [
            checked_target(targets, n, site.params["ignore_index"]),
            _largest(replace(x, shape=(n,)), t),
            fold("sum", t, n, e),
            f"{t} picked = counts ? {x.load('target')} - top : 0;",  # first: the slope may be in the logits' place
            loss.store(f"counts ? log_{compute.name}(sum) - picked : 0", "0"),
        ]
        for out in slopes:
            lines += [
                _each(n, out.store(f"counts ? {e} / sum : 0", "i")),
                f"if (counts)\n    {out.store(f'exp_{compute.name}(picked) / sum - 1', 'target')}",
                f"for (int64_t i = {n}; i < {x.shape[0]}; i++)\n    {out.store('0', 'i')}",
            ]
        return "\n".join(lines)

    return rows(site, [logits, vector(loss), *slopes], row)
