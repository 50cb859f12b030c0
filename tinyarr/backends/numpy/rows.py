"""NumPy evaluation of row expressions, some rows at a time. Floor 1.

As in expression.py an expression is a list of steps, here over tiles of whole rows, and a fold is a step too. What
varies along the row has a register (rows, n), a statistic one (rows, 1). Of a choice between statistics the first side
is the usual one, which alone is computed in a tile whose rows all take it. Sums over rows are made of the tiles' sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ... import views
from ...ops.typing import Typed, TypedStep
from .expression import Specs, Tile, Tiles, block_tiles, function_of
from .reduce import add_in_pairs, blocks, sum_of_blocks

TILE = 1 << 17  # elements, 4 x expression.py's: a step over statistics takes 1 µs, however few the rows
FOLDS = {"row_sum": np.add, "row_max": np.maximum, "row_min": np.minimum}
NEUTRAL = {"multiply": "1.0", "subtract": "0.0"}  # second operands that change nothing


def compile_call(call: Any) -> tuple[Specs, Callable]:
    """Returns scratch and function(inputs, outputs, scratch), which takes dense operands."""
    typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    program = _Rows(call, typed)
    usual, conditions = _usual(typed, program.varies)
    if conditions:
        program = _Rows(call, usual, conditions, program)
    return program.scratch(), program.run


def _usual(typed: Typed, varies: Sequence[bool]) -> tuple[Typed, list[int]]:
    """The expression where all choices between statistics fall on the first side, and the conditions of that."""
    folded: list[bool] = []
    for v in typed.values:
        folded.append(v.op in FOLDS or any(folded[a] for a in v.args))
    choices, needed = set(), {*typed.outputs}
    for i, v in reversed([*enumerate(typed.values)]):
        if i in needed:
            is_choice = v.op == "where" and not varies[i] and folded[v.args[0]] and any(folded[a] for a in v.args[1:])
            choices |= {i} if is_choice else set()
            needed |= {*(v.args[:2] if is_choice else v.args)}
    values: list[TypedStep] = []
    numbers: dict[tuple[TypedStep, str], int] = {}
    new: dict[int, int] = {}
    for i in sorted(needed):
        v = typed.values[i]
        args = tuple(new[a] for a in v.args if a in needed)
        if i in choices:
            new[i] = args[1]
            continue
        last = values[args[-1]] if args else v
        if last.op == "constant" and v.op in NEUTRAL and repr(float(last.value)) == NEUTRAL[v.op]:
            new[i] = args[0]
            continue
        if last.op == "constant" and v.op == "cast" and last.dtype.is_float and v.dtype.is_float:
            v, args = replace(last, dtype=v.dtype), ()
        v = replace(v, args=args)
        new[i] = numbers.setdefault((v, repr(v.value)), len(values))  # 0.0 equals -0.0
        values += [v] if new[i] == len(values) else []
    conditions = sorted({new[typed.values[i].args[0]] for i in choices})
    return replace(typed, values=tuple(values), outputs=tuple(new[o] for o in typed.outputs)), conditions


class _OtherSide(Exception):
    """A row of a tile does not take the usual side of a choice."""


def _require(condition: np.ndarray, out: np.ndarray) -> None:
    if np.count_nonzero(condition) < condition.size:
        raise _OtherSide


class _Rows(Tiles):
    """The steps of one row expression for operands of given shapes.

    otherwise: the steps for a tile in which the conditions aren't all true.
    """

    def __init__(self, call: Any, typed: Typed, conditions: Sequence[int] = (), otherwise: Any = None):
        self.conditions, self.otherwise, shapes = conditions, otherwise, call.in_shapes
        *leading, self.n = call.primitive.shape(shapes, call.params)
        self.varies: list[bool] = []
        for v in typed.values:
            along = shapes[v.value][-1:] == (self.n,) if v.op == "input" else v.op in ("index", "random_bits")
            self.varies.append(v.op not in FOLDS and (along or any(self.varies[a] for a in v.args)))
        # Neighbouring axes along which each operand either goes on or is repeated are one.
        strides = [views.broadcast_to(views.contiguous(s[:-1]), tuple(leading)).strides for s in shapes]
        self.leading, by = views.merge_axes(tuple(leading), strides)
        self.seen = [
            (*(m if stride else 1 for m, stride in zip(self.leading, b, strict=True)), *s[-1:])
            for b, s in zip(by, shapes, strict=True)
        ]
        self.columns = {o: i for o, i in enumerate(typed.outputs) if typed.values[i].op == "column_sum"}
        self.count, self.most = math.prod(self.leading), max(TILE // max(self.n, 1), 1)
        super().__init__(typed, shapes, (*self.leading, self.n))
        self.copied = [(o, i) for o, i in self.copied if o not in self.columns]
        if otherwise is not None:  # both have their registers in one memory
            self.starts.append(max(self.starts[-1], otherwise.starts[-1]))
        kinds = [(self._width(i), typed.values[i].dtype.numpy, self.starts[r]) for i, r in self.register.items()]
        self.arrays = list(dict.fromkeys(kinds))  # in the memory of registers: to make one takes 0.3 µs
        self.array_of = [(i, self.arrays.index(kind)) for i, kind in zip(self.register, kinds, strict=True)]

    def _ordered(self, varying: Sequence[int]) -> list[int]:
        """The steps that conditions and results are made of, each after what it needs, conditions first."""
        values, order = self.typed.values, dict[int, None]()
        computed = {i for i in varying if values[i].op != "index"}
        wanted = [*self.typed.outputs, *self.conditions]
        while wanted:
            i = wanted.pop()
            missing = [a for a in values[i].args if a in computed and a not in order]
            if missing:
                wanted += [i, *missing]
            elif i in computed:
                order[i] = None
        return list(order)

    def _steps(self) -> list[tuple]:
        steps = [(i, self._function(self.typed.values[i]), self._arguments(self.typed.values[i])) for i in self.order]
        known = max([self.order.index(c) for c in self.conditions], default=-1) + 1
        return [*steps[:known], *[(c, _require, (c,)) for c in self.conditions], *steps[known:]]

    def _function(self, v: TypedStep) -> Callable:
        if v.op == "column_sum":
            return _sum_over_rows
        if v.op not in FOLDS:
            return function_of(v)
        of_nothing = {"row_max": -math.inf, "row_min": math.inf}.get(v.op, 0)
        fold = functools.partial(FOLDS[v.op].reduce, axis=-1, keepdims=True, initial=None if self.n else of_nothing)
        a = self.typed.values[v.args[0]]
        if self.seen[a.value] == self.shape if a.op == "input" else self.varies[v.args[0]] and a.op != "index":
            return fold
        return lambda x, out: fold(np.broadcast_to(x, (*out.shape[:-1], self.n)), out=out)

    def _width(self, i: int) -> int:
        return 0 if self.typed.values[i].op == "column_sum" else self.n if self.varies[i] else 1

    def _room(self, i: int | None = None) -> int:
        return min(self.most, self.count) * (self.n if i is None else self._width(i))

    def _tiles(self) -> Iterator:
        if self.count > self.most:
            return block_tiles(self.leading, self.most)
        return iter([(..., self.leading, 0, (0,) * len(self.leading))] if self.count else [])

    def known(self, inputs: Sequence[Any]) -> list[Any]:
        known = super().known(inputs)
        for i, v in enumerate(self.typed.values):
            known[i] = np.arange(self.n) if v.op == "index" else known[i]
        return known

    def scratch(self) -> Specs:
        """Scratch as of elementwise expressions; then for each sum over rows those of tiles, and of blocks in one."""
        specs = super().scratch() or [((0,), np.uint8)]
        for i in self.columns.values():
            width, dtype = self._width(self.typed.values[i].args[0]), self.typed.values[i].dtype.numpy
            tiles = sum(1 for _ in self._tiles())
            specs += [((tiles + 1, width), dtype), (blocks(1, min(self.most, self.count), width), dtype)]
        return specs

    def run(self, inputs: Sequence[Any], outputs: Sequence[np.ndarray], scratch: Sequence[np.ndarray] = ()) -> None:
        operands, outs = list(inputs), list(outputs)
        for _, k in self.inputs:
            operands[k] = inputs[k].reshape(self.seen[k])
            if self.count > self.most:
                operands[k] = np.broadcast_to(operands[k], (*self.leading, operands[k].shape[-1]))
        for o, i in enumerate(self.typed.outputs):
            if o not in self.columns:
                outs[o] = outputs[o].reshape(*self.leading, self._width(i))
        sums = scratch[len(scratch) - 2 * len(self.columns) :]
        for number, (where, rows, start, corner) in enumerate(self._tiles()):
            tile = Tile(start * self.n, (*corner, 0), len(self.shape), scratch[1:])
            shares = [(x[number : number + 1], b, rows) for x, b in zip(sums[::2], sums[1::2], strict=True)]
            try:
                self._tile(self.known(inputs), operands, outs, self._registers(rows, scratch, shares), where, tile)
            except _OtherSide:
                other = self.otherwise
                other._tile(other.known(inputs), operands, outs, other._registers(rows, scratch, shares), where, tile)
        for o, total in zip(self.columns, sums[::2], strict=True):
            add_in_pairs(total[None], len(total) - 1, total[-1:])
            np.copyto(outputs[o], total[-1].reshape(outputs[o].shape), casting="unsafe")

    def _registers(self, rows: tuple[int, ...], scratch: Sequence[np.ndarray], shares: Sequence[tuple] = ()) -> list:
        arrays = [np.ndarray((*rows, width), dtype, scratch[0], start) for width, dtype, start in self.arrays]
        registers: list[Any] = [None] * len(self.constants)
        for i, k in self.array_of:
            registers[i] = arrays[k]
        for i, share in zip(self.columns.values(), shares, strict=True):
            registers[i] = share
        return registers


def _sum_over_rows(x: Any, out: tuple[np.ndarray, np.ndarray, tuple[int, ...]]) -> None:
    """out: the sum, the blocks to make it of, and the leading shape of the rows."""
    total, sums, rows = out
    shape = (*rows, total.shape[-1])
    x = x if np.shape(x) == shape else np.broadcast_to(x, shape)
    if total.size:
        sum_of_blocks(x.reshape(1, -1, shape[-1]), total, sums)
