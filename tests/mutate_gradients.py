"""How well the tests guard the gradient rules: `python -m tests.mutate_gradients [word ...]`.

Each mutant is the library with one rule changed: a sign flipped, a term or factor dropped, operands swapped, an axis
wrong, a sum over a broadcast axis forgotten. A mutant is caught when a gradient test of its primitive fails. Prints
the mutants that were not caught and the share caught of each kind. Words select mutants whose place holds one of them.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.machinery
import importlib.util
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis.extra.numpy  # noqa: F401
import ml_dtypes  # noqa: F401
import pytest  # noqa: F401
from hypothesis import Phase, settings

os.environ["TINYARR_ALL_EXAMPLES"] = "1"  # before tests.tiers is imported
TINYARR = Path(__file__).parents[1] / "tinyarr"
SOURCES = [*sorted((TINYARR / "ops").rglob("*.py")), TINYARR / "autograd.py"]
OTHER_RULES = {"_fitted", "_extremum_vjp", "_power_vjp", "_atan2_vjp"}  # which no decorator marks
SECONDS = 300  # after which a mutant that hangs counts as caught
NOT_COMMUTATIVE = {"matmul", "divide", "subtract", "where", "_tensordot"}
SUMS = {"sum", "sum_to", "_sum_to"}


@dataclass(frozen=True)
class Mutant:
    """One change: its kind, the module, the function or table entry that holds it, and the changed module's source."""

    kind: str
    module: str
    place: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.module}:{self.line} {self.place}: {self.before} -> {self.after}"


