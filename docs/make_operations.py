"""Writes operations.md from the registry: `python docs/make_operations.py`."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tinyarr
from tinyarr.backends.c.backend import MORE
from tinyarr.backends.cuda.planning import plans
from tinyarr.backends.cuda.planning.registry import KERNELS as CUDA
from tinyarr.backends.numpy.registry import KERNELS as CPU
from tinyarr.errors import TinyarrError
from tinyarr.ops.elementwise_primitive import Elementwise
from tinyarr.ops.expressed import Expressed
from tinyarr.ops.fused import Fused
from tinyarr.ops.primitive import Primitive, registry
from tinyarr.ops.rowwise import Rowwise
from tinyarr.ops.scalar import Expr, topological

assert plans.FAMILIES and MORE  # importing them fills CUDA and CPU
PAGE = Path(__file__).with_name("operations.md")
SYMBOLS = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "floor_divide": "//", "remainder": "%", "power": "**",
    "equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=",
    "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "bitwise_left_shift": "<<", "bitwise_right_shift": ">>",
}  # fmt: skip
LONGEST = 110  # characters of a formula in the table

INTRODUCTION = """# Operations

Generated from the registry by `python docs/make_operations.py`; a test keeps it up to date. Everything that tinyarr
computes is one of these {count} primitives, or composed of them. {elementwise} are elementwise: one expression, from
which the NumPy and C code and the gradient are derived. Operands broadcast and are promoted as the Array API
standard says; half types are computed in float32 and rounded once.

Gradients are shown as they are derived, `g` being the gradient of the result. *composite*: the operation is also
defined by others, which serve as test oracle, as fallback where a backend lacks a kernel, and for gradients of higher
order. Backends: `expression` is generated code, `view` needs none. Dtypes: what operands of a kind give. The shapes and
dtypes of what is not elementwise are with the functions, below the tables.
"""


def printed(node: Expr, names: dict[Expr, str]) -> str:
    """An expression as one would write it in Python."""
    if node in names:
        return names[node]
    if node.op == "constant":
        return f"{node.value:.6g}" if isinstance(node.value, float) else str(node.value)
    if node.op == "custom":
        return printed(node.args[0], names)
    parts = [printed(a, names) for a in node.args]
    if node.op in SYMBOLS:
        return f"({parts[0]} {SYMBOLS[node.op]} {parts[1]})"
    if node.op == "negative":
        return f"-{parts[0]}"
    if node.op in ("index", "input"):
        return f"{node.op}({node.value})"
    extra = [str(getattr(node.value, "name", node.value))] if node.op in ("cast", "bitcast") else []
    return f"{node.op}({', '.join(parts + extra)})"


def formula(expressions, names: dict[Expr, str]) -> str:
    """The expressions, or how many operations they have where they are too long to read in a table."""
    parts = [printed(e, names) for e in expressions]
    text = ", ".join(part[1:-1] if enclosed(part) else part for part in parts)
    if len(text) <= LONGEST:
        return f"`{text}`"
    return f"an expression of {sum(1 for n in topological(expressions) if n.args)} operations"


def enclosed(text: str) -> bool:
    """Whether one pair of brackets goes around it all."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and i < len(text) - 1:
            return False
    return text.startswith("(")


