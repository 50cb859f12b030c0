"""Cross-entropy of a linear layer, whose logits are held a block of rows at a time."""

from __future__ import annotations

from dataclasses import replace

from .... import views
from ...scalar_source import TYPES, cast
from .kernel import Operand, Site, fold, indented, kernel, loop, parallel
from .matmul import product, wide_result, widened
from .rows import checked_target

LOGITS = 1 << 24  # held at once
ROWS = 1024  # in a block at most


@kernel("linear_cross_entropy")
@kernel("linear_cross_entropy_with_gradients")
def linear_cross_entropy(site: Site) -> str:
    """With P = softmax(x W^T) - onehot(targets): dx = P W, dW = P^T x."""
    x, weight, targets = site.inputs
    loss, *gradients = site.outputs
    compute = x.dtype.compute
    t, f = TYPES[compute], compute.name
    (rows, channels), classes = x.shape, weight.shape[0]
    block = min(max(LOGITS // max(classes, 1), 1), ROWS, max(rows, 1))
    logits = site.take_scratch(block * classes * compute.itemsize)
    losses = site.take_scratch(max(rows, 1) * compute.itemsize)
    before_x, x = widened(site, x, "wide_x", compute)
    before_w, w = widened(site, weight, "wide_weight", compute)
    text = [f"{t} *logits = ({t} *)({logits}), *losses = ({t} *)({losses});", before_x, before_w]
    results = []
    for o, name in zip(gradients, ("wide_dx", "wide_dweight"), strict=False):
        declare, wide, after = wide_result(site, o, name, compute)
        results.append((wide, after))
        text.append(declare)
    if gradients:
        dw = results[1][0]
        at = dw.offset("i", range(2))
        text.append(loop("i", dw.size, f"{dw.name}[{at}] = 0;", parallel(dw.size, dw.size)))
    e = f"exp_{f}(row[i] - top)"
    one_row = [
        f"{t} *row = logits + r * {classes};",
        checked_target(targets, classes, site.params["ignore_index"], "(start + r)"),
        f"{t} top = row[0];",
        loop("i", classes, "top = row[i] > top ? row[i] : top;", "#pragma omp simd reduction(max:top)"),
        fold("sum", t, classes, e),
        f"losses[start + r] = counts ? log_{f}(sum) - (row[target] - top) : 0;",
    ]
    if gradients:
        one_row += [
            loop("i", classes, f"row[i] = counts ? {e} / sum : 0;", "#pragma omp simd"),
            "if (counts)\n    row[target] -= 1;",
        ]
    # Blocks of one size but for the last: each size has its own statements, for products are of fixed shapes.
    full, rest = divmod(rows, block)
    if classes and channels:
        for size, first, last in ((block, 0, full * block), (rest, full * block, rows)):
            if size and first < last:
                inside = _block(site, compute, x, w, results, size, classes, one_row)
                head = f"for (int64_t start = {first}; start < {last}; start += {size}) {{"
                text.append(f"{head}\n{indented(inside)}\n}}")
    total = "\n".join([
        fold("sum", t, rows, "losses[i]"),
        f"{loss.at()} = {cast('sum', compute, loss.dtype)};",
    ])  # fmt: skip
    text += [f"#pragma omp single\n{{\n{indented(total)}\n}}", *(after for _, after in results)]
    return "\n".join(filter(None, text))


def _block(site: Site, compute, x: Operand, w: Operand, results, size: int, classes: int, one_row: list[str]) -> str:
    part = Operand(f"({x.name} + start * {x.strides[0]})", compute, (size, x.shape[1]), x.strides)
    logits = Operand("logits", compute, (size, classes), views.contiguous_strides((size, classes)))
    lines = [
        product(site, compute, part, replace(w, shape=w.shape[::-1], strides=w.strides[::-1]), logits),
        loop("r", size, "\n".join(one_row), parallel(size, size * classes)),
    ]
    if results:
        dx, dw = results[0][0], results[1][0]
        rows = Operand(f"({dx.name} + start * {dx.strides[0]})", compute, part.shape, dx.strides)
        turned = replace(logits, shape=(classes, size), strides=(1, classes))
        lines += [product(site, compute, logits, w, rows), product(site, compute, turned, part, dw, add=True)]
    return "\n".join(lines)