def changes(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What may stand in the place of an expression of a gradient rule: (kind, expression)."""
    match node:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right) if not isinstance(left, ast.Tuple):
            yield "sign", ast.BinOp(left, ast.Sub() if isinstance(op, ast.Add) else ast.Add(), right)
            yield "term", left
            yield "term", right if isinstance(op, ast.Add) else ast.UnaryOp(ast.USub(), right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            yield "factor", left
            yield "factor", right
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            yield "factor", left
            yield "factor", ast.BinOp(ast.Constant(1.0), ast.Div(), right)
            yield "operands", ast.BinOp(right, ast.Div(), left)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign", operand
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in SUMS:
            yield "sum", first
        case ast.Call(func=ast.Name(id="matrix_transpose"), args=[x]):
            yield "axis", x
        case ast.Call(func=ast.Name(id=name), args=[*args]) if name in NOT_COMMUTATIVE and len(args) >= 2:
            swapped = copy.copy(node)
            swapped.args = [*args[:-2], args[-1], args[-2]]
            yield "operands", swapped
    if isinstance(node, ast.Call):
        for i, word in enumerate(node.keywords):
            if word.arg == "axis" and not isinstance(word.value, ast.Constant | ast.Name):
                continue
            if word.arg == "axis":
                wrong = copy.copy(node)
                value = ast.Constant(0 if ast.unparse(word.value) == "-1" else -1)
                wrong.keywords = [*node.keywords[:i], ast.keyword("axis", value), *node.keywords[i + 1 :]]
                yield "axis", wrong


def rules(tree: ast.Module) -> Iterator[tuple[str, list[str], ast.AST]]:
    """The parts of a module that say gradients: (place, names of the primitives concerned, body)."""
    named = {node.targets[0].id: node.value.args[0].value for node in tree.body if _makes_primitive(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [named.get(d.value.id, d.value.id.strip("_")) for d in node.decorator_list
                     if isinstance(d, ast.Attribute) and d.attr == "gradient" and isinstance(d.value, ast.Name)]
            if names or node.name in OTHER_RULES:
                yield node.name, names, node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_operation":
            name, _, _, *vjp = node.args
            if vjp and isinstance(vjp[0], ast.Lambda) and isinstance(name, ast.Constant):
                yield f"OPERATIONS[{name.value!r}]", [name.value], vjp[0].body


def _makes_primitive(node: ast.stmt) -> bool:
    """Whether it reads `_name = Primitive("name", ...)`, whatever the maker is called."""
    value = node.value if isinstance(node, ast.Assign) else None
    return (isinstance(value, ast.Call) and bool(value.args) and isinstance(value.args[0], ast.Constant)
            and isinstance(node.targets[0], ast.Name))


def mutants() -> Iterator[tuple[Mutant, list[str]]]:
    """Every mutant of the gradient rules, with the names of the primitives that it concerns."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(TINYARR.parent).with_suffix("").parts)
        for place, names, rule in rules(tree):
            yield from _of_rule(tree, module, place, names, rule)


def _of_rule(tree, module: str, place: str, names: list[str], rule: ast.AST):
    for parent in ast.walk(rule):
        for field, value in ast.iter_fields(parent):
            slots = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for i, child in slots:
                if not isinstance(child, ast.expr) or field in ("decorator_list", "annotation", "returns"):
                    continue
                for kind, changed in [*changes(child), *_negated(parent, child)]:
                    _put(parent, field, i, changed)
                    source = ast.unparse(ast.fix_missing_locations(tree))
                    _put(parent, field, i, child)
                    yield Mutant(
                        kind, module, place, child.lineno, ast.unparse(child), ast.unparse(changed), source
                    ), names


def _negated(parent: ast.AST, child: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """A returned gradient, or each of several, with the other sign."""
    returned = isinstance(parent, ast.Return | ast.Lambda)
    if returned and isinstance(child, ast.Tuple):
        for i, element in enumerate(child.elts):
            if not (isinstance(element, ast.Constant) and element.value is None):
                elements = [*child.elts[:i], ast.UnaryOp(ast.USub(), element), *child.elts[i + 1 :]]
                yield "sign", ast.Tuple(elements, ast.Load())
    elif returned and not isinstance(child, ast.Constant):
        yield "sign", ast.UnaryOp(ast.USub(), child)


def _put(parent: ast.AST, field: str, i: int | None, value: ast.expr) -> None:
    if i is None:
        setattr(parent, field, value)
    else:
        getattr(parent, field)[i] = value


class _Mutated(importlib.machinery.SourceFileLoader):
    """Loads one module from changed source."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self._source = source

    def get_code(self, name):
        return compile(self._source, self.path, "exec")


class _Finder:
    def __init__(self, mutant: Mutant):
        self._mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name != self._mutant.module:
            return None
        file = str(TINYARR.parent.joinpath(*name.split(".")).with_suffix(".py"))
        return importlib.util.spec_from_loader(name, _Mutated(name, file, self._mutant.source))


def caught(job: tuple[Mutant | None, list[str]]) -> bool:
    """Whether a gradient test fails in this process, in which the mutant (None: nothing) is the library."""
    mutant, names = job
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    settings.load_profile("mutants")
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            _run_gradient_tests(names)
    except BaseException:
        return True
    return False


def _out_of_time(*_: object) -> None:
    raise TimeoutError


def _run_gradient_tests(names: list[str]) -> None:
    from tests import test_primitives as tests

    if {"row_spread", "row_squares"} & {*names}:  # which small tensors do not take
        from tests.ops import test_statistics

        test_statistics.take_any_size_as_large(setattr)
        for name in test_statistics.FUNCTIONS:
            test_statistics.test_gradients_of_first_and_second_order_agree_with_finite_differences(name)
    for name in [n for n in tests.DIFFERENTIABLE if n in names] or tests.DIFFERENTIABLE:
        tests.test_the_gradient_agrees_with_finite_differences(name)
        tests.test_the_gradient_of_the_gradient_agrees_with_finite_differences(name)
    for case in tests.KINKS:
        tests.test_kinks_and_ties_have_the_gradient_that_the_documentation_says(*case)
    from tests.ops import test_composed

    if "cross_entropy" in names:  # whose rule only programs need: eager mode differentiates the composite
        test_composed.test_cross_entropy_has_the_gradient_of_its_composite_in_a_program()
    for name in test_composed.DIFFERENTIABLE:
        test_composed.test_gradients_of_first_and_second_order_agree_with_finite_differences(name)


def measure(words: Sequence[str] = ()) -> tuple[list[Mutant], dict[str, tuple[int, int]]]:
    """The mutants that no test catches, and for each kind how many are caught of how many."""
    jobs = [(m, names) for m, names in mutants() if not words or any(w in f"{m.module}.{m.place}" for w in words)]
    # A new process for each: the parent has everything imported but tinyarr.
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        if pool.apply(caught, [(None, ["add"])]):
            raise RuntimeError("the gradient tests fail without any mutant: mend them first")
        found = pool.map(caught, jobs, chunksize=1)
    counts: dict[str, tuple[int, int]] = {}
    for (mutant, _), was_caught in zip(jobs, found):
        n, total = counts.get(mutant.kind, (0, 0))
        counts[mutant.kind] = n + was_caught, total + 1
    return [m for (m, _), was_caught in zip(jobs, found) if not was_caught], counts


if __name__ == "__main__":
    survivors, counts = measure(sys.argv[1:])
    for survivor in survivors:
        print(f"not caught: {survivor}")
    for kind, (n, total) in sorted(counts.items()):
        print(f"{kind:10} {n:4} of {total:4} caught")
