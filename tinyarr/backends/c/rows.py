"""Cross-entropy and its gradient, whose result may be made in place of the logits: a row is one thread's. Floor 2."""

from __future__ import annotations

from dataclasses import replace

from ..source.scalar_source import TYPES
from .kernel import CCall, COperand, fold, kernel, loop, rows, vector


def _largest(x: COperand, type_: str) -> str:
    text = f"{type_} top = {x.load('0')};\n"
    body = f"{type_} value = {x.load('i')};\ntop = value > top ? value : top;"
    return text + loop("i", x.shape[0], body, "#pragma omp simd reduction(max:top)")


def _each(n: int, body: str) -> str:
    return loop("i", n, body, "#pragma omp simd")


def checked_target(targets: COperand, classes: int, ignore_index: int, number: str = "row") -> str:
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
def cross_entropy(site: CCall) -> str:
    (logits, targets), (loss, lse) = site.inputs, site.outputs
    n, compute = logits.shape[-1], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: COperand, loss: COperand, lse: COperand) -> str:
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
def cross_entropy_gradient(site: CCall) -> str:
    """g (softmax(logits) - onehot(target)); 0 where the target is ignored. The weights are divided by their sum."""
    (g, logits, targets, lse), (out,) = site.inputs, site.outputs
    n, compute = logits.shape[-1], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: COperand, out: COperand, g: COperand, lse: COperand) -> str:
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
def linear_cross_entropy(site: CCall) -> str:
    """The loss of each row of logits, and in their place softmax - onehot(target); 0 in what pads a row."""
    (logits, targets), (*slopes, loss) = site.inputs, site.outputs
    n, compute = site.params["classes"], logits.dtype.compute
    t = TYPES[compute]
    if not logits.size:
        return ""

    def row(x: COperand, loss: COperand, *slopes: COperand) -> str:
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