def example_parameters(primitive: Primitive) -> dict | None:
    """Values for an elementwise primitive's own parameters, where an example is easily had."""
    given = {"dtype": tinyarr.float32, "n": 3, "shape": None, "last": -1}
    wanted = [p.name for p in inspect.signature(primitive.function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {name: given[name] for name in wanted} if set(wanted) <= given.keys() else None


def elementwise_columns(p: Elementwise) -> tuple[str, str]:
    """Formula and gradients of an elementwise primitive."""
    from tinyarr.ops.scalar import variable

    params = example_parameters(p)
    if params is None:
        return "", "none" if p.non_differentiable else "derived"
    outputs = p.expressions(params)
    names = {variable(i): name for i, name in enumerate(p.inputs)}
    meaning = formula(outputs, names)
    if p.non_differentiable:
        return meaning, "none"
    if len(outputs) > 1:
        return meaning, "derived"
    primitive, operands, slots = p._derive(params, tuple([True] * len(p.inputs)))
    all_names = [*p.inputs, "g", "out"]
    if primitive is None:
        return meaning, ", ".join("`g`" if s else "0" for s in slots)
    inner = {variable(k): all_names[i] for k, i in enumerate(operands)}
    results = primitive.expressions({})
    return meaning, ", ".join(
        "0" if s is None else "`g`" if s[0] == "g" else formula([results[s[1]]], inner) for s in slots
    )


def dtypes_taken(p: Elementwise) -> str:
    """Which kinds of operands an elementwise primitive takes, and what it makes of each."""
    params = example_parameters(p)
    if params is None or not p.inputs:
        return "as given"
    found = []
    for kind, example in (("bool", tinyarr.bool), ("integer", tinyarr.int16), ("floating", tinyarr.float64)):
        try:
            results = p.typed(((),) * len(p.inputs), (example,) * len(p.inputs), params).dtypes
        except TinyarrError:
            continue
        made = ["same" if d is example else d.name for d in dict.fromkeys(results)]
        found.append(f"{kind}: {', '.join(made)}")
    return "; ".join(found)


def gradient_source(p: Primitive) -> str:
    """What the gradient rule of a primitive returns."""
    if p.non_differentiable:
        return "none"
    if not p.has_gradient:
        return "through the composite"
    if isinstance(p, Rowwise):
        return f"see `{p._by_hand.__name__}`" if p._by_hand else "derived"
    if isinstance(p, Fused):
        return f"`{p.derived_gradient.name}`"
    source = textwrap.dedent(inspect.getsource(p._backward[0]))
    tree = ast.parse(source).body[0]
    last = tree.body[-1]
    text = " ".join(ast.unparse(last.value).split()) if isinstance(last, ast.Return) else ""
    plain = len([s for s in tree.body if not isinstance(s, ast.Expr | ast.ImportFrom)]) == 1
    return f"`{text}`" if plain and text and len(text) <= LONGEST else f"see `{tree.name}`"


def functions_using(p: Primitive) -> list[str]:
    """The public functions whose code names the primitive."""
    module = sys.modules[(p.function if isinstance(p, Expressed) else p.infer).__module__]
    names = {name for name, value in vars(module).items() if value is p}
    return sorted(
        name for name, f in vars(module).items()
        if inspect.isfunction(f) and not name.startswith("_")
        and inspect.unwrap(getattr(tinyarr, name, None)) is inspect.unwrap(f)
        and names & set(inspect.unwrap(f).__code__.co_names)
    )


def backends(p: Primitive) -> str:
    if p.view is not None:
        return "view"
    if isinstance(p, Expressed):
        return "expression"
    kinds = [name for name, kernels in (("cpu", CPU), ("cuda", CUDA)) if p in kernels]
    return ", ".join([*kinds, *(["composite"] if p.composite else [])])


def families() -> Iterator[tuple[str, list[Primitive]]]:
    """The primitives by the file that defines them."""
    found: dict[str, list[Primitive]] = defaultdict(list)
    for p in registry.values():
        if p.built_in:
            function = p.function if isinstance(p, Expressed) else p.infer
            module = function.__module__ if p.view is None else "tinyarr.ops.shape"
            found[module.split(".")[-1]].append(p)
    return iter(sorted(found.items()))


def page() -> str:
    own = [p for p in registry.values() if p.built_in]
    lines = [INTRODUCTION.format(count=len(own), elementwise=sum(isinstance(p, Elementwise) for p in own))]
    for family, primitives in families():
        lines += [f"## {family}", "", "| primitive | used by | meaning | dtypes | gradient | backends |"]
        lines += ["|---|---|---|---|---|---|"]
        for p in primitives:
            if isinstance(p, Elementwise):
                (meaning, gradient), taken = elementwise_columns(p), dtypes_taken(p)
            else:
                meaning, gradient = f"`({', '.join(p.inputs)}) -> {', '.join(p.outputs)}`", gradient_source(p)
                taken = "of the function"
            direct = [p.name] if getattr(tinyarr, p.name, None) is p else []
            used = ", ".join([*direct, *functions_using(p)])
            row = [f"`{p.name}`", used, meaning, taken, gradient, backends(p)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    lines += ["# Functions", "", "Every public function, as `help` describes it.", ""]
    for name in sorted(tinyarr.__all__, key=str.lower):
        f = getattr(tinyarr, name)
        if (inspect.isfunction(f) or isinstance(f, Elementwise)) and f.__doc__:
            parameters = f"({', '.join(f.inputs)})" if isinstance(f, Elementwise) else signature(f)
            text = inspect.cleandoc(f.__doc__).split(">>>")[0].rstrip()
            lines += [f"**`{name}{parameters}`**", "", text, ""]
    return "\n".join(lines).rstrip() + "\n"


def signature(f) -> str:
    """The parameters' names and defaults, without annotations."""
    parameters = [p.replace(annotation=p.empty) for p in inspect.signature(f).parameters.values()]
    return str(inspect.Signature(parameters))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
